"""How many requests may be in flight at one endpoint: a fixed number, or one that finds its own way.

Adaptive starts low and doubles while that brings more tokens per second: a server that only queues shows no refusals,
so throughput is the measure, and its own count of what waits, where it has one. A refusal halves it. The trade-off: it
needs some dozens of answers to settle.
"""

import asyncio
from collections import deque
from types import TracebackType
from typing import Literal, Self

_FIRST = 4
_MOST = 512
# A step up must bring a twentieth more tokens per second, or it only makes the server's queue longer.
_WORTH_IT = 1.05
_ROUNDS_BETWEEN_TRIES = 8
_ANSWERS_PER_SLOT = 3


class Slots:
    """Lets so many tasks in at a time (`async with`).

    `answered`, `queued` and `refused` tell an adaptive one how it goes.
    """

    def __init__(self, concurrency: int | Literal["adaptive"]) -> None:
        self.adaptive = concurrency == "adaptive"
        self.limit = _FIRST if concurrency == "adaptive" else concurrency
        self.most = _MOST if self.adaptive else self.limit
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._before = self.limit
        self._best = 0.0
        self._doubling = True
        self._trying = True
        self._hold = 0
        self._queue = 0
        self._began: float | None = None
        self._answers = self._tokens = self._peak = 0

    async def __aenter__(self) -> Self:
        if self.in_flight < self.limit:
            self.in_flight += 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave()
                raise
        self._peak = max(self._peak, self.in_flight)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self.in_flight -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self.in_flight < self.limit and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def _start_round(self) -> None:
        self._began = None
        self._answers = self._tokens = self._peak = 0

    def answered(self, tokens: int) -> None:
        """One more answer of so many tokens; at the end of a round the limit moves."""
        if not self.adaptive:
            return
        now = asyncio.get_running_loop().time()
        if self._began is None:
            self._began = now
            return
        self._answers += 1
        self._tokens += tokens
        if self._answers >= max(8, _ANSWERS_PER_SLOT * self.limit) and now > self._began:
            self._end_round(self._tokens / (now - self._began))

    def _end_round(self, tokens_per_second: float) -> None:
        full = self._peak >= self.limit
        better = tokens_per_second > self._best * _WORTH_IT
        self._start_round()
        if not full or self._queue > self._reserve:
            return
        if self._trying and not better:
            self._move(self._before)
            self._doubling = self._trying = False
            self._hold = _ROUNDS_BETWEEN_TRIES
        elif self._trying or self._hold == 0:
            self._best = tokens_per_second
            self._before = self.limit
            self._trying = True
            self._move(self.limit * 2 if self._doubling else self.limit + max(1, self.limit // 4))
        else:
            self._best = tokens_per_second
            self._hold -= 1

    @property
    def _reserve(self) -> int:
        """What may wait at the server, so that it is never idle between two answers."""
        return max(1, self.limit // 8)

    def queued(self, waiting: int) -> None:
        """The server keeps so many requests waiting, whoever sent them: what is beyond a small reserve is too much.

        At most half is given up at a time, since the count is a little old and others may leave as well.
        """
        self._queue = waiting
        if self.adaptive and waiting > self._reserve:
            self._stay(min(self.limit, max(self.limit // 2, self.in_flight - (waiting - self._reserve))))

    def _stay(self, limit: int) -> None:
        """Go down to a limit, and grow no more until some rounds have passed."""
        self._doubling = self._trying = False
        self._hold = _ROUNDS_BETWEEN_TRIES
        self._move(limit)
        self._start_round()

    def refused(self) -> None:
        """The server says that it is too much: half of it, and no more doubling."""
        if self.adaptive:
            self._stay(self.limit // 2)

    def _move(self, limit: int) -> None:
        self.limit = min(self.most, max(1, limit))
        self._let_in()
