"""Appends, commits, queries, key look-ups and audits on tables of many rows; each beside what bounds it.

Rows are synthetic and short where the number of rows is the point; the machine's two cores may be shared, so ratios
within one run are what to trust.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from policies.use import Use
from storage.audit import audit
from storage.compact import new_data_file
from storage.data_files import Written
from storage.delta_log import NewFile
from storage.query import sql
from storage.rows import rows_to_arrow
from storage.schema import SOFT_LABELS
from storage.table import Table
from storage.views import statements
from tests.storage.make_rows import QWEN, make_row, make_rows

QUERIES = {
    "a filter by teacher and date": """
        SELECT count(*), avg(nll) FROM soft_labels
        WHERE teacher.model = 'Qwen/Qwen3-8B' AND collected_at < TIMESTAMPTZ '2026-11-01 04:00:00+00'""",
    "a histogram of entropy over all tokens": """
        SELECT floor(entropy * 4) / 4 AS nats, count(*) FROM tokens GROUP BY 1""",
    "a join of two teachers by prompt": """
        SELECT count(*), avg(abs(a.nll - b.nll)) FROM soft_labels a JOIN soft_labels b USING (prompt_id, sample_index)
        WHERE a.teacher.model = 'Qwen/Qwen3-8B' AND b.teacher.model = 'google/gemma-3-270m'""",
}


def append_speed(folder: Path, batches: int = 20) -> dict[str, float]:
    """Rows of 64 tokens × top 20, 256 a batch: rows, tokens and MB (in memory) a second, commit included."""
    table = Table.create(folder / "append")
    batch = make_rows(0, 256, targets=64, k=20)
    size = rows_to_arrow(batch).nbytes
    seconds = []
    for number in range(batches):
        keys = [hashlib.sha256(f"{number} {n}".encode()).hexdigest() for n in range(256)]
        rows = [replace(row, key=key) for row, key in zip(batch, keys, strict=True)]
        started = time.perf_counter()
        table.append(rows, writer="bench", sequence=number)
        seconds.append(time.perf_counter() - started)
    middle = statistics.median(seconds)
    return {"rows/s": 256 / middle, "tokens/s": 256 * 64 / middle, "MB/s": size / middle / 1e6}


def commit_latency(folder: Path, commits: int = 1000) -> dict[int, float]:
    """Milliseconds of an append of one row around the 1st, 100th and last commit (median of up to 20)."""
    table = Table.create(folder / "commits")
    seconds = []
    for number in range(commits):
        row = make_row(number, targets=1, k=1)
        started = time.perf_counter()
        table.append([row], writer="bench", sequence=number)
        seconds.append(time.perf_counter() - started)
    around = {1: seconds[:3], 100: seconds[90:110], commits: seconds[-20:]}
    return {number: statistics.median(part) * 1000 for number, part in around.items()}


def build(folder: Path, rows: int, per_file: int = 50_000) -> Table:
    """A table of so many short rows (4 tokens × top 5): half of each of two teachers, on the same prompts."""
    table = Table.create(folder / "many")
    base = {}
    for name, changes in {"gemma": {}, "qwen": {"teacher": QWEN}}.items():
        few = make_rows(0, 500, targets=4, k=5, **changes)
        table.append([replace(few[0], key=hashlib.sha256(name.encode()).hexdigest())], writer=name, sequence=0)
        base[name] = pa.concat_tables([rows_to_arrow(few)] * (per_file // 500)).combine_chunks()
    files: list[NewFile] = []
    for number in range(rows // per_file):
        name = ("gemma", "qwen")[number % 2]
        first = number // 2 * per_file
        keys = [hashlib.sha256(f"{name} {first + n}".encode()).hexdigest() for n in range(per_file)]
        part = base[name].set_column(0, SOFT_LABELS.field("key"), pa.array(keys))
        at = SOFT_LABELS.get_field_index("prompt_id")
        part = part.set_column(
            at, SOFT_LABELS.field("prompt_id"), pa.array([f"p{first + n:08}" for n in range(per_file)])
        )
        files.append(new_data_file(table, part, part["audit_group"][0].as_py()))
    table.log.commit(table.log.open(), add=files)
    return Table.open(table.path)


def query_speed(table: Table, times: int = 21) -> dict[str, tuple[float, float, float, float]]:
    """Query → seconds by `sql` (opening, checking and all), seconds of plain DuckDB over the same files, two ratios.

    Both in turn, so many times; medians of the seconds, and of the ratios of each pair by the clock and by CPU: a busy
    machine delays either, and the ratio of CPU seconds least of all.
    """
    files = [str(file.path) for file in table.files()]
    found = {}
    for name, query in QUERIES.items():
        pairs = [
            (_timed(lambda q=query: sql(table.path, q)), _timed(lambda q=query: _plain(files, q))) for _ in range(times)
        ]
        seconds = [statistics.median(side[0] for side in sides) for sides in zip(*pairs, strict=True)]
        ratios = [statistics.median(ours[n] / plain[n] for ours, plain in pairs) for n in (0, 1)]
        found[name] = (seconds[0], seconds[1], ratios[0], ratios[1])
    return found


def _plain(files: list[str], query: str) -> Any:
    with duckdb.connect(":memory:", config={"threads": len(os.sched_getaffinity(0))}) as connection:
        connection.execute(f"CREATE VIEW soft_labels AS SELECT * FROM read_parquet({files}, hive_partitioning = false)")
        for statement in statements():
            connection.execute(statement)
        return connection.execute(query).fetchall()


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of all threads of this process."""
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - cpu


KEYS = """
import hashlib, json, re, sys, time
from pathlib import Path
import pyarrow as pa
from storage.table import Table
def peak():  # getrusage would count the parent's memory at the fork
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
imports = peak()
started = time.perf_counter()
keys = Table.open(sys.argv[1]).keys()
loaded, asked, there = time.perf_counter() - started, 0.0, 0
for first in range(0, 1_000_000, 100_000):
    digests = [hashlib.sha256(f"gemma {first + n}".encode()).hexdigest() for n in range(100_000)]
    wanted = pa.chunked_array([pa.array(digests)])
    started = time.perf_counter()
    there += int(keys.contains(wanted).sum())
    asked += time.perf_counter() - started
found = {"keys": len(keys), "there": there, "load": loaded, "ask": asked, "peak_mb": peak(), "imports_mb": imports}
print(json.dumps(found))
"""


def key_speed(table: Table) -> dict[str, float]:
    """A fresh process that loads the key index and asks for a million keys."""
    done = subprocess.run([sys.executable, "-c", KEYS, str(table.path)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def audit_speed(table: Table, rows: int = 10_000_000) -> float:
    """Seconds of an audit of so many rows: the table's files again under other names, which the log counts as more."""
    files = table.files()
    more: list[NewFile] = []
    count = sum(file.rows for file in files)
    logged = {file.path: file for file in table.log.files(table.log.open())}
    while count < rows:
        for file in files:
            name = hashlib.sha256(f"{len(more)}".encode()).hexdigest()
            path = file.path.with_name(f"{file.tokens}t-{name}.parquet")
            path.hardlink_to(file.path)
            known = logged[file.path]
            low, high = ({"collected_at": f"{at:%Y-%m-%dT%H:%M:%S.%fZ}"} for at in (known.first, known.last))
            stats = {"numRecords": file.rows, "minValues": low, "maxValues": high, "nullCount": {"collected_at": 0}}
            more.append(NewFile(Written(path, file.size, name), file.audit_group, stats))
            count += file.rows
    table.log.commit(table.log.open(), add=more)
    return _timed(lambda: audit(table.path, Use.collect_only()))[0]
