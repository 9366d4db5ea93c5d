"""When a standing run starts: a cron expression as sets of numbers, and a daily window. Pure: whatever fires at these
times (APScheduler, systemd, cron, Kubernetes, Airflow) is told in its own words elsewhere.

The numbers are those of crontab(5): Sunday is 0, and where both days are given either of them is enough.
"""

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field
from pydantic import field_validator as check_field

from policies.settings import Settings

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NICKNAMES = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *"}
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_PART = re.compile(r"(?:(?P<all>\*)|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d+))?")
_WINDOW = re.compile(r"(\d\d:\d\d)-(\d\d:\d\d)")
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True)
class Cron:
    """The minutes, hours, days of the month, months and weekdays of an expression; None where it says `*`."""

    text: str
    minutes: tuple[int, ...] | None
    hours: tuple[int, ...] | None
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None

    @classmethod
    def parse(cls, expression: str) -> "Cron":
        """Five fields, or @hourly, @daily, @weekly, @monthly. Raises ValueError that names the field."""
        text = " ".join(_NICKNAMES.get(expression.strip().lower(), expression).split())
        words = text.lower().split()
        if len(words) != len(_FIELDS):
            raise ValueError(f"a cron expression has five fields, such as 0 22 * * *; {expression!r} has {len(words)}")
        values = [_field(word, *field) for word, field in zip(words, _FIELDS, strict=True)]
        if values[4] is not None:
            values[4] = tuple(sorted({day % 7 for day in values[4]}))
        found = cls(text, *values)
        if found.either_day and "*" in words[2] + words[4]:  # cron's implementations disagree about this one
            raise ValueError(f"{expression!r} has steps of days beside weekdays: name the days")
        if found.days and found.weekdays is None:
            longest = max(_LONGEST_MONTHS[month - 1] for month in found.months or range(1, 13))
            if min(found.days) > longest:
                raise ValueError(f"{expression!r} names a day that none of its months has")
        return found

    @property
    def either_day(self) -> bool:
        """Whether days of the month and weekdays are both given: then either is enough."""
        return self.days is not None and self.weekdays is not None


def _field(word: str, name: str, low: int, high: int) -> tuple[int, ...] | None:
    if word == "*":
        return None
    values: set[int] = set()
    for part in word.split(","):
        found = _PART.fullmatch(part)
        step = int((found and found["step"]) or 1)
        if found is None or step == 0:
            raise ValueError(f"{part!r} is no {name} of a cron expression")
        first, last = low, high
        if not found["all"]:
            first = _number(found["first"], name)
            last = _number(found["last"], name) if found["last"] else high if found["step"] else first
        if not low <= first <= last <= high:
            raise ValueError(f"{part!r} is no {name} of a cron expression: it goes from {low} to {high}")
        values.update(range(first, last + 1, step))
    return tuple(sorted(values))


def _number(word: str, name: str) -> int:
    names = {"month": MONTHS, "weekday": WEEKDAYS}.get(name, ())
    if word in names:
        return names.index(word) + (name == "month")
    if not word.isdecimal():
        raise ValueError(f"{word!r} is no {name} of a cron expression")
    return int(word)


@dataclass(frozen=True, slots=True)
class Window:
    """The hours of a day in which a run may be at work; over midnight where it ends before it opens."""

    opens: time
    closes: time

    @classmethod
    def parse(cls, text: str) -> "Window":
        """From HH:MM-HH:MM. Raises ValueError."""
        found = _WINDOW.fullmatch(text.strip())
        try:
            first, last = (time.fromisoformat(clock) for clock in found.groups()) if found else (time.min, time.min)
        except ValueError:
            first = last = time.min
        if first == last:
            raise ValueError(f"a window is two different times of day, such as 22:00-06:00, not {text!r}")
        return cls(first, last)

    def __str__(self) -> str:
        return f"{self.opens:%H:%M}-{self.closes:%H:%M}"

    def is_open(self, at: datetime) -> bool:
        """Whether a run may be at work at that time, given in the schedule's time zone."""
        now = at.time()
        if self.opens < self.closes:
            return self.opens <= now < self.closes
        return now >= self.opens or now < self.closes

    def next_close(self, at: datetime) -> datetime:
        """When it closes after `at`, in the time zone of `at`."""
        return _next(self.closes, at)

    def next_open(self, at: datetime) -> datetime:
        """When it opens after `at`, in the time zone of `at`."""
        return _next(self.opens, at)


def _next(clock: time, at: datetime) -> datetime:
    """The next such time of day: by the clock on the wall, also over a change of summer time."""
    zone: tzinfo | None = at.tzinfo
    day = at.date()
    while (found := datetime.combine(day, clock, zone)) <= at:
        day += timedelta(days=1)
    return found


class ScheduleSettings(Settings):
    """When `potstill schedule` starts the run: at `cron`, up to `jitter` seconds later, and only within `window`.

    timezone: of both, such as "Europe/Berlin"; by default the machine's own.
    """

    cron: str
    window: str | None = None
    jitter: float = Field(default=0.0, ge=0, le=86_400)
    timezone: str | None = None

    @check_field("cron")
    @classmethod
    def _check_cron(cls, text: str) -> str:
        return Cron.parse(text).text

    @check_field("window")
    @classmethod
    def _check_window(cls, text: str | None) -> str | None:
        return None if text is None else str(Window.parse(text))

    @check_field("timezone")
    @classmethod
    def _check_timezone(cls, name: str | None) -> str | None:
        try:
            return None if name is None else ZoneInfo(name).key
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is no time zone, such as Europe/Berlin") from error
