"""The trainer's figures: stream, order, head and step, each beside what bounds it (make bench-train).

`--sample FILE.npz` draws the labels from more positions than the 512 that come with the tests. The other libraries are
no dependencies of the project: BENCH_PACKAGES names the folders where they lie, and what is not there is said.
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
from tests.trainer.head_memory import Measured


def main() -> None:
    """Measure all and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=Path, default=SAMPLE)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "table"
        table = train_stream.build(folder, options.rows, options.sample)
        lines = [_machine(), *_stream(folder, options.rows, options.repeats), *_order(), *_heads()]
        step = train_head.steps(table)
        more = step["soft"] / step["hard"] - 1
        lines += [
            f"A step of a student of {step['parameters'] / 1e6:.0f} M parameters, V = 32k, k = 64: {more:+.1%} CPU "
            f"time with soft labels over cross-entropy; {step['waited']:.2%} of it waited for data (aim: 1 %).",
            "`torch.compile` of head and loss, one graph, code made and run: gradients within "
            f"{train_head.compiled():.0e}.",
        ]
    write_section("trainer", "## The trainer\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pyarrow", "numpy"))
    return (
        f"{date.today()}, {platform.machine()}, 2 cores shared with other work (load {os.getloadavg()[0]:.1f} at the "
        f"start), Python {platform.python_version()}, {libraries}. Trust the ratios, most those of CPU time.\n"
    )


def _stream(folder: Path, rows: int, repeats: int) -> Iterator[str]:
    found = train_stream.compare(folder, repeats)
    ours = found["potstill"]
    assert isinstance(ours, dict), ours
    yield f"### Stream: {rows:,} rows of 128 tokens × top 64, shuffled, to torch tensors (best of {repeats})\n"
    yield "| reader | thousand tokens/s | per CPU second | potstill ÷ this, wall | by CPU time |\n|---|---|---|---|---|"
    for name, run in found.items():
        if isinstance(run, str):
            yield f"| {name} | {run} | | | |"
        else:
            speed, cpu = run["tokens"] / run["wall"] / 1e3, run["tokens"] / run["cpu"] / 1e3
            ratios = f"{run['wall'] / ours['wall']:.2f} | {run['cpu'] / ours['cpu']:.2f}"
            yield f"| {name} | {speed:,.0f} | {cpu:,.0f} | {ratios} |"
    yield "\nAims: 2 times datasets' Arrow format and mosaicml-streaming, 15 times its rows, 0.85 of bare pyarrow."
    epochs = " ".join(f"{megabytes:,}" for megabytes in train_stream.memory_over_epochs(folder, 5))
    yield f"Resident memory after each of five epochs, MB: {epochs}.\n"


def _order() -> Iterator[str]:
    yield "### Order: how far a window shuffles\n"
    yield "100 epochs of a table of 64 row groups of 256 rows; 0 is a full shuffle's, 1 is no shuffle's.\n"
    yield "| window, row groups | correlation of place in table and epoch | table neighbours read within 1,024 rows |"
    yield "|---|---|---|"
    for window, (correlation, near) in train_order.quality().items():
        yield f"| {window} | {correlation:+.3f} | {near:.0%} |"
    yield ""


def _heads() -> Iterator[str]:
    yield "### Head: forward and backward, float32, hidden size 256\n"
    yield "| N × V, k | loss | peak extra memory, MB | of dense | CPU s | ÷ chunked cross-entropy |"
    yield "|---|---|---|---|---|---|"
    for size, found in train_head.heads().items():
        dense, hard = found["dense"], found["chunked cross-entropy"]
        assert isinstance(dense, Measured) and isinstance(hard, Measured)
        for name, m in found.items():
            what = f"{size.tokens:,} × {size.vocabulary:,}, {size.candidates} | {name}"
            if isinstance(m, str):
                yield f"| {what} | {m} | | | |"
            else:
                share, times = m.extra_bytes / dense.extra_bytes, m.seconds / hard.seconds
                yield f"| {what} | {m.extra_bytes / 1e6:,.0f} | {share:.2f} | {m.seconds:.2f} | {times:.2f} |"
    yield "\nAims: at most 0.2 of dense at 2,048 × 32k, and 1.3 times the chunked cross-entropy. Liger-Kernel's Triton"
    yield "kernels need a GPU; its chunked loss is plain torch, and makes the teacher's logits as well.\n"


if __name__ == "__main__":
    main()
