import asyncio
from bisect import bisect_left
from itertools import pairwise

import pytest

from collectors.allowance import WINDOW_SECONDS
from collectors.errors import EndpointStopped
from collectors.limits import EndpointLimit, Grant
from tests.collectors.virtual_time import run


def busiest_minute(times: list[float]) -> int:
    """The most times within any half-open sliding window of a minute."""
    return max(bisect_left(times, start + WINDOW_SECONDS) - first for first, start in enumerate(times))


async def send_for(limit: EndpointLimit, seconds: float, *, tasks: int = 16, latency: float = 0.5) -> list[float]:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    times: list[float] = []

    async def worker() -> None:
        while True:
            grant = await limit.acquire(1)
            if loop.time() >= end:
                return
            times.append(loop.time())
            await asyncio.sleep(latency)
            limit.answered(grant)

    await asyncio.gather(*(worker() for _ in range(tasks)))
    return times


@pytest.mark.parametrize("per_minute", [7, 60, 600, 6000])
def test_an_allowance_is_used_and_never_passed_in_any_sliding_minute(per_minute: int) -> None:
    times = run(send_for(EndpointLimit(requests_per_minute=per_minute), 300, tasks=128))
    assert len(times) >= 0.98 * per_minute * 5
    assert busiest_minute(times) <= per_minute


def test_requests_are_spread_over_the_minute_and_not_sent_in_a_burst() -> None:
    times = run(send_for(EndpointLimit(requests_per_minute=60), 120))
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.6


def test_a_late_start_is_caught_up_by_less_than_a_hundredth() -> None:
    async def story() -> list[float]:
        limit = EndpointLimit(requests_per_minute=600)
        await asyncio.sleep(30)
        return await send_for(limit, 60)

    assert 0.98 * 600 <= len(run(story())) <= 606


def test_tokens_are_booked_by_estimate_and_settled_by_usage() -> None:
    async def story() -> int:
        limit = EndpointLimit(tokens_per_minute=6000)
        loop = asyncio.get_running_loop()
        end, used = loop.time() + 300, 0
        while loop.time() < end:
            grant = await limit.acquire(100)
            used += 40
            limit.settle(grant, 40)
        return used

    used = run(story())
    assert 0.98 * 6000 * 5 <= used <= 1.01 * 6000 * 5 + 100


def test_more_tokens_than_estimated_are_made_up_for() -> None:
    async def story() -> int:
        limit = EndpointLimit(tokens_per_minute=6000)
        loop = asyncio.get_running_loop()
        end, used = loop.time() + 300, 0
        while loop.time() < end:
            limit.settle(await limit.acquire(10), 100)
            used += 100
        return used

    assert run(story()) <= 1.01 * 6000 * 5 + 100


def test_a_request_over_the_whole_allowance_goes_alone_and_does_not_hang() -> None:
    async def story() -> list[float]:
        limit = EndpointLimit(tokens_per_minute=100)
        times = []
        for _ in range(3):
            await limit.acquire(250)
            times.append(asyncio.get_running_loop().time())
        return times

    times = run(story())
    assert all(later - earlier >= 60 for earlier, later in pairwise(times))


class CountingServer:
    """Counts as a server with a sliding minute does, and refuses what is over; refused requests count too."""

    def __init__(self, limit: EndpointLimit, allowed: int) -> None:
        self.limit, self.allowed = limit, allowed
        self.accepted: list[float] = []
        self.refused: list[float] = []

    async def send(self, grant: Grant, latency: float = 0.2) -> None:
        now = asyncio.get_running_loop().time()
        recent = sum(time > now - 60 for time in self.accepted)
        (self.accepted if recent < self.allowed else self.refused).append(now)
        accepted = recent < self.allowed
        await asyncio.sleep(latency)
        self.limit.answered(grant) if accepted else self.limit.refused(grant, None, "busy")


@pytest.mark.parametrize("lowered", [300, 150])
def test_a_limit_lowered_unannounced_costs_one_burst_of_refusals(lowered: int) -> None:
    async def story() -> CountingServer:
        limit = EndpointLimit(requests_per_minute=600)
        server = CountingServer(limit, 600)
        loop = asyncio.get_running_loop()
        end = loop.time() + 600
        lower_at = loop.time() + 120

        async def worker() -> None:
            while loop.time() < end:
                grant = await limit.acquire(1)
                if loop.time() > lower_at:
                    server.allowed = lowered
                await server.send(grant)

        await asyncio.gather(*(worker() for _ in range(32)))
        return server

    server = run(story())
    # a burst is what was in flight; after it single tries find the moment when the server is free again
    bursts = [time for time, before in zip(server.refused[1:], server.refused, strict=False) if time - before > 5]
    assert len(server.refused) < 25, server.refused
    assert len(bursts) < 10
    assert len(server.accepted) > 0.6 * (1200 + lowered * 8)


def test_retry_after_pauses_every_task_and_then_one_tries_alone() -> None:
    async def story() -> list[float]:
        limit = EndpointLimit()
        loop = asyncio.get_running_loop()
        began = loop.time()
        first = await limit.acquire(1)
        limit.refused(first, 30.0, "busy")
        starts: list[float] = []

        async def worker() -> None:
            grant = await limit.acquire(1)
            starts.append(loop.time() - began)
            await asyncio.sleep(2)
            limit.answered(grant)

        await asyncio.gather(*(worker() for _ in range(5)))
        return starts

    assert run(story()) == pytest.approx([30, 32, 32, 32, 32])


def test_a_trial_that_is_given_up_hands_its_turn_on() -> None:
    async def story() -> None:
        limit = EndpointLimit()
        limit.refused(await limit.acquire(1), 1.0, "busy")
        limit.withdrawn(await limit.acquire(1))
        limit.answered(await limit.acquire(1))
        await limit.acquire(1)

    run(story())


def test_an_endpoint_that_never_answers_is_given_up_after_a_few_tries() -> None:
    async def story() -> float:
        limit = EndpointLimit()
        began = asyncio.get_running_loop().time()
        with pytest.raises(EndpointStopped, match="connection refused"):
            while True:
                limit.failed(await limit.acquire(1), "connection refused.")
        return asyncio.get_running_loop().time() - began

    assert run(story()) < 30


def test_an_endpoint_that_was_well_is_waited_for_a_quarter_of_an_hour() -> None:
    async def story() -> tuple[float, int]:
        limit = EndpointLimit()
        limit.answered(await limit.acquire(1))
        began = asyncio.get_running_loop().time()
        tries = 0
        with pytest.raises(EndpointStopped):
            while True:
                limit.failed(await limit.acquire(1), "503.")
                tries += 1
        return asyncio.get_running_loop().time() - began, tries

    seconds, tries = run(story())
    assert 900 < seconds < 1200
    assert tries < 25


def test_a_named_limit_is_never_passed() -> None:
    async def story() -> list[float]:
        limit = EndpointLimit(requests_per_minute=600)
        limit.allow(120)
        return await send_for(limit, 180)

    assert busiest_minute(run(story())) <= 120


def test_an_exhausted_allowance_is_waited_for_without_a_refusal() -> None:
    async def story() -> float:
        limit = EndpointLimit()
        limit.answered(await limit.acquire(1))
        limit.exhausted(45)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(limit.acquire(1), limit.acquire(1))
        return asyncio.get_running_loop().time() - began

    assert run(story()) == pytest.approx(45)
