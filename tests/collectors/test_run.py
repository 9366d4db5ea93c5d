import json
from pathlib import Path

import pytest

from collectors.config import RunConfig, read_run
from collectors.dry_run import estimate
from collectors.errors import EndpointStopped, EndpointUnfit, PolicyRefused, PromptError, ReviewNeeded
from collectors.progress import RunState
from collectors.run import collect, probe_endpoints
from storage.errors import RunHeld
from storage.journal import Journal
from storage.query import sql
from storage.table import Table
from tests.collectors.runs import run_config, write_prompts, write_run
from tests.collectors.servers import TeacherServer

pytestmark = pytest.mark.usefixtures("short_pauses")


class Recorder:
    def __init__(self) -> None:
        self.states: list[RunState] = []
        self.lines: list[str] = []

    def update(self, state: RunState) -> None:
        self.states.append(state)

    def say(self, line: str) -> None:
        self.lines.append(line)


def rows(config: RunConfig, query: str = "SELECT * FROM soft_labels ORDER BY prompt_id, sample_index") -> list[dict]:
    return sql(config.table, query).to_pylist()


def test_a_run_fills_the_table_and_says_what_it_did(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=30, samples=2)
        watcher = Recorder()
        report = collect(config, watcher=watcher)
        asked = len(server.answered)
    assert (report.outcome, report.exit_code, report.committed, report.rejected) == ("done", 0, 60, 0)
    assert report.tokens == 360
    found = rows(config)
    assert len(found) == 60
    assert asked >= 60
    row = found[0]
    assert row["prompt"] == "Prompt 0"
    assert len(row["token_ids"]) == 6
    assert len(row["top_ids"]) == 30
    assert row["terms"]
    assert row["policy_bundle"]
    assert row["collect_verdict"] in ("allow", "conditional")
    assert row["teacher"]["endpoint_card"]
    assert row["prompt_source"] == "prompts.jsonl:1"
    assert row["prompt_licence"] == "CC0-1.0"
    assert row["sampling"]["max_tokens"] == 6
    table = Table.open(config.table)
    assert table.decision(row["decision"]).verdict == row["collect_verdict"]
    (run,) = table.runs()
    assert (run.outcome, run.committed, run.planned, run.run_id) == ("done", 60, 60, config.run_id)
    assert any(card.count(row["teacher"]["endpoint_card"]) == 0 for card in run.endpoint_cards)
    assert not (config.table / "journal" / f"{config.run_id}.sqlite").exists()
    assert watcher.states[-1].committed == 60


def test_again_there_is_nothing_to_do_and_nothing_is_asked(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url)
        collect(config)
        before = len(server.headers)
        report = collect(config)
        assert len(server.headers) == before
    assert (report.outcome, report.exit_code, report.committed) == ("nothing to do", 0, 0)


def test_more_prompts_are_picked_up_and_the_old_ones_are_not_asked(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=10)
        collect(config)
        before = sum(server.answered.values())
        write_prompts(tmp_path, 25)
        report = collect(config)
        assert report.committed == 15
        assert sum(server.answered.values()) - before < 15 + 20  # a probe besides
    assert len(rows(config)) == 25


def test_a_limit_bounds_a_start_and_the_next_goes_on(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=20)
        assert collect(config, limit=7).committed == 7
        assert collect(config, limit=7).committed == 7
        assert collect(config).committed == 6
        assert collect(config).outcome == "nothing to do"


def test_two_runs_share_a_table_and_what_is_there_is_not_asked_again(tmp_path: Path) -> None:
    with TeacherServer() as server:
        first = run_config(tmp_path, server.url, prompts=10)
        collect(first)
        second = read_run(write_run(tmp_path, server.url, prompts=15, name="other.toml"))
        assert first.run_id != second.run_id
        assert collect(second).committed == 5
    assert len(rows(first)) == 15


def test_the_same_run_twice_is_told_who_holds_it(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url)
        collect(config, limit=1)
        with (
            Journal.open(config.table / "journal", config.run_id),
            pytest.raises(RunHeld, match="process") as caught,
        ):
            collect(config)
    assert caught.value.exit_code == 75


def test_prompts_that_the_kind_cannot_be_asked_with_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with TeacherServer() as server:
        path = write_run(tmp_path, server.url)
        path.write_text(path.read_text().replace('"llamacpp"', '"tgi"').replace("[ask]", "as_chat = true\n[ask]"))
        for start in (collect, estimate):
            with pytest.raises(EndpointUnfit, match=r"'tgi' takes prompt .*prompts\.jsonl:1 gives messages.*'openai'"):
                start(read_run(path))
        path = write_run(tmp_path, server.url, more='bos = "add"')
        with pytest.raises(EndpointUnfit, match=r"ask\.bos = 'add' needs a teacher\.tokenizer"):
            collect(read_run(path))
        path.write_text(path.read_text().replace('"llamacpp"', '"openai"'))
        with pytest.raises(EndpointUnfit, match=r"cannot put a BOS before prompt"):
            collect(read_run(path))
        assert not server.headers
    assert not (tmp_path / "table").exists()


def test_nothing_is_asked_when_the_policies_say_no(tmp_path: Path) -> None:
    with TeacherServer() as server:
        path = write_run(tmp_path, server.url)
        path.write_text(path.read_text().replace("google/gemma-3-270m", "nobody/unknown-model"))
        with pytest.raises(PolicyRefused, match="UNKNOWN_TERMS") as caught:
            collect(read_run(path))
        assert caught.value.exit_code == 3
        with pytest.raises(PolicyRefused):
            probe_endpoints(read_run(path))
        assert not server.headers
    assert not (tmp_path / "table").exists()


def test_the_use_is_judged_too_and_the_stricter_verdict_counts(tmp_path: Path) -> None:
    more = '[use]\naction = "distribute_student"\n[use.student]\nlicence = "Apache-2.0"\nname = "x"\n'
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, more=more)
        with pytest.raises((PolicyRefused, ReviewNeeded)) as caught:
            collect(config)
        assert caught.value.exit_code in (3, 5)
        assert "distribute_student" in str(caught.value)
        assert not server.headers


def test_broken_prompts_stop_the_run_before_anything_is_asked(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url)
        with config.prompts.path.open("a") as file:
            file.write("{broken\n")
        with pytest.raises(PromptError, match=r"prompts\.jsonl:21"):
            collect(config)
        assert not server.headers


def test_an_unreachable_teacher_is_one_sentence(tmp_path: Path) -> None:
    config = run_config(tmp_path, "http://127.0.0.1:9")
    with pytest.raises(EndpointStopped, match=r"127\.0\.0\.1:9") as caught:
        collect(config)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_a_run_that_the_card_contradicts_does_not_start(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url)
        ask = config.ask.model_copy(update={"top_k": 2000})
        with pytest.raises(EndpointUnfit, match="top_k"):
            collect(config.model_copy(update={"ask": ask}))


def test_a_spent_budget_ends_in_part_and_more_budget_goes_on(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=80, more="[budget]\ntokens = 1200\n")
        report = collect(config)
        assert (report.outcome, report.exit_code) == ("budget", 4)
        assert 0 < report.committed < 80
        assert "budget.tokens" in report.detail
        again = collect(config)
        assert again.outcome == "budget"
        used = rows(config, "SELECT sum(usage.prompt_tokens + usage.completion_tokens) AS n FROM soft_labels")[0]["n"]
        assert used <= 1200
        assert Table.open(config.table).runs()[0].prompt_tokens > used, "the probe of each start counts too"
        more = config.model_copy(update={"budget": config.budget.model_copy(update={"tokens": 100_000})})
        assert collect(more).outcome == "done"
    assert len(rows(config)) == 80


def test_dollars_are_counted_by_usage_and_never_passed(tmp_path: Path) -> None:
    more = "[price]\ninput_per_million = 1000.0\noutput_per_million = 2000.0\n[budget]\nusd = 1.6\n"
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=60, more=more)
        report = collect(config)
    assert report.outcome == "budget"
    spent = rows(config, "SELECT sum(usage.cost_usd) AS usd FROM soft_labels")[0]["usd"]
    assert 0.2 < spent < report.usd <= 1.6
    (run,) = Table.open(config.table).runs()
    assert run.cost_usd == pytest.approx(report.usd)


@pytest.mark.parametrize("allowed", [3, 8, 30, 100])
def test_no_request_of_any_kind_passes_the_budget(tmp_path: Path, allowed: int) -> None:
    """Probes, the server's own tokenizing, looks at its health, tries: the server counts them all, over all starts."""
    faults = {3: "http-429-0", 7: "die", 11: "reset"}
    with TeacherServer(lambda ask: faults.get(ask.prompt_number or 0) if ask.attempt == 1 else None) as server:
        config = run_config(tmp_path, server.url, prompts=60, more=f"[budget]\nrequests = {allowed}\n")
        reports = [collect(config) for _ in range(3)]
        assert {(one.outcome, one.exit_code) for one in reports} == {("budget", 4)}
        assert len(server.headers) <= allowed
        seen = len(server.headers)
        assert collect(config).outcome == "budget"
        assert len(server.headers) == seen or allowed - seen >= 8, "who cannot pay a probe asks nothing"
    (run,) = Table.open(config.table).runs()
    assert seen <= run.requests <= allowed
    assert (seen == 0) == (allowed < 9)
    if allowed == 100:
        assert len(rows(config)) > 20
        assert "budget.requests" in reports[0].detail


def test_a_budget_that_cannot_pay_the_probe_ends_the_start_at_once(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, more="[budget]\ntokens = 300\n")
        report = collect(config)
        assert (report.outcome, report.exit_code, server.headers) == ("budget", 4, [])
        assert "a probe of the endpoint" in report.detail and "raise budget.tokens" in report.detail
        assert probe_endpoints(config), "a probe alone has no budget"


def test_a_run_of_which_no_answer_can_be_read_is_stopped(tmp_path: Path) -> None:
    with TeacherServer(lambda ask: None if ask.prompt_number is None else "wrong-type") as server:
        config = run_config(tmp_path, server.url, prompts=400)
        report = collect(config)
        assert (report.outcome, report.exit_code, report.committed) == ("part", 4, 0)
        assert "wrong_shape" in report.detail and "endpoint.kind" in report.detail
        assert 50 <= report.rejected == len(rows(config, "SELECT raw FROM rejects")) < 120
        server.fault = lambda ask: None
        assert collect(config).committed == 400 - report.rejected


def test_one_row_in_the_table_and_rejects_stop_nothing(tmp_path: Path) -> None:
    with TeacherServer(lambda ask: "wrong-type" if ask.prompt_number else None) as server:
        report = collect(run_config(tmp_path, server.url, prompts=150))
        again = collect(run_config(tmp_path, server.url, prompts=300))
    assert (report.committed, report.rejected) == (1, 149)
    assert again.rejected == 150


def test_a_key_never_reaches_a_file_or_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "canary-3f9c1b7e"
    monkeypatch.setenv("POTSTILL_TEST_KEY", canary)
    fault = {5: "http-400", 9: "broken-json", 13: "http-503-0"}
    with TeacherServer(lambda ask: fault.get(ask.number)) as server:
        path = write_run(tmp_path, server.url)
        path.write_text(path.read_text().replace("POTSTILL_CANARY_KEY", "POTSTILL_TEST_KEY"))
        watcher = Recorder()
        report = collect(read_run(path), watcher=watcher)
        assert all(headers.get("Authorization") == f"Bearer {canary}" for headers in server.headers)
    assert canary not in str(report) + "".join(watcher.lines)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 5
    assert not [file for file in written if canary.encode() in file.read_bytes()]


def test_the_record_of_a_run_holds_its_configuration(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=3)
        collect(config)
    (run,) = Table.open(config.table).runs()
    assert json.loads(run.config)["ask"]["top_k"] == 5
    assert RunConfig.model_validate_json(run.config) == config
