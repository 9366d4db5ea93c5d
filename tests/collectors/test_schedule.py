"""Standing runs against a real server, on a clock that is shifted to the time that a test needs."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from apscheduler.schedulers import base

from collectors import schedule as module
from collectors.config import RunConfig
from collectors.errors import ScheduleMissing
from collectors.progress import Silent
from collectors.run import collect, collect_until
from collectors.schedule import Standing, run_schedule
from storage.query import sql
from storage.table import Table
from tests.collectors.runs import run_config, write_prompts, write_run
from tests.collectors.servers import TeacherServer

pytestmark = pytest.mark.usefixtures("short_pauses")
ROOT = Path(__file__).parents[2]
NIGHT = '[schedule]\ncron = "0 22 * * *"\nwindow = "22:00-06:00"\ntimezone = "Europe/Berlin"\n'


class Clock:
    """The true clock, shifted."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def set(self, text: str) -> None:
        self.shift = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")) - datetime.now(UTC)

    def now(self, zone: tzinfo | None = None) -> datetime:
        return datetime.now(zone) + self.shift


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return found.now(tz)

    monkeypatch.setattr(module, "datetime", Shifted)
    monkeypatch.setattr(base, "datetime", Shifted)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    return found


class Process:
    """`schedule` in a thread, with a signal of its own and all that it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *configs: RunConfig, once: bool = False) -> None:
        self.said: list[str] = []
        self.stop: asyncio.Event | None = None
        self.code: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

        def until_stopped(work: Callable[[asyncio.Event], object]) -> object:
            async def run() -> object:
                self.stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
                return await work(self.stop)  # type: ignore[misc]

            return asyncio.run(run())

        monkeypatch.setattr(module, "run_until_stopped", until_stopped)

        def target() -> None:
            self.code = run_schedule(configs, once=once, say=lambda name, line: self.said.append(line))

        self._thread = threading.Thread(target=target, daemon=True)
        self._thread.start()

    def wait_for(self, words: str, seconds: float = 20) -> None:
        wait_for(lambda: any(words in line for line in self.said), seconds, self.said)

    def end(self) -> None:
        assert self._loop is not None and self.stop is not None
        self._loop.call_soon_threadsafe(self.stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


def wait_for(condition: Callable[[], object], seconds: float = 20, said: object = None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, said
        time.sleep(0.02)


def rows(config: RunConfig) -> int:
    return int(
        sql(config.table, "SELECT count(*) AS n, count(DISTINCT key) AS m FROM soft_labels").column("n")[0].as_py()
    )


def last_worked(config: RunConfig, at: datetime) -> None:
    """Let the run's record say that it last worked then."""
    table = Table.open(config.table)
    [run] = table.runs()
    table.save_run(replace(run, updated_at=at))


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer(latency=0.05) as running:
        yield running


def test_a_run_drains_where_its_window_ends_and_goes_on_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, server: TeacherServer
) -> None:
    config = run_config(tmp_path, server.url, prompts=200, concurrency=4, more=NIGHT)
    clock.set("2030-03-01T21:59:59")
    process = Process(monkeypatch, config)
    process.wait_for("starts, the window closes at 06:00")
    wait_for(lambda: len(server.asks) > 60)
    clock.set("2030-03-02T06:00:00")
    process.wait_for("The next window goes on.")
    asked = len(server.asks)
    committed = rows(config)
    assert 0 < committed < 200
    assert "interrupted" in next(line for line in process.said if "next window" in line)
    assert Table.open(config.table).runs()[0].outcome == "interrupted"
    time.sleep(0.5)
    assert len(server.asks) == asked, "nothing is asked outside of the window"
    clock.set("2030-03-02T21:59:59.5")
    process.wait_for(": done in")
    assert rows(config) == 200
    assert sum(n - 1 for n in server.answered.values()) <= 20, "only probes are asked again"
    process.end()
    assert process.code == 0


def test_a_missed_night_is_caught_up_once_also_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, server: TeacherServer
) -> None:
    config = run_config(tmp_path, server.url, prompts=10, more='[schedule]\ncron = "0 22 * * *"\n')
    assert collect(config).outcome == "done"
    write_prompts(tmp_path, 25)  # the source grew meanwhile
    last_worked(config, datetime.now(UTC) - timedelta(days=4))
    process = Process(monkeypatch, config)
    process.wait_for(": done in")
    assert rows(config) == 25
    process.wait_for("next start")
    process.end()
    assert sum(line == "starts" for line in process.said) == 1, "four missed nights are one start"
    before = len(server.asks)
    again = Process(monkeypatch, config)
    again.wait_for("next start")
    again.end()
    assert len(server.asks) == before
    assert "starts" not in again.said


def test_a_run_that_never_worked_waits_for_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, server: TeacherServer
) -> None:
    config = run_config(
        tmp_path, server.url, prompts=5, more='[schedule]\ncron = "0 22 * * *"\ntimezone = "Europe/Berlin"\n'
    )
    clock.set("2030-03-01T21:59:57")
    process = Process(monkeypatch, config)
    process.wait_for("next start 2030-03-01 22:00 CET")
    assert not server.asks
    process.wait_for(": done in")
    process.wait_for("next start 2030-03-02 22:00 CET")
    process.end()
    assert rows(config) == 5


def test_once_starts_what_is_due_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, server: TeacherServer
) -> None:
    config = run_config(tmp_path, server.url, prompts=5, more=NIGHT)
    clock.set("2030-03-01T12:00:00")
    early = Process(monkeypatch, config, once=True)
    early.wait_for("not due now; next start 2030-03-01 22:00 CET")
    assert not server.headers
    clock.set("2030-03-01T22:00:01")
    Process(monkeypatch, config, once=True).wait_for(": done in")
    assert rows(config) == 5


def test_the_error_of_one_run_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, server: TeacherServer
) -> None:
    always = '[schedule]\ncron = "* * * * *"\n'
    dead = run_config(tmp_path / "dead", "http://127.0.0.1:9", more=always)
    well = run_config(tmp_path / "well", server.url, prompts=5, more=always)
    process = Process(monkeypatch, dead, well, once=True)
    process.wait_for("127.0.0.1:9")
    process.wait_for(": done in")
    wait_for(lambda: process.code is not None)
    assert process.code == 1


def test_a_stop_before_anything_was_planned_is_not_the_runs_end(tmp_path: Path, server: TeacherServer) -> None:
    config = run_config(tmp_path, server.url, prompts=5)

    async def stopped() -> str:
        stop = asyncio.Event()
        stop.set()
        return (await collect_until(config, stop, watcher=Silent())).outcome

    assert asyncio.run(stopped()) == "interrupted"
    assert collect(config).committed == 5
    assert asyncio.run(stopped()) == "nothing to do"


def test_due_follows_the_record(tmp_path: Path, clock: Clock, server: TeacherServer) -> None:
    config = run_config(tmp_path, server.url, prompts=2, more=NIGHT)
    collect(config)
    [run] = Table.open(config.table).runs()
    clock.set("2030-03-01T23:00:00")
    one = Standing.of(config)
    tonight = datetime(2030, 3, 1, 21, 30, tzinfo=UTC)  # 22:30 in Berlin
    assert not one.due(None)
    assert one.due(None, new_is_due=True)
    assert not one.due(replace(run, updated_at=tonight))
    assert one.due(replace(run, updated_at=tonight - timedelta(hours=1)))
    assert one.due(replace(run, updated_at=tonight, outcome="running"))
    assert not one.due(replace(run, updated_at=tonight, outcome="budget"))
    clock.set("2030-03-02T06:00:00")
    assert not one.due(replace(run, updated_at=tonight, outcome="interrupted"))


def test_days_and_weekdays_are_those_of_cron(tmp_path: Path, clock: Clock) -> None:
    clock.set("2026-11-24T12:00:00")  # a Tuesday
    more = '[schedule]\ncron = "0 1 1 * 0"\ntimezone = "Europe/Berlin"\n'
    starts = Standing.of(run_config(tmp_path, more=more)).next_starts(3)
    assert [f"{start:%a %d}" for start in starts] == ["Sun 29", "Tue 01", "Sun 06"]


def test_a_run_without_a_schedule_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(ScheduleMissing, match=r"\[schedule\]"):
        run_schedule([run_config(tmp_path)], say=lambda name, line: None)


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "potstill", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_sigterm_drains_and_a_second_start_is_told_who_has_the_run(tmp_path: Path, server: TeacherServer) -> None:
    run = write_run(tmp_path, server.url, prompts=5000, concurrency=4, more='[schedule]\ncron = "* * * * *"\n')
    server.latency = 0.1
    once = start("schedule", str(run), "--once")
    wait_for(lambda: len(server.asks) > 60)
    seconds = []
    while not seconds or (min(seconds) >= 1 and len(seconds) < 4):  # other processes may slow either of the two
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import collectors.cli, collectors.schedule"], cwd=ROOT, check=True)
        usual = time.monotonic() - began
        second = start("schedule", str(run), "--once")
        _, errors = second.communicate(timeout=30)
        seconds.append(time.monotonic() - began - 2 * usual)
        assert second.returncode == 75, errors
        assert str(once.pid) in errors
    assert min(seconds) < 1
    standing = start("schedule", str(run))
    assert standing.stderr is not None
    wait_for(lambda: "already running" in standing.stderr.readline())  # type: ignore[union-attr]
    other = start("schedule", str(run))
    _, errors = other.communicate(timeout=30)
    assert (other.returncode, str(standing.pid) in errors) == (75, True), errors
    for process, code in ((once, 130), (standing, 0)):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == code, errors
        assert "Traceback" not in errors
    assert not list((tmp_path / "table" / "journal").iterdir())
