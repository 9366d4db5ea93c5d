"""The whole path of `collect` against a server that answers at once, beside loops that store nothing (bench-collect).

Ratios within one run are what counts: the machine is shared. Each client runs in a process of its own, in turn.
"""

import asyncio
import json
import os
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


def other(name: str) -> Callable[[str, int, int], None]:
    """A collector of another environment, whose Python POTSTILL_BENCH_NAME names."""

    def run(url: str, connections: int, count: int) -> None:
        script = [os.environ[_variable(name)], str(ROOT / "benchmarks" / "collect_others.py")]
        with tempfile.TemporaryDirectory() as folder:
            command = [*script, name, url, str(connections), str(count)]
            subprocess.run(command, check=True, capture_output=True, cwd=folder)

    return run


def _variable(name: str) -> str:
    return f"POTSTILL_BENCH_{name.upper()}"


CLIENTS: dict[str, Callable[[str, int, int], None]] = {
    "httpx + json, stores nothing": httpx_loop,
    "aiohttp + json, stores nothing": aiohttp_loop,
    "potstill collect, whole path": potstill,
    "curator": other("curator"),
    "distilabel": other("distilabel"),
}
# Of the rows of potstill: slow clients are measured with fewer, since the rate is what counts.
SHARES = {"httpx + json, stores nothing": 0.2, "aiohttp + json, stores nothing": 0.4, "curator": 0.1, "distilabel": 0.1}


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
        "used = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (0, resource.RUSAGE_CHILDREN));"
        "before = used();"
        f"CLIENTS[{name!r}]({url!r}, {connections}, {count});"
        "print(time.time(), used() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ended, cpu = map(float, run.stdout.split())
    with urllib.request.urlopen(f"{url}/times") as answer:
        times = json.load(answer)
    assert len(times) == count, (len(times), count)
    return count / (ended - times[0]), cpu / count * 1000


def main(count: int = 5000) -> None:
    """Print a Markdown table."""
    print("| client | connections | server answers | requests/s | labelled tokens/s | CPU ms/response |")
    print("|---|---|---|---|---|---|")
    for latency in (0.0, 0.5):
        with server(latency) as url:
            for connections in (32, 128, 512):
                for name in CLIENTS:
                    when = f"{latency:g} s late" if latency else "at once"
                    if name in ("curator", "distilabel") and _variable(name) not in os.environ:
                        print(f"| {name} | {connections} | {when} | not installed: set {_variable(name)} | | |")
                        continue
                    rows = max(connections, int(count * SHARES.get(name, 1.0)))
                    rate, cpu = measure(name, url, connections, rows if not latency else min(rows, connections * 12))
                    print(
                        f"| {name} | {connections} | {when} | {rate:.0f} | {rate * TOKENS:,.0f} | {cpu:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
