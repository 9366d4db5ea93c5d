"""An allowance per minute: requests or tokens, in any sliding minute.

Requests are spaced evenly and also counted over the last minute: the spacing keeps servers that watch shorter windows
content, the count makes the allowance exact. The time is the event loop's, so that a test can let it run ahead.
"""

from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
# How far a late start may be caught up by closer spacing: half a percent of a minute, of the one percent tolerated.
_CATCH_UP_SECONDS = 0.3


@dataclass(slots=True)
class Booking:
    """An amount that was taken at a time of the event loop."""

    at: float
    amount: float


class Allowance:
    """So many units in any sliding minute, spread evenly.

    `wait` says how long until the next amount fits, `take` books it, `settle` corrects the booking when the true amount
    is known. An amount over the whole allowance fits when the last minute is empty: refusing it would stop the run.
    """

    def __init__(self, per_minute: float) -> None:
        self.per_minute = float(per_minute)
        self._entries: deque[Booking] = deque()
        self._used = 0.0
        self._next_at = 0.0

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` fits."""
        while self._entries and self._entries[0].at <= now - WINDOW_SECONDS:
            self._used -= self._entries.popleft().amount
        pace = self._next_at - now
        # The sum is of floats: a millionth of a unit is not over the limit.
        excess = self._used + amount - self.per_minute - 1e-6
        if excess <= 0 or not self._entries:
            return max(0.0, pace)
        freed = 0.0
        for entry in self._entries:
            freed += entry.amount
            if freed >= excess:
                return max(0.0, pace, entry.at + WINDOW_SECONDS - now)
        return max(0.0, pace, self._entries[-1].at + WINDOW_SECONDS - now)

    def take(self, amount: float, now: float) -> Booking:
        """Book an amount that `wait` let pass."""
        entry = Booking(now, amount)
        self._entries.append(entry)
        self._used += amount
        self._next_at = max(self._next_at, now - _CATCH_UP_SECONDS) + amount * WINDOW_SECONDS / self.per_minute
        return entry

    def settle(self, entry: Booking, amount: float) -> None:
        """Replace the estimate that was booked by the true amount."""
        change = amount - entry.amount
        self._next_at += change * WINDOW_SECONDS / self.per_minute
        if self._entries and entry.at >= self._entries[0].at:
            self._used += change
        entry.amount = amount
