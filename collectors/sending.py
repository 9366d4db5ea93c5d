"""Many items at once over one or more endpoints, until the plan is used up or something says stop.

Each endpoint has as many workers as it may have requests in flight. A stop takes back what is not on the wire yet and
gives the rest a bounded time to be answered and kept.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice

from collectors.asking import Answer, Endpoint
from collectors.errors import BudgetSpent, EndpointStopped, Rejected, Transient
from collectors.gauge import follow_queue
from collectors.plan import Item

# How long requests in flight may take to be answered after a stop; what is later is asked again by the next start.
DRAIN_SECONDS = 30.0
_PLANNED_TOGETHER = 256
_LOOK_SECONDS = 0.05


class Source:
    """The items of a plan for many workers; what cannot be asked at one endpoint is put back for another."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._ready: deque[Item] = deque()
        self._turn = asyncio.Lock()
        self._ended = False

    async def next(self) -> Item | None:
        """The next item, None when there is none left."""
        async with self._turn:
            if not self._ready and not self._ended:
                # The plan reads files and searches keys: not in the loop's thread.
                self._ready.extend(await asyncio.to_thread(lambda: list(islice(self._items, _PLANNED_TOGETHER))))
                self._ended = not self._ready
            return self._ready.popleft() if self._ready else None

    def put_back(self, item: Item) -> None:
        """Give an item to whoever asks next."""
        self._ready.appendleft(item)

    @property
    def empty(self) -> bool:
        """Whether all items were handed out."""
        return self._ended and not self._ready


class Sending:
    """Sends what `source` has.

    answered, rejected: take a result over; they may wait while the disk is behind. After `run`, `unanswered` counts
    items whose tries were used up, and `ended_by` is what ended it before the source did: a spent budget, or the last
    endpoint's stop.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        source: Source,
        *,
        answered: Callable[[Answer], Awaitable[None]],
        rejected: Callable[[Item, Rejected], Awaitable[None]],
    ) -> None:
        self.unanswered = 0
        self.last_trouble: Transient | None = None
        self.ended_by: BudgetSpent | EndpointStopped | None = None
        self.endpoints = endpoints
        self._alive = list(endpoints)
        self._source = source
        self._answered = answered
        self._rejected = rejected
        self._keeping: set[asyncio.Task[object]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until the source is empty, `stop` is set, or nothing can be asked any more."""
        gauges = [asyncio.create_task(follow_queue(one)) for one in self.endpoints if one.watched]
        try:
            await self._send(stop)
        finally:
            for gauge in gauges:
                gauge.cancel()
            await asyncio.gather(*gauges, return_exceptions=True)

    async def _send(self, stop: asyncio.Event) -> None:
        while self._alive and not self._source.empty and not stop.is_set():
            workers = {
                asyncio.create_task(self._work(endpoint, stop))
                for endpoint in self._alive
                for _ in range(endpoint.slots.most)
            }
            try:
                await self._watch(workers, stop)
            except BaseException:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                raise

    async def _watch(self, workers: set["asyncio.Task[None]"], stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait())
        running = set(workers)
        try:
            while running and not stop.is_set():
                done, _ = await asyncio.wait({*running, stopping}, return_when=asyncio.FIRST_COMPLETED)
                for worker in done & running:
                    worker.result()
                running -= done
        finally:
            stopping.cancel()
        await self._drain(running)

    async def _drain(self, running: set["asyncio.Task[None]"]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + DRAIN_SECONDS
        while running:
            on_the_wire = set[object]().union(*(endpoint.exchanging for endpoint in self.endpoints))
            for worker in running:
                if worker not in self._keeping and (worker not in on_the_wire or loop.time() >= end):
                    worker.cancel()
            done, running = await asyncio.wait(running, timeout=_LOOK_SECONDS)
            for worker in done:
                if not worker.cancelled():
                    worker.result()

    async def _work(self, endpoint: Endpoint, stop: asyncio.Event) -> None:
        while not stop.is_set() and endpoint in self._alive:
            item = await self._source.next()
            if item is None:
                return
            try:
                answer = await endpoint.ask(item)
            except Rejected as error:
                await self._keep(self._rejected(item, error))
            except Transient as error:
                self.unanswered += 1
                self.last_trouble = error
            except BudgetSpent as error:
                self.ended_by = error
                stop.set()
            except EndpointStopped as error:
                self._source.put_back(item)
                self.retire(endpoint, error, stop)
            else:
                await self._keep(self._answered(answer))

    def retire(self, endpoint: Endpoint, error: EndpointStopped, stop: asyncio.Event) -> None:
        """Ask nothing more of an endpoint; without another one the sending ends."""
        if endpoint in self._alive:
            self._alive.remove(endpoint)
            endpoint.limit.close(error)
        if not self._alive and self.ended_by is None:
            self.ended_by = error
            stop.set()

    async def _keep(self, keeping: Awaitable[None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._keeping.add(task)
        try:
            await keeping
        finally:
            self._keeping.discard(task)
