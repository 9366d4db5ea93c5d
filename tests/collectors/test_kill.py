"""A `collect` in a process of its own, killed or stopped at any moment, and started again.

The long version with 200 kills is benchmarks/collect_kills.py.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from collectors.config import read_run
from storage.query import sql
from tests.collectors.killed_child import POINTS
from tests.collectors.killing import KilledRun, rejected
from tests.collectors.runs import write_run
from tests.collectors.servers import Ask, TeacherServer

ROOT = Path(__file__).parents[2]
PROMPTS = 150
CONCURRENCY = 16


def start(run: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "potstill", "collect", str(run), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def finish(run: Path) -> tuple[int, str]:
    process = start(run)
    out, errors = process.communicate(timeout=120)
    return process.returncode, out + errors


def keys(run: Path) -> list[str]:
    return sql(read_run(run).table, "SELECT key FROM soft_labels").column("key").to_pylist()  # type: ignore[no-any-return]


def answers_to_prompts(server: TeacherServer) -> "Counter[tuple[tuple[int, ...], int]]":
    """Whole answers by prompt and seed, without those to the probe's prompt."""
    answered = server.answered.copy()  # at once: the server's thread goes on counting
    return Counter({name: n for name, n in answered.items() if len(name[0]) < 13 and name[1] != 7})


def wait_for(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def slowed(server: TeacherServer, asks: int, latency: float) -> None:
    """From so many requests on each takes so long: however late a signal comes, the run is still going."""

    def slow_down(ask: Ask) -> None:
        if ask.number >= asks:
            server.latency = latency

    server.fault = slow_down


@pytest.mark.timeout(900)
def test_a_kill_at_any_point_loses_nothing_doubles_nothing_and_costs_at_most_what_was_in_flight(tmp_path: Path) -> None:
    chance = random.Random(3)
    with TeacherServer(rejected, latency=0.1) as server:
        run = KilledRun(tmp_path, server, prompts=600)
        for point in POINTS:
            run.kill_at(point, chance)
        for _ in range(5):
            run.kill_at_random(chance)
        run.finish()
        assert run.kills == dict.fromkeys(POINTS, 1) | {"at random": 5}
        run.check()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with TeacherServer() as server:
        run = write_run(folder, server.url, prompts=PROMPTS, concurrency=CONCURRENCY)
        code, said = finish(run)
        assert code == 0, said
    return set(keys(run))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_those_in_flight_finish_and_nothing_is_asked_twice(
    tmp_path: Path, undisturbed: set[str], number: signal.Signals
) -> None:
    with TeacherServer(latency=0.05) as server:
        slowed(server, 60, 0.8)
        run = write_run(tmp_path, server.url, prompts=PROMPTS, concurrency=CONCURRENCY)
        process = start(run)
        wait_for(lambda: sum(answers_to_prompts(server).values()) > 30)
        began = time.monotonic()
        process.send_signal(number)
        out, errors = process.communicate(timeout=30)
        assert process.returncode == 130, errors
        assert time.monotonic() - began < 10
        assert "interrupted" in out
        assert "Traceback" not in errors
        committed = len(keys(run))
        assert committed == sum(answers_to_prompts(server).values()) < PROMPTS
        code, said = finish(run)
        assert code == 0, said
        assert max(answers_to_prompts(server).values()) == 1
    assert set(keys(run)) == undisturbed


def test_a_second_signal_ends_at_once_and_what_was_received_is_kept(tmp_path: Path) -> None:
    with TeacherServer(latency=0.05) as server:
        slowed(server, 50, 20.0)
        run = write_run(tmp_path, server.url, prompts=PROMPTS, concurrency=4)
        process = start(run)
        wait_for(lambda: sum(answers_to_prompts(server).values()) > 20 and server.latency == 20.0)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert time.monotonic() - began < 5
        assert "Traceback" not in errors
        assert len(keys(run)) > 10


def test_the_same_run_started_twice_exits_75_within_a_second_and_names_the_holder(tmp_path: Path) -> None:
    with TeacherServer() as server:
        slowed(server, 40, 60.0)
        run = write_run(tmp_path, server.url, prompts=PROMPTS, concurrency=4)
        first = start(run)
        wait_for(lambda: sum(answers_to_prompts(server).values()) > 3)
        beyond = []
        for _ in range(3):
            usual, busy = _seconds([sys.executable, "-c", "import collectors.run"])
            began = time.monotonic()
            second = start(run)
            _, errors = second.communicate(timeout=60)
            beyond.append((time.monotonic() - began - usual) / max(1.0, usual / busy))
            assert second.returncode == 75
            assert str(first.pid) in errors
        assert min(beyond) < 1.0  # beyond the imports, in seconds of a processor that has nothing else to do
        first.kill()
        first.wait()


def _seconds(command: list[str]) -> tuple[float, float]:
    """How long a command takes, and how much of that it has a processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
