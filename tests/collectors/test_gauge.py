"""The gauges of real servers' metrics, and a run against a server that queues and says so."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from collectors import gauge, slots
from collectors.gauge import waiting
from collectors.run import collect
from tests.collectors.runs import run_config
from tests.collectors.servers import TeacherServer

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 64.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 12.0
vllm:num_requests_waiting{engine="1",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 12.0
"""
LLAMA = b"# TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred 7\nllamacpp:requests_processing 4\n"
SGLANG = b'sglang:num_running_reqs{model_name="m"} 9.0\nsglang:num_queue_reqs{model_name="m"} 2.0\n'


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (VLLM, 15),
        (LLAMA, 7),
        (SGLANG, 2),
        (b"tgi_queue_size 5\n", 5),
        (b"process_cpu_seconds_total 3\n", None),
        (b"", None),
    ],
)
def test_what_waits_is_found_in_each_engines_words(text: bytes, count: int | None) -> None:
    assert waiting(text) == count


class QueueingServer(TeacherServer):
    """Works at `width` requests at a time, lets the others wait, and counts these in /metrics unless told not to."""

    def __init__(self, width: int, *, metrics: bool = True, latency: float = 0.03) -> None:
        super().__init__(latency=latency)
        self._width, self._metrics = width, metrics
        self.at_work = 0
        self.looks = 0
        self.most_waiting: list[int] = []

    def routes(self) -> list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]]:
        return [*super().routes(), ("GET", "/metrics", self._say)]

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        if not hasattr(self, "_room"):
            self._room = asyncio.Semaphore(self._width)
        self.at_work += 1
        self.most_waiting.append(max(0, self.at_work - self._width))
        try:
            async with self._room:
                return await super()._completion(request)
        finally:
            self.at_work -= 1

    async def _say(self, request: web.Request) -> web.Response:
        self.looks += 1
        if not self._metrics:
            return web.Response(status=501)
        return web.Response(text=f"llamacpp:requests_deferred {max(0, self.at_work - self._width)}\n")


def mean_queue(server: QueueingServer) -> float:
    last = server.most_waiting[len(server.most_waiting) // 2 :]
    return sum(last) / len(last)


def test_a_run_keeps_the_queue_of_a_server_that_says_it_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauge, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(
        slots, "_WORTH_IT", 0.5
    )  # a measure of throughput that is fooled: the gauge alone holds it back
    queues = {}
    for metrics in (True, False):
        with QueueingServer(4, metrics=metrics) as server:
            folder = tmp_path / str(metrics)
            config = run_config(folder, server.url, prompts=300, concurrency='"adaptive"')
            assert collect(config).committed == 300
            queues[metrics] = mean_queue(server)
            assert server.looks == 1 if not metrics else server.looks > 5
    assert queues[True] < 6
    assert queues[False] > 2 * queues[True]
