"""The whole path of `collect` against a server that answers at once, beside loops that store nothing (bench-collect).

Ratios within one run are what counts: the machine is shared. Each client runs in a process of its own, in turn.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.collect_server import PROMPT, TOKENS, TOP_K

ROOT = Path(__file__).parents[1]
RUN = """
table = "table"
[teacher]
model = "google/gemma-3-270m"
[endpoint]
kind = "llamacpp"
base_url = "{url}"
[limits]
concurrency = {connections}
[prompts]
path = "prompts.jsonl"
licence = "CC0-1.0"
[ask]
top_k = {top_k}
max_tokens = {tokens}
"""


def bodies(count: int) -> Iterator[bytes]:
    """Requests as the collector sends them, as far as the server looks at them."""
    for seed in range(count):
        yield (
            json.dumps(
                {"prompt": PROMPT, "seed": seed, "n_predict": TOKENS, "n_probs": TOP_K}, separators=(",", ":")
            ).encode()[:-1]
            + b',"temperature":1.0}'
        )


def rows_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What a plain script keeps: a list of dictionaries."""
    return [
        {"token": p["id"], "logprob": p["logprob"], "top": {c["id"]: c["logprob"] for c in p["top_logprobs"]}}
        for p in body["completion_probabilities"]
    ]


def httpx_loop(url: str, connections: int, count: int) -> None:
    """httpx as its front page shows it, with enough connections."""
    import httpx

    async def story() -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        left = bodies(count)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=300) as client:

            async def worker() -> None:
                for body in left:
                    rows_of((await client.post("/completion", content=body)).json())

            await asyncio.gather(*(worker() for _ in range(connections)))

    asyncio.run(story())


def aiohttp_loop(url: str, connections: int, count: int) -> None:
    """The same with bare aiohttp."""
    import aiohttp

    async def story() -> None:
        left = bodies(count)
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=connections)) as session:

            async def worker() -> None:
                for body in left:
                    async with session.post("/completion", data=body) as response:
                        rows_of(json.loads(await response.read()))

            await asyncio.gather(*(worker() for _ in range(connections)))

    asyncio.run(story())


def potstill(url: str, connections: int, count: int) -> None:
    """HTTP, journal, decoding, Delta table."""
    from collectors.config import read_run
    from collectors.run import collect

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "run.toml"
        run.write_text(RUN.format(url=url, connections=connections, top_k=TOP_K, tokens=TOKENS))
        with (folder / "prompts.jsonl").open("w") as file:
            for number in range(count):
                ids = [number % 1000 + 3, number // 1000 + 3, *PROMPT[2:]]
                file.write(json.dumps({"id": number, "prompt_token_ids": ids}) + "\n")
        report = collect(read_run(run))
        assert report.committed == count, report


CLIENTS: dict[str, Callable[[str, int, int], None]] = {
    "httpx + json, stores nothing": httpx_loop,
    "aiohttp + json, stores nothing": aiohttp_loop,
    "potstill collect, whole path": potstill,
}


@contextmanager
def server(latency: float) -> Iterator[str]:
    """The server in a process of its own; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.collect_server", str(latency)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.stdin.close()
        process.wait()


def measure(name: str, url: str, connections: int, count: int) -> tuple[float, float]:
    """(requests a second from the first request to the client's end, CPU milliseconds a response)."""
    code = (
        "import resource, sys, time; from benchmarks.collect import CLIENTS;"
        "before = resource.getrusage(resource.RUSAGE_SELF);"
        f"CLIENTS[{name!r}]({url!r}, {connections}, {count});"
        "after = resource.getrusage(resource.RUSAGE_SELF);"
        "print(time.time(), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ended, cpu = map(float, run.stdout.split())
    with urllib.request.urlopen(f"{url}/times") as answer:
        times = json.load(answer)
    assert len(times) == count, (len(times), count)
    return count / (ended - times[0]), cpu / count * 1000


def main(count: int = 3000) -> None:
    """Print a Markdown table."""
    print("| client | connections | server answers | requests/s | labelled tokens/s | CPU ms/response |")
    print("|---|---|---|---|---|---|")
    for latency in (0.0, 0.5):
        with server(latency) as url:
            for connections in (32, 128, 512):
                for name in CLIENTS:
                    rate, cpu = measure(name, url, connections, count if not latency else min(count, connections * 12))
                    when = f"{latency:g} s late" if latency else "at once"
                    print(
                        f"| {name} | {connections} | {when} | {rate:.0f} | {rate * TOKENS:,.0f} | {cpu:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
