"""A server's wrongs over the time of a whole run: storms, pauses, deaths, refusals, a full disk. Each fault for itself
is in test_fault_matrix.py."""

import subprocess
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from collectors.config import RunConfig
from collectors.errors import EndpointStopped
from collectors.report import RunReport
from collectors.run import collect
from storage.errors import DiskFull
from storage.query import sql
from tests.collectors.runs import run_config
from tests.collectors.servers import Ask, TeacherServer

pytestmark = pytest.mark.usefixtures("short_pauses")
PROMPTS = 100
ATTEMPTS = 6
CONCURRENCY = 8


class Faulty:
    """Does one of `faults` to every second prompt, in turn, at its first try."""

    def __init__(self, *faults: str) -> None:
        self.victims = {n: faults[n // 2 % len(faults)] for n in range(0, PROMPTS, 2)}

    def __call__(self, ask: Ask) -> str | None:
        return self.victims.get(ask.prompt_number or 0) if ask.attempt == 1 and ask.prompt_number is not None else None


def collected(folder: Path, server: TeacherServer, *, timeout: float = 300.0) -> tuple[RunConfig, RunReport]:
    config = run_config(folder, server.url, prompts=PROMPTS, attempts=ATTEMPTS, concurrency=CONCURRENCY)
    config = config.model_copy(update={"endpoint": config.pool[0].model_copy(update={"timeout_seconds": timeout})})
    return config, collect(config)


def stored(config: RunConfig) -> set[str]:
    found = sql(config.table, "SELECT prompt_id FROM soft_labels").column("prompt_id").to_pylist()
    assert len(found) == len(set(found))
    return set(found)


def rejects(config: RunConfig) -> list[dict[str, Any]]:
    return sql(config.table, "SELECT * FROM rejects").to_pylist()


def most_tries(server: TeacherServer) -> int:
    return max(Counter(ask.prompt_number for ask in server.asks if ask.prompt_number is not None).values())


TRANSIENT = ["reset", "truncate", "truncate-chunked", "truncate-unsized", "stall", "http-429", "http-429-0",
             "http-busy", "redirect"]  # fmt: skip


def test_after_all_transient_faults_together_everything_is_stored(tmp_path: Path) -> None:
    with TeacherServer(Faulty(*TRANSIENT)) as server:
        config, report = collected(tmp_path, server, timeout=1.0)
    assert (report.outcome, report.rejected) == ("done", 0), report
    assert stored(config) == {f"p{n}" for n in range(PROMPTS)}
    assert most_tries(server) == 2


def test_a_small_body_that_unpacks_to_a_huge_one_is_a_reject(tmp_path: Path) -> None:
    with TeacherServer(lambda ask: "gzip-bomb" if ask.prompt_number == 3 else None) as server:
        config, _ = collected(tmp_path, server)
    (reject,) = rejects(config)
    assert (reject["prompt_id"], reject["reason"]) == ("p3", "body_too_large")
    assert 0 < len(reject["raw"]) < 100_000


def test_a_huge_answer_is_stored(tmp_path: Path) -> None:
    with TeacherServer(lambda ask: "huge" if ask.prompt_number == 4 else None) as server:
        config, report = collected(tmp_path, server)
    assert report.outcome == "done"
    assert len(stored(config)) == PROMPTS


def test_a_row_that_kills_the_engine_is_set_aside_after_two_deaths(tmp_path: Path) -> None:
    with TeacherServer(lambda ask: "die" if ask.prompt_number == 7 else None, latency=0.01) as server:
        config, report = collected(tmp_path, server)
        deaths = sum(ask.prompt_number == 7 for ask in server.asks)
    assert deaths == 2
    assert stored(config) == {f"p{n}" for n in range(PROMPTS) if n != 7}
    (reject,) = rejects(config)
    assert (reject["prompt_id"], reject["reason"]) == ("p7", "poison")
    assert report.exit_code == 4


def test_a_row_that_the_engine_always_fails_on_does_not_stop_the_others(tmp_path: Path) -> None:
    with TeacherServer(lambda ask: "http-500" if ask.prompt_number == 7 else None, latency=0.02) as server:
        config, _ = collected(tmp_path, server)
    (reject,) = rejects(config)
    assert (reject["prompt_id"], reject["reason"], reject["status"]) == ("p7", "poison", 500)
    assert most_tries(server) == ATTEMPTS
    assert len(stored(config)) == PROMPTS - 1


def test_a_storm_of_errors_is_sat_out(tmp_path: Path) -> None:
    began: list[float] = []

    def storm(ask: Ask) -> str | None:
        if ask.number > 40:
            began.append(ask.at)
            return "http-503" if ask.at < began[0] + 0.7 else None
        return None

    with TeacherServer(storm) as server:
        config, report = collected(tmp_path, server)
    assert report.outcome == "done"
    assert len(stored(config)) == PROMPTS


def test_retry_after_is_heeded_by_all_tasks(tmp_path: Path) -> None:
    def once(ask: Ask) -> str | None:
        return "http-429-1" if ask.attempt == 1 and ask.prompt_number == 50 else None

    with TeacherServer(once, latency=0.05) as server:
        _, report = collected(tmp_path, server)
        times = [ask.at for ask in server.asks]
        refused = next(ask.at for ask in server.asks if ask.prompt_number == 50)
    assert report.outcome == "done"
    gap, began = max((later - earlier, earlier) for earlier, later in pairwise(times))
    assert gap >= 0.9
    assert sum(refused < time <= began for time in times) < 2 * CONCURRENCY  # those on their way


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_client_stops_at_once_and_what_came_is_kept(tmp_path: Path, status: int) -> None:
    broken = [True]
    with TeacherServer(lambda ask: f"http-{status}" if broken[0] and ask.number > 60 else None) as server:
        config = run_config(tmp_path, server.url, prompts=PROMPTS)
        with pytest.raises(EndpointStopped, match=str(status)):
            collect(config)
        kept = len(stored(config))
        assert 20 < kept < PROMPTS
        assert sum(ask.number > 60 for ask in server.asks) <= config.limits.concurrency  # type: ignore[operator]
        broken[0] = False
        report = collect(config)
    assert report.outcome == "done"
    assert report.committed == PROMPTS - kept
    assert len(stored(config)) == PROMPTS


def test_a_server_that_goes_away_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    gone = [True]
    with TeacherServer(lambda ask: "reset" if gone[0] and ask.number > 40 else None) as server:
        config = run_config(tmp_path, server.url, prompts=35)
        limits = config.limits.model_copy(update={"attempts": 2})
        report = collect(config.model_copy(update={"limits": limits}))
        assert (report.outcome, report.exit_code) == ("part", 4)
        assert report.unanswered
        gone[0] = False
        assert collect(config).outcome == "done"
    assert len(stored(config)) == 35
    assert not rejects(config)


def test_a_full_disk_is_one_sentence_and_nothing_committed_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with TeacherServer(lambda ask: "huge" if 5 < (ask.prompt_number or 0) < 9 else None) as server:
            config = run_config(tmp_path, server.url, prompts=PROMPTS)
            config = config.model_copy(update={"table": folder / "table"})
            collect(config, limit=5)
            with pytest.raises(DiskFull, match="space") as caught:
                collect(config)
            assert "\n" not in str(caught.value)
            assert len(stored(config)) >= 5
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            server.fault = lambda ask: None
            collect(config)
            assert len(stored(config)) == PROMPTS
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
