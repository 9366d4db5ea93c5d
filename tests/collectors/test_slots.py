import asyncio
import random

import pytest

from collectors.slots import Slots
from tests.collectors.virtual_time import run


class QueueingServer:
    """Answers at most `width` at a time and queues the rest, as a self-hosted engine does."""

    def __init__(self, width: int, seconds: float = 1.0) -> None:
        self._room = asyncio.Semaphore(width)
        self._seconds = seconds

    def widen(self) -> None:
        self._room.release()

    async def answer(self) -> None:
        async with self._room:
            await asyncio.sleep(self._seconds)


async def load(slots: Slots, server: QueueingServer, answers: int, tasks: int = 600) -> None:
    left = iter(range(answers))

    async def worker() -> None:
        for _ in left:
            async with slots:
                await server.answer()
            slots.answered(100)

    await asyncio.gather(*(worker() for _ in range(tasks)))


def test_a_fixed_number_is_kept() -> None:
    async def story() -> int:
        slots, most = Slots(3), 0
        in_flight = 0

        async def one() -> None:
            nonlocal most, in_flight
            async with slots:
                in_flight += 1
                most = max(most, in_flight)
                await asyncio.sleep(1)
                in_flight -= 1
            slots.answered(1)
            slots.refused()

        await asyncio.gather(*(one() for _ in range(20)))
        return most

    assert run(story()) == 3


@pytest.mark.parametrize("width", [4, 32, 200])
def test_adaptive_finds_what_a_queueing_server_sustains(width: int) -> None:
    async def story() -> Slots:
        slots = Slots("adaptive")
        await load(slots, QueueingServer(width), answers=20_000)
        return slots

    slots = run(story())
    assert width * 0.75 <= slots.limit <= max(8, width * 2.5), slots.limit


@pytest.mark.parametrize("width", [4, 32, 64])
def test_the_servers_own_count_keeps_the_queue_short_where_throughput_is_fooled(width: int) -> None:
    """Answers of very different lengths: by chance a round looks better, and the limit creeps up without the gauge."""

    async def story(gauge: bool, seed: int) -> tuple[float, int, float]:
        slots, room, chance = Slots("adaptive"), asyncio.Semaphore(width), random.Random(seed)
        loop, answers, excess = asyncio.get_running_loop(), iter(range(50 * width)), []

        async def look() -> None:
            while True:
                if gauge:
                    slots.queued(max(0, slots.in_flight - width))
                excess.append(max(0, slots.in_flight - width))
                await asyncio.sleep(2)

        async def worker() -> None:
            for _ in answers:
                tokens = int(chance.lognormvariate(4, 1.5))
                async with slots, room:
                    await asyncio.sleep(tokens / 50)
                slots.answered(tokens)

        looking, began = asyncio.create_task(look()), loop.time()
        await asyncio.gather(*(worker() for _ in range(200)))
        looking.cancel()
        return sum(excess) / len(excess), slots.limit, loop.time() - began

    told = [run(story(True, seed)) for seed in range(4)]
    untold = [run(story(False, seed)) for seed in range(4)]
    assert all(width <= limit <= width * 1.2 + 1 for _, limit, _ in told)
    assert sum(excess for excess, _, _ in told) < sum(excess for excess, _, _ in untold) / 3
    assert all(one[2] < 1.05 * other[2] for one, other in zip(told, untold, strict=True)), "and the server is as busy"


def test_a_queue_of_others_is_made_way_for_and_its_end_is_used() -> None:
    async def story() -> None:
        slots = Slots("adaptive")
        slots.limit = 64
        for _ in range(4):
            slots.queued(500)
        assert slots.limit == 4
        slots.queued(0)
        await load(slots, QueueingServer(64), answers=4000)
        assert slots.limit > 16

    run(story())


def test_room_that_a_server_gains_is_found() -> None:
    """Steps by a constant bring too little on a high limit to be told from chance: they would stay where they are."""

    async def story() -> tuple[int, int]:
        slots, server = Slots("adaptive"), QueueingServer(64)
        await load(slots, server, answers=8000)
        before = slots.limit
        for _ in range(192):
            server.widen()
        await load(slots, server, answers=40_000)
        return before, slots.limit

    before, after = run(story())
    assert before <= 160 and after >= 200, (before, after)


def test_a_fixed_number_is_not_moved_by_a_queue() -> None:
    slots = Slots(8)
    slots.queued(100)
    assert slots.limit == 8


def test_a_refusal_halves_and_a_cancelled_waiter_leaves_no_hole() -> None:
    async def story() -> None:
        slots = Slots("adaptive")
        slots.refused()
        assert slots.limit == 2
        async with slots, slots:
            waiting = asyncio.create_task(slots.__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.sleep(0)
        assert slots.in_flight == 0
        async with slots, slots:
            assert slots.in_flight == 2

    run(story())


def test_a_waiter_cancelled_as_its_turn_comes_hands_it_on() -> None:
    async def story() -> None:
        slots = Slots(1)
        await slots.__aenter__()
        first, second = (asyncio.create_task(slots.__aenter__()) for _ in range(2))
        await asyncio.sleep(0)
        await slots.__aexit__(None, None, None)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.wait_for(second, 1)
        assert slots.in_flight == 1

    run(story())
