"""When the next request may go to an endpoint: its allowances, and the pauses that all its tasks share.

A refusal (429, 503, or failures in a row) pauses the whole endpoint; then a single request tries it, and the others
follow only when that one was answered. So a lowered limit costs one burst of refusals, those in flight, and a dead
server is asked once per pause. The time is the event loop's, so that a test can let it run ahead.
"""

import asyncio
from dataclasses import dataclass

from collectors.allowance import Allowance, Booking
from collectors.errors import EndpointStopped

# An endpoint that answers nothing for so long, over at least so many tries, is given up; the run resumes another day.
# One that never answered in this run is more likely misspelt than ill: it gets the tries alone.
PATIENCE_SECONDS = 900.0
PATIENCE_TRIES = 4
_FAILURES_IN_A_ROW = 5
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
_RECOVER_SECONDS = 300.0


@dataclass(slots=True)
class Grant:
    """The leave to send one request; it is settled by the tokens that the request took."""

    tokens: Booking | None
    trial: bool


class EndpointLimit:
    """The allowances of one endpoint, its pauses, and its patience.

    requests_per_minute, tokens_per_minute: what the endpoint allows; None is no limit.
    """

    def __init__(self, *, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._requests = None if requests_per_minute is None else Allowance(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else Allowance(tokens_per_minute)
        self._allowed = requests_per_minute
        self._resume_at = 0.0
        self._slowed_at: float | None = None
        self._trial_runs = False
        self._doubtful = False
        self._ever_answered = False
        self._failures = 0
        self._tries = 0
        self._silent_since: float | None = None
        self._closed: EndpointStopped | None = None
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    async def acquire(self, tokens: float) -> Grant:
        """Wait for the turn of one request of about so many tokens; the turns are first come, first served.

        Raises EndpointStopped when the endpoint was given up meanwhile.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            while (wait := self._wait(tokens, loop.time())) > 0:
                self._changed.clear()
                try:
                    async with asyncio.timeout(None if wait == float("inf") else wait):
                        await self._changed.wait()
                except TimeoutError:
                    continue
            if self._closed is not None:
                raise EndpointStopped(str(self._closed))
            now = loop.time()
            if self._requests is not None:
                self._requests.take(1.0, now)
            if self._doubtful:
                self._trial_runs = True
            return Grant(None if self._tokens is None else self._tokens.take(tokens, now), self._doubtful)

    def book(self, requests: int) -> None:
        """Requests were made past this limit: those that it grants wait for them."""
        if self._requests is not None and requests:
            self._requests.take(requests, asyncio.get_running_loop().time())

    def _wait(self, tokens: float, now: float) -> float:
        if self._closed is not None:
            return 0.0
        if self._trial_runs:
            return float("inf")
        self._recover(now)
        waits = [self._resume_at - now]
        if self._requests is not None:
            waits.append(self._requests.wait(1.0, now))
        if self._tokens is not None:
            waits.append(self._tokens.wait(tokens, now))
        return max(waits)

    def settle(self, grant: Grant, tokens: float) -> None:
        """Say how many tokens a request really took; whoever waits looks again."""
        if self._tokens is not None and grant.tokens is not None:
            self._tokens.settle(grant.tokens, tokens)
            self._changed.set()

    def answered(self, grant: Grant) -> None:
        """The endpoint answered in earnest: it is well, and a trial is over."""
        self._failures = self._tries = 0
        self._silent_since = None
        self._ever_answered = True
        if grant.trial:
            self._doubtful = False
            self._end_trial()

    def withdrawn(self, grant: Grant) -> None:
        """The request was given up by this side: it says nothing of the endpoint, and another may try it."""
        if grant.trial:
            self._end_trial()

    def failed(self, grant: Grant, reason: str) -> None:
        """No answer, or a server error: a pause after several in a row, at once when it was a trial.

        Raises EndpointStopped when the patience is at its end.
        """
        self._failures += 1
        if grant.trial or self._failures >= _FAILURES_IN_A_ROW:
            self._pause(grant, None, reason)

    def refused(self, grant: Grant, retry_after: float | None, reason: str) -> None:
        """429 or 503: a pause of `retry_after` seconds, or one that doubles; the pace is halved once per pause.

        Raises EndpointStopped when the patience is at its end.
        """
        now = asyncio.get_running_loop().time()
        if not self._doubtful and self._requests is not None:
            self._requests.per_minute = max(1.0, self._requests.per_minute / 2)
        self._slowed_at = now
        self._pause(grant, retry_after, reason)

    def _pause(self, grant: Grant, retry_after: float | None, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if grant.trial or not self._doubtful:
            self._tries += 1
        self._doubtful = True
        self._silent_since = now if self._silent_since is None else self._silent_since
        if grant.trial:
            self._end_trial()
        silence = now - self._silent_since
        if self._tries >= PATIENCE_TRIES and (silence > PATIENCE_SECONDS or not self._ever_answered):
            raise EndpointStopped(
                f"The endpoint has answered nothing for {silence:.0f} s over {self._tries} tries: {reason} "
                "Run the same command again when it is well; nothing is lost."
            )
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._tries - 1, 10))
        self._resume_at = max(self._resume_at, now + (pause if retry_after is None else retry_after))

    def _end_trial(self) -> None:
        self._trial_runs = False
        self._changed.set()

    def exhausted(self, seconds: float) -> None:
        """The server says that its allowance is used up for so long: no request starts before, none is refused."""
        self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + seconds)

    def allow(self, requests_per_minute: float) -> None:
        """The server named its limit: never go above it, nor above the run's own."""
        if self._requests is None:
            self._requests = Allowance(requests_per_minute)
            self._allowed = requests_per_minute
        elif self._allowed is not None and requests_per_minute < self._allowed:
            self._allowed = requests_per_minute
            self._requests.per_minute = min(self._requests.per_minute, requests_per_minute)

    def close(self, reason: EndpointStopped) -> None:
        """The endpoint is given up: whoever waits for it is told why."""
        self._closed = reason
        self._changed.set()

    def _recover(self, now: float) -> None:
        """Without refusals the pace grows back by a twentieth every five minutes."""
        if self._slowed_at is None or self._requests is None or self._allowed is None:
            return
        if now >= max(self._slowed_at, self._resume_at) + _RECOVER_SECONDS:
            self._requests.per_minute = min(self._allowed, self._requests.per_minute * 1.05)
            self._slowed_at = now if self._requests.per_minute < self._allowed else None
