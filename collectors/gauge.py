"""How many requests a server keeps waiting, by its own Prometheus gauge: what a server that only queues never refuses.

Only adaptive slots are told. A server without such a gauge is asked once; a hosted interface has none.
"""

import asyncio
import re

from collectors.asking import Endpoint
from collectors.errors import Rejected, TransportError
from collectors.http import Request

LOOK_SECONDS = 2.0
_METRICS = Request("GET", "/metrics")
_WAITING = re.compile(
    rb"^(?:vllm:num_requests_waiting|llamacpp:requests_deferred|sglang:num_queue_reqs|tgi_queue_size)"
    rb"(?:\{[^}\n]*\})? +([0-9.eE+]+)",
    re.MULTILINE,
)


def waiting(metrics: bytes) -> int | None:
    """Requests that wait, over all engines of the server; None where the text has no gauge that says so."""
    found = [float(value) for value in _WAITING.findall(metrics)]
    return round(sum(found)) if found else None


async def follow_queue(endpoint: Endpoint) -> None:
    """Tell the endpoint's slots how long its queue is, until cancelled or as long as the server says so."""
    if endpoint.provider.kind == "local":
        return
    while True:
        try:
            response = await endpoint.sender.send(_METRICS)
        except (TransportError, Rejected):
            await asyncio.sleep(LOOK_SECONDS)  # whoever does not answer is dealt with where rows are asked for
            continue
        if response.status == 200:
            queue = waiting(response.body)
            if queue is None:
                return
            endpoint.slots.queued(queue)
        elif response.status == 501 or (response.status < 500 and response.status != 429):
            return
        await asyncio.sleep(LOOK_SECONDS)
