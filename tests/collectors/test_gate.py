"""The gates of a run: before the first request, when the register changes while it goes on, and at every write.

Each test is named for the gate without which it fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from collectors import cli, gate, keeping
from collectors.config import RunConfig, read_run
from collectors.errors import PolicyRefused, ReviewNeeded
from collectors.gate import enforce, judge
from collectors.run import collect, probe_endpoints
from policies.documents import load_bundle
from policies.errors import FactsError
from storage.journal import journal_keys
from storage.table import Table
from tests.collectors.runs import run_config, write_run
from tests.collectors.servers import Ask, TeacherServer
from tests.policies.registers import forbid, installed_copy, reread

pytestmark = pytest.mark.usefixtures("short_pauses")

GEMMA = "gemma-tou@2025-03-24"
REFUSED = """
[use]
action = "distribute_student"
[use.student]
name = "acme"
licence = "Apache-2.0"
init_from = "scratch"
kind = "general_llm"
intent_similar = true
[use.organisation]
domicile = "US"
deploys_in = ["US"]
commercial = true
"""


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return installed_copy(tmp_path, monkeypatch)


def at_answer(number: int, change: Callable[[], None]) -> Callable[[Ask], None]:
    """Let `change` happen on the server's side when it is asked for the number-th time."""
    asked = []

    def fault(ask: Ask) -> None:
        asked.append(ask)
        if len(asked) == number:
            change()

    return fault


def in_the_journal(config: RunConfig) -> int:
    return len(journal_keys(config.table / "journal" / f"{config.run_id}.sqlite"))


def test_gate_before_the_first_request(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, more=REFUSED)
        for ask in (collect, probe_endpoints):
            with pytest.raises(PolicyRefused, match="STUDENT_LICENCE_CONFLICT"):
                ask(config)
        assert server.headers == []
    assert not config.table.exists()


def test_prompts_without_a_licence_need_a_review_before_anything_is_asked(tmp_path: Path) -> None:
    config = run_config(tmp_path, "http://127.0.0.1:9")
    enforce(judge(config, ("CC0-1.0",)))
    with pytest.raises(ReviewNeeded, match="licence of the prompts is not stated") as caught:
        enforce(judge(config, ("CC0-1.0", None)))
    assert caught.value.exit_code == 5


def test_gate_when_the_register_changes_during_a_run(
    tmp_path: Path, register: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write goes through first; then the licensor takes it back, and the next one does not."""
    monkeypatch.setattr(keeping, "_FIRST_COMMIT", 0.2)
    with TeacherServer(at_answer(60, lambda: forbid(register, GEMMA)), latency=0.05) as server:
        config = run_config(tmp_path, server.url, prompts=400)
        with pytest.raises(PolicyRefused, match="The licensor took it back"):
            collect(config)
        asked = len(server.answered)
    table = Table.open(config.table)
    (run,) = table.runs()
    assert 0 < run.committed < 100 and asked < 400
    assert (run.outcome, "took it back" in (run.detail or "")) == ("stopped", True)
    assert table.decision(run.decision).verdict == "deny"
    assert run.policy_bundle == load_bundle().id
    assert in_the_journal(config) > 0


def test_gate_at_every_write_of_a_run(tmp_path: Path, register: Path) -> None:
    """What was answered is paid for: it waits in the journal until it may be written, and is not asked for again."""
    text = (register / f"{GEMMA}.toml").read_text("utf-8")
    with TeacherServer(at_answer(15, lambda: forbid(register, GEMMA))) as server:
        config = run_config(tmp_path, server.url, prompts=20)
        with pytest.raises(PolicyRefused):
            collect(config)
        assert Table.open(config.table).files() == []
        waiting = in_the_journal(config)
        assert waiting == 20
        asked = len(server.headers)
        with pytest.raises(PolicyRefused):
            collect(config)
        assert in_the_journal(config) == waiting
        (register / f"{GEMMA}.toml").write_text(text, "utf-8")
        assert collect(config).committed == 20
        assert len(server.headers) == asked


def test_rows_name_the_decision_that_held_when_they_were_answered(
    tmp_path: Path, register: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_FIRST_COMMIT", 0.2)
    first = load_bundle().id
    with TeacherServer(at_answer(40, lambda: reread(register, GEMMA)), latency=0.05) as server:
        config = run_config(tmp_path, server.url, prompts=240)
        assert collect(config).committed == 240
    second = load_bundle().id
    table = Table.open(config.table)
    found = table.sql("SELECT DISTINCT policy_bundle, decision FROM soft_labels").to_pylist()
    assert {row["policy_bundle"] for row in found} == {first, second} and first != second
    for row in found:
        assert table.decision(row["decision"]).bundle == row["policy_bundle"]
    (run,) = table.runs()
    assert run.policy_bundle == second and table.decision(run.decision).bundle == second


def write_waiver(folder: Path, **changes: object) -> Path:
    document = load_bundle().get(GEMMA)
    assert document is not None
    today = datetime.now(UTC).date()
    facts = {
        "kind": "external_permission",
        "document": GEMMA,
        "document_digest": document.digest,
        "rules": ["STUDENT_LICENCE_CONFLICT"],
        "valid_from": today - timedelta(days=3),
        "valid_until": today + timedelta(days=30),
    } | changes
    lines = [f"{name} = {value if isinstance(value, (list, date)) else repr(value)}" for name, value in facts.items()]
    lines += ["[permission]", "title = 'Letter'", f"sha256 = '{'ab' * 32}'", "granted_by = 'Google'"]
    path = folder / "waiver.toml"
    path.write_text("\n".join([*lines, f"granted_on = {today - timedelta(days=4)}", ""]))
    return path


def test_a_waiver_opens_the_gate_and_is_kept_with_the_decision(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, more=REFUSED)
        waiver = write_waiver(tmp_path)
        done = CliRunner().invoke(cli.collect, [str(tmp_path / "run.toml"), "--waiver", str(waiver)])
        assert done.exit_code == 0, done.output
    table = Table.open(config.table)
    (run,) = table.runs()
    decision = table.decision(run.decision)
    assert decision.verdict == "conditional"
    (kept,) = decision.facts["waivers"]
    assert kept["permission"]["granted_by"] == "Google" and kept["document"] == GEMMA


def test_a_waiver_that_runs_out_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day begins while the run goes on, and yesterday was the waiver's last."""
    today = datetime.now(UTC).date()
    write_waiver(tmp_path, valid_until=today)
    run = write_run(tmp_path, "http://127.0.0.1:9", more=REFUSED)
    run.write_text('waivers = ["waiver.toml"]\n' + run.read_text())
    opened = gate.Gate(read_run(run), ("CC0-1.0",))
    opened.pass_write()

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=1)

    monkeypatch.setattr(gate, "datetime", Tomorrow)
    monkeypatch.setattr("policies.evaluate.datetime", Tomorrow)
    with pytest.raises(PolicyRefused, match="STUDENT_LICENCE_CONFLICT"):
        opened.pass_write()


def test_a_waiver_voids_itself_when_its_document_changes_during_a_run(tmp_path: Path, register: Path) -> None:
    write_waiver(tmp_path)
    config = run_config(tmp_path, more=REFUSED).waived((tmp_path / "waiver.toml",))
    opened = gate.Gate(config, ("CC0-1.0",))
    forbid(register, GEMMA)
    with pytest.raises(FactsError, match="reads otherwise now"):
        opened.pass_write()


def test_looking_whether_the_register_changed_costs_nothing_worth_saving(register: Path, tmp_path: Path) -> None:
    opened = gate.Gate(run_config(tmp_path), ("CC0-1.0",))
    began = time.perf_counter()
    for _ in range(20):
        opened.pass_write()
    assert (time.perf_counter() - began) / 20 < 0.02


def test_a_run_that_has_nothing_left_to_ask_needs_no_licence_again(tmp_path: Path) -> None:
    (tmp_path / "teacher.py").write_text("def moods(texts, labels):\n    return [[0.7, 0.3] for _ in texts]\n")
    (tmp_path / "prompts.jsonl").write_text('{"id": "1", "prompt": "A", "licence": "MIT"}\n')
    (tmp_path / "run.toml").write_text(
        'table = "table"\nteacher = {model = "own/moods"}\n[endpoint]\nkind = "local"\ncallable = "teacher:moods"\n'
        '[prompts]\npath = "prompts.jsonl"\n[ask]\nmode = "classify"\nlabels = ["good", "bad"]\n'
    )
    assert collect(read_run(tmp_path / "run.toml")).committed == 1
    again = collect(read_run(tmp_path / "run.toml"))
    assert (again.committed, again.exit_code) == (0, 0)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"id": "2", "prompt": "B"}\n')
    with pytest.raises(ReviewNeeded):
        collect(read_run(tmp_path / "run.toml"))
