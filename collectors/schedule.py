"""Standing runs: each starts at its cron expression, works within its window, and goes on in the next one.

One process, one event loop, APScheduler for the times. When a run last worked is read from the table's own record, so
that a start that was missed, also by a dead process, is caught up once, and no second state can disagree with it.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from tzlocal import get_localzone

from collectors.config import RunConfig
from collectors.cron import WEEKDAYS, Cron, ScheduleSettings, Window
from collectors.errors import ScheduleMissing
from collectors.progress import RunState
from collectors.run import collect_until
from collectors.stopping import run_until_stopped
from storage.ledgers import RunRecord
from storage.locks import check_free, hold
from storage.table import Table

Say = Callable[[str, str], None]
"""Gets the run's name and a line about it."""

HEARTBEAT_SECONDS = 30.0
"""The clock on the wall is looked at so often: timers do not count the time that a machine was asleep."""
_PROGRESS_SECONDS = 60.0
_UNFINISHED = frozenset({"running", "interrupted"})

# Every error of a run is told by the run's own line; what APScheduler logs of it is a traceback besides.
logging.getLogger("apscheduler").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Standing:
    """One run with its times. `since`: when this process began to stand for it."""

    config: RunConfig
    settings: ScheduleSettings
    window: Window | None
    zone: tzinfo
    since: datetime

    @classmethod
    def of(cls, config: RunConfig) -> "Standing":
        """Raises ScheduleMissing when its file does not say when it starts."""
        settings = config.schedule
        if settings is None:
            raise ScheduleMissing(
                f'{config.name} has no schedule: add [schedule] with cron = "0 22 * * *" to its file, or use '
                "`potstill collect`."
            )
        zone = get_localzone() if settings.timezone is None else ZoneInfo(settings.timezone)
        window = None if settings.window is None else Window.parse(settings.window)
        return cls(config, settings, window, zone, datetime.now(UTC))

    def now(self) -> datetime:
        """The time in the schedule's zone."""
        return datetime.now(self.zone)

    @property
    def cron(self) -> OrTrigger:
        """The times of the cron expression."""
        return OrTrigger(_triggers(Cron.parse(self.settings.cron), self.zone))

    @property
    def starts(self) -> OrTrigger:
        """All times at which a start may be due: those of cron, and each opening of the window."""
        triggers = _triggers(Cron.parse(self.settings.cron), self.zone)
        if self.window is not None:
            opens = self.window.opens
            triggers.append(CronTrigger(hour=opens.hour, minute=opens.minute, timezone=self.zone))
        return OrTrigger(triggers, jitter=self.settings.jitter or None)

    def due(self, record: RunRecord | None, *, new_is_due: bool = False) -> bool:
        """Whether to start now: the window is open, and the run was cut off or cron has called since it last worked.

        A run that never worked is due when cron called since this process began, or at once where `new_is_due`.
        """
        now = self.now()
        if self.window is not None and not self.window.is_open(now):
            return False
        if record is None and new_is_due:
            return True
        if record is not None and record.outcome in _UNFINISHED:
            return True
        called = self.cron.get_next_fire_time(None, self.since if record is None else record.updated_at)
        return called is not None and called <= now

    def next_starts(self, count: int) -> list[datetime]:
        """The next times that cron calls, each moved to where the window opens; jitter comes on top."""
        found: list[datetime] = []
        at = self.now()
        while len(found) < count and (called := self.cron.get_next_fire_time(None, at)) is not None:
            closed = self.window is not None and not self.window.is_open(called)
            start = self.window.next_open(called) if closed and self.window is not None else called
            if start not in found:
                found.append(start)
            at = called + timedelta(seconds=1)
        return found

    def last(self) -> RunRecord | None:
        """The run's own record, None before its first start."""
        if not (self.config.table / "soft_labels").is_dir():
            return None
        runs = Table.open(self.config.table).runs()
        return next((run for run in runs if run.run_id == self.config.run_id), None)


def _triggers(cron: Cron, zone: tzinfo) -> list[CronTrigger]:
    """One trigger, or two where either day is enough; weekdays by name, since APScheduler's 0 is Monday."""
    days = {"day": _listed(cron.days)}
    weekdays = {"day_of_week": None if cron.weekdays is None else ",".join(WEEKDAYS[day] for day in cron.weekdays)}
    clock = {"month": _listed(cron.months), "hour": _listed(cron.hours) or "*", "minute": _listed(cron.minutes) or "*"}
    each = [days, weekdays] if cron.either_day else [days | weekdays]
    return [CronTrigger(**clock, **one, second=0, timezone=zone) for one in each]


def _listed(values: tuple[int, ...] | None) -> str | None:
    return None if values is None else ",".join(map(str, values))


def run_schedule(configs: Sequence[RunConfig], *, once: bool = False, say: Say) -> int:
    """Start the runs at their times until a signal; with `once` only what is due now. → the exit code.

    Ctrl-C and SIGTERM let the runs that are at work drain; a second signal ends them at once. Raises ScheduleMissing,
    and RunHeld when another process stands for one of the runs already.
    """
    standing = [Standing.of(config) for config in configs]
    return run_until_stopped(lambda stop: _Keeper(standing, stop, say).work(once))


class _Keeper:
    """Keeps the times of all runs of this process."""

    def __init__(self, standing: Sequence[Standing], stop: asyncio.Event, say: Say) -> None:
        self._standing = standing
        self._stop = stop
        self._say = say
        self._working: set[asyncio.Task[Any]] = set()

    async def work(self, once: bool) -> int:
        """Until `stop`, or, with `once`, until what is due now has ended."""
        if once:
            return max(await asyncio.gather(*(self._once(one) for one in self._standing)))
        with ExitStack() as stack:
            for one in self._standing:
                folder, run_id = one.config.table / "journal", one.config.run_id
                stack.enter_context(hold(folder / f"{run_id}.schedule.lock", f"{run_id}'s schedule"))
            await self._stand()
        return 0

    async def _stand(self) -> None:
        defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        scheduler = AsyncIOScheduler(timezone=UTC, job_defaults=defaults)
        names = {one.config.run_id: one.config.name for one in self._standing}
        scheduler.add_listener(
            lambda event: self._say(names[event.job_id], "still at work, so this start is left out"),
            EVENT_JOB_MAX_INSTANCES,
        )
        for one in self._standing:
            # The first look is now: what was missed while no process stood is caught up.
            scheduler.add_job(self._tick, one.starts, [one], id=one.config.run_id, next_run_time=one.now())
        scheduler.start()
        try:
            while not self._stop.is_set():
                await self._stopped_within(HEARTBEAT_SECONDS)
                scheduler.wakeup()
            scheduler.pause()
            await asyncio.gather(*self._working, return_exceptions=True)
        finally:
            for task in self._working:
                task.cancel()
            await asyncio.gather(*self._working, return_exceptions=True)
            scheduler.shutdown(wait=False)
            await asyncio.sleep(0)

    async def _tick(self, one: Standing) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._working.add(task)
        try:
            await self._start_if_due(one)
            if not self._stop.is_set():
                self._say(one.config.name, _told_next(one))
        finally:
            self._working.discard(task)

    async def _once(self, one: Standing) -> int:
        check_free(one.config.table / "journal", one.config.run_id)
        if one.settings.jitter and await asyncio.to_thread(self._due, one, True):
            pause = random.uniform(0, one.settings.jitter)
            self._say(one.config.name, f"starts in {pause:.0f} s (jitter)")
            await self._stopped_within(pause)
        code = await self._start_if_due(one, new_is_due=True)
        if code is None:
            self._say(one.config.name, f"not due now; {_told_next(one)}")
        return code or 0

    def _due(self, one: Standing, new_is_due: bool) -> bool:
        return one.due(one.last(), new_is_due=new_is_due)

    async def _start_if_due(self, one: Standing, *, new_is_due: bool = False) -> int | None:
        """Run it when it is due, to its end, its window's, or ours; → its exit code, None when it was not due."""
        name, ended = one.config.name, asyncio.Event()
        closing: asyncio.Task[None] | None = None
        try:
            if self._stop.is_set() or not await asyncio.to_thread(self._due, one, new_is_due):
                return None
            closes = None if one.window is None else one.window.next_close(one.now())
            self._say(name, "starts" if closes is None else f"starts, the window closes at {closes:%H:%M}")
            closing = asyncio.create_task(self._end_in_time(one, closes, ended))
            report = await collect_until(one.config, ended, watcher=_Teller(name, self._say))
        except Exception as error:
            self._say(
                name, str(error) if hasattr(error, "exit_code") else f"unexpected {type(error).__name__}: {error}"
            )
            return int(getattr(error, "exit_code", 1))
        finally:
            if closing is not None:
                closing.cancel()
        drained = report.outcome == "interrupted" and not self._stop.is_set()
        self._say(name, f"{report} The next window goes on." if drained else str(report))
        return 0 if drained else report.exit_code

    async def _end_in_time(self, one: Standing, closes: datetime | None, ended: asyncio.Event) -> None:
        while not self._stop.is_set():
            left = HEARTBEAT_SECONDS if closes is None else closes.timestamp() - one.now().timestamp()
            if left <= 0:
                break
            await self._stopped_within(min(left, HEARTBEAT_SECONDS))
        ended.set()

    async def _stopped_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()


def _told_next(one: Standing) -> str:
    starts = one.next_starts(1)
    return f"next start {starts[0]:%Y-%m-%d %H:%M %Z}" if starts else "no further start"


class _Teller:
    """Tells how a run goes on in a line a minute, as a service's log wants it."""

    def __init__(self, name: str, say: Say) -> None:
        self._name = name
        self._tell = say
        self._last = asyncio.get_running_loop().time()

    def update(self, state: RunState) -> None:
        """A line when a minute has passed."""
        now = asyncio.get_running_loop().time()
        if now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            done = f"{state.done_before + state.committed:,} of {state.planned:,} rows committed"
            self._tell(self._name, state.note or f"{done}, {state.rejected:,} rejects")

    def say(self, line: str) -> None:
        """At once."""
        self._tell(self._name, line)
