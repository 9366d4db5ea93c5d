from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from collectors.cron import Cron, ScheduleSettings, Window

BERLIN = ZoneInfo("Europe/Berlin")


def test_an_expression_is_sets_of_numbers_as_crontab_means_them() -> None:
    found = Cron.parse("*/20 22,23 1-3 jan,12 7")
    assert (found.minutes, found.hours, found.days) == ((0, 20, 40), (22, 23), (1, 2, 3))
    assert (found.months, found.weekdays, found.either_day) == ((1, 12), (0,), True)
    assert Cron.parse("@daily") == Cron.parse("0  0 * *  *")
    assert Cron.parse("5/30 * * * mon-fri").minutes == (5, 35)
    assert Cron.parse("5/30 * * * mon-fri").weekdays == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0 22 * *", "five fields"),
        ("60 * * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 0 0 * *", "day"),
        ("0 0 * foo *", "month"),
        ("0 0 * * fri-mon", "weekday"),
        ("*/0 * * * *", "minute"),
        ("0 0 30 2 *", "none of its months"),
        ("0 0 */2 * mon", "name the days"),
    ],
)
def test_what_is_no_expression_is_told_by_its_field(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ScheduleSettings(cron=text)


def test_a_window_may_go_over_midnight() -> None:
    night, day = Window.parse("22:00-06:00"), Window.parse("09:30-17:00")
    late, early, noon = (datetime(2026, 11, 24, hour, 0, tzinfo=BERLIN) for hour in (23, 5, 12))
    assert [night.is_open(at) for at in (late, early, noon)] == [True, True, False]
    assert [day.is_open(at) for at in (late, early, noon)] == [False, False, True]
    assert not night.is_open(early.replace(hour=6))
    assert night.next_close(late) == datetime(2026, 11, 25, 6, 0, tzinfo=BERLIN)
    assert night.next_close(early) == datetime(2026, 11, 24, 6, 0, tzinfo=BERLIN)
    assert night.next_open(late) == datetime(2026, 11, 25, 22, 0, tzinfo=BERLIN)


def test_a_window_keeps_to_the_wall_clock_over_a_change_of_summer_time() -> None:
    before = datetime(2026, 10, 24, 23, 0, tzinfo=BERLIN)  # the clocks go back in this night
    closes = Window.parse("22:00-06:00").next_close(before)
    assert (closes.timestamp() - before.timestamp()) / 3600 == 8


@pytest.mark.parametrize("text", ["22:00", "22:00-22:00", "25:00-06:00", "22-6", "night"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="window"):
        ScheduleSettings(cron="@daily", window=text)


def test_a_time_zone_must_exist() -> None:
    with pytest.raises(ValueError, match="Europe/Berlin"):
        ScheduleSettings(cron="@daily", timezone="Europe/Bärlin")
