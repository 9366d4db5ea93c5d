import json
from dataclasses import replace

import pytest

from storage.journal import Journal
from storage.ledgers import RunRecord
from storage.status import status
from storage.table import Table
from tests.storage.make_rows import QWEN, START, make_rows
from tests.storage.test_journal import response
from tests.storage.test_table import reject

RUN = RunRecord(
    run_id="run-1", started_at=START, updated_at=START, outcome="done", config="{}", policy_bundle="b", decision="d"
)


@pytest.fixture
def table(tmp_path):
    return Table.create(tmp_path / "labels")


def test_totals_are_those_of_the_table(table):
    table.append(make_rows(0, 4), writer="w", sequence=0)
    table.append(make_rows(4, 2, teacher=QWEN, labels=None, collect_verdict="allow"), writer="w", sequence=1)
    table.append_rejects([reject(1), reject(2)], writer="w", sequence=0)
    table.save_run(RUN)
    found = status(table.path)
    assert (found.rows, found.labelled_rows, found.tokens, found.prompts, found.files) == (6, 4, 32, 6, 2)
    assert (found.prompt_tokens, found.completion_tokens, found.cost_usd) == (24, 48, pytest.approx(0.006))
    assert found.verdicts == {"allow": 2, "conditional": 4} and found.rejects == {"no_logprobs": 2}
    assert sorted((g.model, g.rows, g.signal) for g in found.groups) == [
        ("Qwen/Qwen3-8B", 2, "text"),
        ("google/gemma-3-270m", 4, "top_k_logprobs"),
    ]
    record = json.loads(json.dumps(found.to_json()))
    assert record["runs"][0]["outcome"] == "done" and "config" not in record["runs"][0]
    assert record["bytes"] == sum(file.size for file in table.files())


def test_the_next_step_follows_the_table(table):
    assert "fills the table" in status(table.path).next
    table.append(make_rows(0, 1), writer="w", sequence=0)
    table.save_run(RUN)
    assert "potstill audit" in status(table.path).next
    table.save_run(replace(RUN, outcome="stopped"))
    assert "run-1 is not finished" in status(table.path).next
    with Journal.open(table.path / "journal", "run-1") as journal:
        journal.record([response(1)])
        found = status(table.path)
        assert "Run run-1 is at work: process " in found.next
        assert found.pending[0].responses == 1
    found = status(table.path)
    assert found.pending[0].held_by is None
    assert "stopped with 1 paid responses in its journal" in found.next


def test_an_empty_table_has_a_status(table):
    found = status(table.path)
    assert (found.rows, found.tokens, found.cost_usd, found.verdicts, found.groups) == (0, 0, None, {}, ())
