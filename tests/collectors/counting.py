"""A server that counts by a sliding minute of the true clock and refuses what is over, and a run against it."""

from bisect import bisect_left
from itertools import pairwise
from pathlib import Path

from collectors.report import RunReport
from collectors.run import collect
from tests.collectors.runs import run_config
from tests.collectors.servers import Ask
from tests.collectors.vllm_server import VllmServer

TOLERATED = 1.01
"""A server that counts arrivals must bear a hundredth more than what was sent in time: the network bunches requests."""


class CountingServer(VllmServer):
    """Allows so many POSTs in any sliding minute; a refused one does not count. `allowed` may change at any time."""

    def __init__(self, allowed: float, *, latency: float = 0.2) -> None:
        super().__init__(self._refusal, latency=latency, tokens=1)
        self.allowed = allowed
        self.accepted: list[float] = []
        self.refused: list[float] = []

    def _refusal(self, ask: Ask) -> str | None:
        if len(self.accepted) - bisect_left(self.accepted, ask.at - 60.0) >= TOLERATED * self.allowed:
            self.refused.append(ask.at)
            return "http-429"
        self.accepted.append(ask.at)
        return None


def paced_run(folder: Path, server: CountingServer, *, per_minute: float, limit: int) -> RunReport:
    """`limit` requests of a run that may make so many per minute."""
    config = run_config(folder, server.url, prompts=limit, concurrency=32)
    endpoint = config.pool[0].model_copy(update={"kind": "vllm"})
    limits = config.limits.model_copy(update={"requests_per_minute": per_minute})
    return collect(config.model_copy(update={"endpoint": endpoint, "limits": limits}))


def busiest(times: list[float], seconds: float) -> int:
    """The most times within any half-open window of so many seconds."""
    return max(bisect_left(times, start + seconds) - first for first, start in enumerate(times))


def bursts(times: list[float], apart: float = 0.9) -> list[int]:
    """Sizes of the groups of times that lie closer together than `apart` seconds."""
    sizes = [1] if times else []
    for earlier, later in pairwise(times):
        if later - earlier < apart:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes
