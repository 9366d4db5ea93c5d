import json

import pytest
from click.testing import CliRunner

from policies.use import Use
from storage import audit_cli as cli
from storage.audit import audit
from storage.errors import EmptyTable
from storage.table import Table
from tests.storage.make_rows import make_rows

REFUSED = """
action = "distribute_student"
[student]
name = "acme"
licence = "Apache-2.0"
init_from = "scratch"
kind = "general_llm"
distributed = true
intent_similar = true
[organisation]
domicile = "US"
deploys_in = ["US"]
commercial = true
"""


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "labels")
    table.append(make_rows(0, 4), writer="w", sequence=0)
    return table


def test_a_decision_is_made_of_the_table_and_kept(table):
    decision = audit(table.path, Use.collect_only())
    assert list(decision.per_teacher) and decision.facts
    assert table.decision(decision.digest) == decision
    assert audit(table.path, Use.collect_only()).digest == decision.digest
    assert table.sql("SELECT verdict, digest FROM decisions").to_pylist() == [
        {"verdict": decision.verdict, "digest": decision.digest}
    ]


def test_only_the_version_asked_for_is_judged(table):
    table.append(make_rows(4, 3, terms=("other-terms@2020-01-01",)), writer="w", sequence=1)
    first, second = (audit(table.path, Use.collect_only(), version=version) for version in (1, 2))
    assert sum(t.rows for t in first.per_teacher.values()) == 4
    assert sum(t.rows for t in second.per_teacher.values()) == 7


def test_an_empty_table_is_not_judged(table):
    with pytest.raises(EmptyTable, match="no rows at version 0: collect some"):
        audit(table.path, Use.collect_only(), version=0)


def test_labels_are_not_read(table):
    for file in table.files():
        file.path.write_bytes(b"gone")
    assert audit(table.path, Use.collect_only()).per_teacher


def test_the_command_prints_and_exits_by_the_verdict(table, tmp_path):
    use = tmp_path / "use.toml"
    use.write_text(REFUSED)
    done = CliRunner().invoke(cli.audit, [str(table.path), "--use", str(use), "--out", str(tmp_path / "decision.json")])
    assert done.exit_code == 3, done.output
    assert "gemma-tou@2025-03-24" in done.stdout
    record = json.loads((tmp_path / "decision.json").read_text())
    assert record["verdict"] == "deny"
    use.write_text('action = "internal_use"')
    done = CliRunner().invoke(cli.audit, [str(table.path), "--use", str(use), "--json"])
    record = json.loads(done.stdout)
    assert done.exit_code == {"allow": 0, "conditional": 0, "review": 5, "deny": 3}[record["verdict"]]
