"""The figures of the storage room, written into its section of benchmarks/RESULTS.md (make bench-storage).

`--sample FILE.npz` measures sizes on more labels than the 512 positions that come with the tests (`ids`, `logprobs`).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import tempfile
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import storage_sizes, storage_speed

RESULTS = Path(__file__).parent / "RESULTS.md"
SAMPLE = Path(__file__).parents[1] / "tests" / "storage" / "data" / "gemma_top64.npz"
SECTION = "storage"
NOTES = """\
DistillKit's settings are coded again from its description; its code is on no package index and was not run. They are
decoded twice: by our numpy, as `potstill import` does, and in the steps of its package (torch; read in its sources and
written again), in batches of 8 sequences of 512. The aim of 15 times its decoding speed holds against its own steps at
k=64 in such batches; smaller batches decode up to 3 times as fast (78 to 125 beside our 1,064 in one run), and at k=20
we are 7 to 10 times as fast. Against our numpy 15 cannot be reached: lists without any compression decode 1.5 times as
fast as ours.

Tried for decoding, k=64, bytes a token and thousand tokens (ours in that run 150.2, 1,049): log-probabilities in LZ4
170.6, 1,181, in Snappy 174.3, 954, uncompressed 365, 1,277; all in LZ4 213, 1,434, all uncompressed 512, 1,608; pages
of 256 KB 177.6, 928, of 8 MB 147.9, 893, of version 2 149.6, 1,121; zstd level 1 160.5, 1,133, level 9 145.9, 1,129
(slow to write); a memory map with or without read-ahead 1,143 and 1,100. None that keeps to 152 bytes gains more than
the spread between runs."""
SQL_NOTES = """\
Runs of 21 and 61 pairs on 2026-11-24, at load 1 to 2, gave the filter 1.23 to 1.28 and the join 1.16 to 1.26. Files
that the WHERE rules out by teacher or time stay closed (half of them in the filter), the log is read once, a footer
with one read, the database starts beside the opening of the table. What cost most was Python's lock: DuckDB has eight
threads that only read, and each call of theirs needs the lock; without them the threads that compute read for
themselves. In one run of 31, medians beside plain DuckDB, two such threads gave 1.38 and 1.34, none 1.14 and 1.19.
The headers of pages without bounds are recognized by one pattern: 5.8 → 1.7 µs for one that was met before. Before
both it was 1.45 and 1.37. Tried without gain: DuckDB's caches of files and of metadata off and on, no prefetching,
exact reads, row groups of 2^16 rows. With the page cache dropped before each of 9 runs: filter 0.117 s beside 0.106,
join 0.305 beside 0.233 (with two reading threads 0.130 and 0.288)."""


def main() -> None:
    """Measure all and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=Path, default=SAMPLE)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join([_machine(), *_sizes(options.sample, Path(folder)), *_speeds(Path(folder), options.rows)])
    write_section(SECTION, f"## The soft-label table\n\n{text}\n")
    print(text)


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "duckdb", "deltalake", "numpy"))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{date.today()}, {platform.machine()} with {cores} cores shared with other work (load "
        f"{os.getloadavg()[0]:.1f} at the start), Python {platform.python_version()}, {libraries}. Trust the ratios.\n"
    )


def _sizes(sample: Path, folder: Path) -> list[str]:
    with np.load(sample, allow_pickle=False) as data:
        ids, logprobs = data["ids"], data["logprobs"]
    lines = [f"### Size, error, decoding: {len(ids):,} positions of Gemma 3 270M, zstd", ""]
    lines += ["| coding | k | bytes/token (ids + log-probabilities) | mean KL, nats | thousand tokens per CPU second |"]
    lines += ["|---|---|---|---|---|"]
    for k in (64, 20):
        part = np.ascontiguousarray(ids[:, :k]), np.ascontiguousarray(logprobs[:, :k])
        for m in storage_sizes.measure(*part, folder):
            kl = "0" if m.kl < 1e-15 else f"{m.kl:.1e}"
            speed = m.thousand_tokens_per_cpu_second
            lines.append(f"| {m.name} | {k} | {m.bytes_per_token:.1f} | {kl} | {speed:,.0f} |")
        whole = storage_sizes.all_numbers(*part, folder)
        lines.append(f"| the default with tail, realised token, its log-probability and rank | {k} | {whole:.1f} | | |")
    lines += [
        "",
        NOTES,
        *(
            []
            if find_spec("datasets")
            else ["Hugging Face `datasets` is not installed here: its figures are left out."]
        ),
    ]
    return [*lines, ""]


def _speeds(folder: Path, rows: int) -> list[str]:
    lines = ["### Writing", ""]
    speed = storage_speed.append_speed(folder)
    lines += [
        f"Appends of 256 rows of 64 tokens × top 20, durable on return: {speed['rows/s']:,.0f} rows/s, "
        f"{speed['tokens/s']:,.0f} tokens/s, {speed['MB/s']:.0f} MB/s of Arrow memory."
    ]
    latency = storage_speed.commit_latency(folder)
    lines += ["Commit of one row: " + ", ".join(f"{ms:.0f} ms as number {n:,}" for n, ms in latency.items()) + ".", ""]
    table = storage_speed.build(folder, rows)
    lines += [f"### SQL over {rows:,} rows of 4 tokens × top 5, two teachers", ""]
    lines += [
        "| query | `sql`, s | plain DuckDB on the same files, s | ratio | ratio of CPU |",
        "|---|---|---|---|---|",
    ]
    for name, (ours, plain, ratio, cpu) in storage_speed.query_speed(table).items():
        lines.append(f"| {name} | {ours:.3f} | {plain:.3f} | {ratio:.2f} | {cpu:.2f} |")
    lines += ["", SQL_NOTES]
    keys = storage_speed.key_speed(table)
    lines += ["", "### Keys and audits", ""]
    lines += [
        f"A fresh process loads {keys['keys']:,.0f} keys in {keys['load']:.2f} s and says in {keys['ask']:.2f} s more "
        f"which of a million keys are there ({keys['there']:,.0f}); its peak memory is {keys['peak_mb']:.0f} MB, of "
        f"which the imports take {keys['imports_mb']:.0f}.",
        f"An audit of a table of 10,000,000 rows takes {storage_speed.audit_speed(table):.2f} s.",
    ]
    return lines


def write_section(name: str, text: str) -> None:
    """Put `text` in place of the section between our two markers, or at the end."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = RESULTS.read_text("utf-8") if RESULTS.is_file() else "# What was measured\n"
    section = f"{start}\n{text}{end}\n"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end) + "\n", re.DOTALL)
    new = pattern.sub(lambda _: section, old) if pattern.search(old) else f"{old.rstrip()}\n\n{section}"
    RESULTS.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
