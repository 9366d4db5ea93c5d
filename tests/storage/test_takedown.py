from datetime import UTC, datetime, timedelta

import pytest

from storage.compact import compact
from storage.errors import QueryFailed, QueryRefused, RunHeld
from storage.journal import Journal
from storage.selection import Selection
from storage.table import Table
from storage.takedown import takedown
from storage.verify import verify
from tests.storage.make_rows import QWEN, make_row, make_rows
from tests.storage.test_journal import response
from tests.storage.test_machine import stored_keys
from tests.storage.test_table import reject

APACHE = ("apache-2.0@2004-01-01",)


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "labels")
    table.append(make_rows(0, 6, run_id="gemma"), writer="gemma", sequence=0)
    table.append(make_rows(1000, 4, run_id="qwen", teacher=QWEN, terms=APACHE), writer="qwen", sequence=0)
    table.append(make_rows(6, 4, run_id="gemma"), writer="gemma", sequence=1)
    table.append_rejects([reject(1)], writer="r", sequence=0)
    table.save_training({"table_version": 1, "config": {"out": "students/early"}})
    table.save_training({"table_version": 3, "config": {"out": "students/late"}})
    return table


def prompts(table, version=None):
    lines = Table.open(table.path, version).sql("SELECT prompt_id FROM soft_labels ORDER BY 1").to_pylist()
    return [line["prompt_id"] for line in lines]


def test_whole_groups_go_by_their_terms(table):
    labels = [f.path for f in table.files() if "gemma" not in f.path.name]
    done = takedown(table.path, Selection(terms="gemma-tou"), reason="terms withdrawn")
    assert (done.rows, done.runs, done.versions, done.version) == (10, ("gemma",), (1, 3), 4)
    assert done.students == ("students/early", "students/late")
    assert prompts(table) == [f"p{n:06}" for n in range(1000, 1004)]
    assert len(prompts(table, 3)) == 14 and labels
    [record] = table.takedowns()
    assert (record["reason"], record["selection"]["terms"], record["rows"]) == ("terms withdrawn", "gemma-tou", 10)
    assert table.log.notes()[4]["operation"] == "takedown"
    assert verify(table.path).problems == ()
    again = takedown(table.path, Selection(terms="gemma-tou"), reason="terms withdrawn")
    assert (again.rows, again.record, again.version) == (0, None, 4)


def test_a_group_that_comes_back_is_reported(table):
    takedown(table.path, Selection(terms="gemma-tou"), reason="x")
    table.append(make_rows(100, 1), writer="gemma", sequence=2)
    assert "was taken down" in verify(table.path).problems[0].what
    later = datetime.now(UTC) + timedelta(days=1)
    takedown(table.path, Selection(terms="gemma-tou"), reason="x")
    table.append(make_rows(101, 1, collected_at=later), writer="gemma", sequence=3)
    assert verify(table.path).problems == ()


def test_a_dry_run_removes_nothing(table):
    with Journal.open(table.path / "journal", "gemma") as journal:
        journal.record([response(50)])
    done = takedown(table.path, Selection(teacher="google/gemma-3-270m"), reason="", dry_run=True)
    assert (done.rows, done.responses, done.record) == (10, 1, None)
    assert len(prompts(table)) == 14 and table.version == 3 and table.takedowns() == []


def test_rows_go_by_sql_and_their_files_keep_the_others(table):
    done = takedown(table.path, Selection(where="prompt_id IN ('p000002', 'p000007') -- why"), reason="asked to")
    assert (done.rows, done.version) == (2, 4)
    assert done.versions == (1, 3)
    assert prompts(table) == [f"p{n:06}" for n in [0, 1, 3, 4, 5, 6, 8, 9, 1000, 1001, 1002, 1003]]
    assert verify(table.path).problems == ()
    assert table.takedowns()[0]["keys"] == sorted([make_row(2).key, make_row(7).key])
    known = table.keys()
    assert make_row(2).key not in known and make_row(3).key in known


def test_a_file_that_loses_all_its_rows_goes(table):
    takedown(table.path, Selection(run="qwen"), reason="wrong model")
    assert len(table.files()) == 2 and len(prompts(table)) == 10
    assert verify(table.path).problems == ()


def test_teachers_are_told_apart(table):
    table.append(
        make_rows(2000, 2, teacher=QWEN.__class__(**{**_fields(QWEN), "access_path": "api"})), writer="x", sequence=0
    )
    dry = {
        text: takedown(table.path, Selection(teacher=text), reason="", dry_run=True).rows
        for text in (QWEN.model, f"{QWEN.model}#api", f"{QWEN.model}#self_host", f"{QWEN.model}@main", "nobody/none")
    }
    assert list(dry.values()) == [6, 2, 4, 0, 0]


def _fields(record):
    return {name: getattr(record, name) for name in record.__slots__}


def test_journal_and_rejects_go_with_their_run(table):
    table.append_rejects([reject_of("gemma", 11), reject_of("qwen", 12)], writer="r", sequence=1)
    for run in ("gemma", "qwen"):
        with Journal.open(table.path / "journal", run) as journal:
            journal.record([response(60), response(61)])
    done = takedown(table.path, Selection(terms="gemma-tou@2025-03-24"), reason="x")
    assert (done.rejects, done.responses) == (1, 2)
    assert [p.name for p in (table.path / "journal").iterdir()] == ["qwen.sqlite"]
    assert sorted(line["run_id"] for line in table.rejects.read().to_pylist()) == ["qwen", "r"]


def test_by_sql_the_same_keys_go_from_the_journal(table):
    with Journal.open(table.path / "journal", "gemma") as journal:
        journal.record([response(2), response(3)])
    assert takedown(table.path, Selection(where="prompt_id = 'p000002'"), reason="x").responses == 1
    with Journal.open(table.path / "journal", "gemma") as journal:
        assert journal.keys() == {make_row(3).key}


def test_a_run_at_work_is_not_disturbed(table):
    with Journal.open(table.path / "journal", "gemma"), pytest.raises(RunHeld):
        takedown(table.path, Selection(terms="gemma-tou"), reason="x")
    assert len(prompts(table)) == 14


def test_what_cannot_be_selected_is_said(table):
    with pytest.raises(QueryRefused, match="exactly one of"):
        Selection(terms="a", run="b")
    with pytest.raises(QueryFailed, match="no_column"):
        takedown(table.path, Selection(where="no_column = 1"), reason="x")
    with pytest.raises(QueryRefused, match="write MODEL"):
        takedown(table.path, Selection(teacher="two words"), reason="x")


def test_after_a_purge_no_byte_of_the_rows_is_left(table):
    marker = make_row(3000, completion="do-not-keep-" * 4, run_id="gemma")
    table.append([marker], writer="gemma", sequence=2)
    takedown(table.path, Selection(where="completion LIKE 'do-not-keep%'"), reason="x")
    compact(table.path, purge=True)
    assert marker.key not in stored_keys(table.path, None)
    files = [
        f for f in table.path.rglob("*") if f.is_file() and "_delta_log" not in f.parts and "takedowns" not in f.parts
    ]
    assert not any(marker.key.encode() in f.read_bytes() for f in files)


def test_rows_that_come_back_are_reported(table):
    takedown(table.path, Selection(where="prompt_id = 'p000002'"), reason="x")
    table.append([make_row(2)], writer="gemma", sequence=2)
    [problem] = verify(table.path).problems
    assert f"row {make_row(2).key[:12]} was taken down on 20" in problem.what


def reject_of(run, number):
    from dataclasses import replace

    return replace(reject(number), run_id=run)
