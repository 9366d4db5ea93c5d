"""A run that goes on over a table with a million committed keys: when is its first request sent, in how much memory?

Once without the place that a run's record keeps (all prompts are read, all keys looked up), once with it.
"""

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.collect import ROOT, RUN, server
from benchmarks.collect_server import PROMPT, TOKENS, TOP_K
from collectors.config import read_run
from collectors.http import HttpSender
from collectors.opening import teacher_tokens
from collectors.plan import Plan
from collectors.probe import probe
from collectors.prompts import read_prompts
from storage.codec import Labels
from storage.rows import Row, TeacherRecord
from storage.table import Table

NEW = 200
_TOGETHER = 50_000


def lines(first: int, count: int) -> str:
    """Prompts of their own numbers."""
    numbers = range(first, first + count)
    ids = ([number % 1000 + 3, number // 1000 % 1000 + 3, number // 1_000_000 + 3, *PROMPT[3:]] for number in numbers)
    return "".join(
        json.dumps({"id": number, "prompt_token_ids": one}) + "\n" for number, one in zip(numbers, ids, strict=True)
    )


def fill(run: Path, tokens: object) -> None:
    """Rows of one token under the keys of all prompts that the file has now."""
    config = read_run(run)
    plan = Plan(config, tokens)  # type: ignore[arg-type]
    one = np.ones(1, dtype=np.int32)
    labels = Labels(one, np.full(1, -0.5, np.float32), one, one[None], np.full((1, 1), -0.5, np.float32),
                    np.log1p(-np.exp(np.full(1, -0.5))).astype(np.float32))  # fmt: skip
    row = Row(
        key="", mode="generate", run_id="filled", prompt_id="", collected_at=datetime.now(UTC), labels=labels,
        teacher=TeacherRecord(model=config.teacher.model, provider="llamacpp", access_path="self_host"),
        terms=("gemma-tou@2025-03-24",), policy_bundle="b", collect_verdict="conditional", decision="d",
        prompt_licence="CC0-1.0",
    )  # fmt: skip
    table, rows, sequence = Table.open_or_create(config.table), [], 0
    for prompt in read_prompts(config.prompts):
        rows.append(replace(row, key=plan.key(prompt, 0), prompt_id=prompt.id))
        if len(rows) == _TOGETHER:
            table.append(rows, writer="filled", sequence=sequence)
            rows, sequence = [], sequence + 1
    table.append(rows, writer="filled", sequence=sequence)


def start(run: Path, url: str) -> str:
    """One start of the run by its command; → when it first asked, and the most memory until then and in all."""
    code = "import sys; from potstill import main; main(['collect', sys.argv[1]])"
    began = time.time()
    child = subprocess.Popen([sys.executable, "-c", code, str(run)], cwd=ROOT, stderr=subprocess.DEVNULL)
    peaks: list[tuple[float, int]] = []
    while child.poll() is None:
        if found := re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{child.pid}/status").read_text()):
            peaks.append((time.time(), int(found[1])))
        time.sleep(0.02)
    assert child.returncode == 0
    with urllib.request.urlopen(f"{url}/times") as answer:
        times = json.load(answer)
    assert len(times) == NEW, len(times)
    until = max(size for at, size in peaks if at <= times[0]) / 1024
    seconds = times[0] - began
    return f"first request after {seconds:.1f} s, {until:.0f} MB until then, {peaks[-1][1] / 1024:.0f} MB in all"


def main(count: int = 1_000_000) -> None:
    """Print both figures."""
    with tempfile.TemporaryDirectory() as name, server(0.0) as url:
        run = Path(name) / "run.toml"
        run.write_text(RUN.format(url=url, connections=32, top_k=TOP_K, tokens=TOKENS))
        prompts = run.with_name("prompts.jsonl")
        prompts.write_text(lines(0, count))
        fill(run, _tokens(run, url))
        for what in ("without the place in the prompts", "with it"):
            with prompts.open("a") as file:
                file.write(lines(count, NEW))
            count += NEW
            print(f"{what}: {start(run, url)}", flush=True)


def _tokens(run: Path, url: str) -> object:
    async def card() -> object:
        config = read_run(run)
        async with HttpSender(url) as sender:
            found = await probe(sender, teacher=config.teacher, endpoint=config.pool[0], ask=config.ask)
            return teacher_tokens(None, found)

    return asyncio.run(card())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
