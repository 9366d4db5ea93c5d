"""The trainer's figures: stream, order, head and step, each beside what bounds it (make bench-train).

`--sample FILE.npz` draws the labels from more positions than the 512 that come with the tests. The other libraries are
no dependencies of the project: BENCH_PACKAGES names the folders where they lie, and what is not there is said.
mosaicml-streaming imports torchvision, which its image classes alone use: an empty module of that name will do.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks import train_head, train_order, train_stream
from benchmarks.storage_figures import SAMPLE, write_section
from storage.table import Table
from tests.trainer.head_memory import Measured

AIMS = {
    "pyarrow, sequential, bare": 0.85,
    "datasets, shuffled, Arrow format": 2.0,
    "datasets, shuffled, default rows": 15.0,
    "mosaicml-streaming, shuffled": 2.0,
}

Reached = tuple[str, str, float, bool]
"""A figure, what was aimed at, what was found, and whether that is enough."""


def main() -> None:
    """Measure all and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=Path, default=SAMPLE)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    reached: list[Reached] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "table"
        table = train_stream.build(folder, options.rows, options.sample)
        lines = [_machine()]
        parts = [_stream(folder, options, reached), _order(), _heads(options.repeats, reached), _step(table, reached)]
        for part in parts:
            for line in part:
                print(line, flush=True)
                lines.append(line)
    table_of_figures = list(_figures(reached))
    print("\n".join(table_of_figures))
    lines[1:1] = table_of_figures
    write_section("trainer", "## The trainer\n\n" + "\n".join(lines) + "\n")


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pyarrow", "numpy"))
    return (
        f"{date.today()}, {platform.machine()}, 2 cores shared with other work (load {os.getloadavg()[0]:.1f} at the "
        f"start), Python {platform.python_version()}, {libraries}. Trust the ratios, most those of CPU time.\n"
    )


def _figures(reached: list[Reached]) -> Iterator[str]:
    """DESIGN's figures, and what of them was reached."""
    yield "| figure | aim | found | reached |\n|---|---|---|---|"
    for what, aim, found, enough in reached:
        yield f"| {what} | {aim} | {found:.2f} | {'yes' if enough else '**no**'} |"
    yield ""


def _stream(folder: Path, options: argparse.Namespace, reached: list[Reached]) -> Iterator[str]:
    found = train_stream.compare(folder, options.repeats)
    ours = found["potstill"]
    assert isinstance(ours, dict), ours
    yield f"### Stream: {options.rows:,} rows of 128 tokens × top 64, shuffled, to torch tensors\n"
    yield (
        f"Each reader in a process of its own, in turn; the best of {options.repeats}. datasets reads one epoch, the "
        f"others {train_stream.EPOCHS}.\n"
    )
    yield "| reader | thousand tokens/s | per CPU second | potstill ÷ this, wall | by CPU time |\n|---|---|---|---|---|"
    for name, run in found.items():
        if isinstance(run, str):
            yield f"| {name} | {run} | | | |"
            continue
        speed, per_cpu = (run["tokens"] / run[clock] / 1e3 for clock in ("wall", "cpu"))
        wall, cpu = (ours["tokens"] / ours[clock] / 1e3 / other for clock, other in (("wall", speed), ("cpu", per_cpu)))
        yield f"| {name} | {speed:,.0f} | {per_cpu:,.0f} | {wall:.2f} | {cpu:.2f} |"
        if aim := AIMS.get(name):
            reached.append((f"stream ÷ {name}, by CPU time", f"≥ {aim}", cpu, cpu >= aim))
            reached.append(("the same, by wall time", f"≥ {aim}", wall, wall >= aim))
    megabytes = train_stream.memory_over_epochs(folder, 6)
    growth = min(megabytes[3:]) / min(megabytes[:3])
    reached.append(("memory over epochs 4 to 6 ÷ 1 to 3, least of each", "≤ 1.05", growth, growth <= 1.05))
    yield f"\nResident memory after each of six epochs, MB: {' '.join(f'{number:,}' for number in megabytes)}.\n"


def _order() -> Iterator[str]:
    yield "### Order: how far a window shuffles\n"
    yield "100 epochs of a table of 64 row groups of 256 rows; 0 is a full shuffle's, 1 is no shuffle's.\n"
    yield "| window, row groups | correlation of place in table and epoch | table neighbours read within 1,024 rows |"
    yield "|---|---|---|"
    for window, (correlation, near) in train_order.quality().items():
        yield f"| {window} | {correlation:+.3f} | {near:.0%} |"
    yield ""


def _heads(repeats: int, reached: list[Reached]) -> Iterator[str]:
    yield "### Head: forward and backward, float32, hidden size 256\n"
    yield f"One thread; each loss in a process of its own, in turn; the best time of {repeats}.\n"
    yield "| N × V, k | loss | peak extra memory, MB | of dense | CPU s | ÷ chunked cross-entropy |"
    yield "|---|---|---|---|---|---|"
    for size, found in train_head.heads(repeats).items():
        dense, hard = found["dense"], found["chunked cross-entropy"]
        assert isinstance(dense, Measured) and isinstance(hard, Measured)
        where = f"{size.tokens:,} × {size.vocabulary:,}, {size.candidates}"
        for name, m in found.items():
            what = f"{where} | {name}"
            if isinstance(m, str):
                yield f"| {what} | {m} | | | |"
                continue
            share, times = m.extra_bytes / dense.extra_bytes, m.seconds / hard.seconds
            yield f"| {what} | {m.extra_bytes / 1e6:,.0f} | {share:.2f} | {m.seconds:.2f} | {times:.2f} |"
            if name == "potstill":
                if size.tokens == 2048:
                    reached.append((f"head's peak memory ÷ dense, {where}", "≤ 0.2", share, share <= 0.2))
                reached.append((f"head's CPU time ÷ chunked cross-entropy, {where}", "≤ 1.3", times, times <= 1.3))
    yield "\nLiger-Kernel's Triton kernels need a GPU; its chunked loss is plain torch, and makes the teacher's logits"
    yield "as well.\n"


def _step(table: Table, reached: list[Reached]) -> Iterator[str]:
    step = train_head.steps(table)
    more, waited = step["soft"] / step["hard"] - 1, step["waited"]
    yield (
        f"A step of a student of {step['parameters'] / 1e6:.0f} M parameters, V = 32k, k = 64: {more:+.1%} CPU "
        f"time with soft labels over cross-entropy (the medians of {step['count']:.0f} steps each); {waited:.2%} of "
        "the time waited for data."
    )
    reached.append(("share of step time that waits for data, %", "≤ 1", 100 * waited, waited <= 0.01))
    yield (
        f"`torch.compile` of head and loss, one graph, code made and run: gradients within {train_head.compiled():.0e}."
    )


if __name__ == "__main__":
    main()
