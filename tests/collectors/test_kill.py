"""A `collect` in a process of its own, killed or stopped at any moment, and started again."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from collectors.config import read_run
from storage.query import sql
from tests.collectors.runs import write_run
from tests.collectors.servers import TeacherServer

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
    return Counter({name: n for name, n in server.answered.items() if len(name[0]) < 13 and name[1] != 7})


def wait_for(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with TeacherServer() as server:
        run = write_run(folder, server.url, prompts=PROMPTS, concurrency=CONCURRENCY)
        code, said = finish(run)
        assert code == 0, said
    return set(keys(run))


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_and_resumed_the_keys_are_the_same_and_at_most_those_in_flight_are_asked_again(
    tmp_path: Path, undisturbed: set[str], seed: int
) -> None:
    chance = random.Random(seed)
    kills = 0
    with TeacherServer(latency=0.02) as server:
        run = write_run(tmp_path, server.url, prompts=PROMPTS, concurrency=CONCURRENCY)
        for _ in range(2):
            process = start(run)
            goal = sum(answers_to_prompts(server).values()) + chance.randrange(1, 60)
            wait_for(lambda p=process, g=goal: p.poll() is not None or sum(answers_to_prompts(server).values()) >= g)
            time.sleep(chance.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        code, said = finish(run)
        assert code == 0, said
        answered = answers_to_prompts(server)
    found = keys(run)
    assert len(found) == len(set(found))
    assert set(found) == undisturbed
    assert len(answered) == PROMPTS
    assert sum(answered.values()) - PROMPTS <= kills * CONCURRENCY
    assert not list((tmp_path / "table" / "journal").glob("*.sqlite"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_those_in_flight_finish_and_nothing_is_asked_twice(
    tmp_path: Path, undisturbed: set[str], number: signal.Signals
) -> None:
    with TeacherServer(latency=0.1) as server:
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
        run = write_run(tmp_path, server.url, prompts=PROMPTS, concurrency=4)
        process = start(run)
        wait_for(lambda: sum(answers_to_prompts(server).values()) > 20)
        server.latency = 20.0
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
    with TeacherServer(latency=1.0) as server:
        run = write_run(tmp_path, server.url, prompts=PROMPTS, concurrency=4)
        first = start(run)
        wait_for(lambda: sum(answers_to_prompts(server).values()) > 3)
        usual = min(_seconds([sys.executable, "-c", "import collectors.run"]) for _ in range(2))
        began = time.monotonic()
        second = start(run)
        _, errors = second.communicate(timeout=30)
        seconds = time.monotonic() - began
        assert second.returncode == 75
        assert str(first.pid) in errors
        assert seconds - usual < 1.0
        first.kill()
        first.wait()


def _seconds(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    return time.monotonic() - began
