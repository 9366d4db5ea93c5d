"""1,000 commits by four processes with 50 SIGKILLs on one table, and what is left of it (section of RESULTS.md).

The processes are the collecting children of the tests: journal, batch, commit, release. A reader beside them opens the
newest version again and again and must never see part of a commit.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.storage_figures import write_section
from storage.table import Table
from storage.verify import verify
from tests.storage.collecting_child import BATCH
from tests.storage.make_rows import make_row

WRITERS, COMMITS, KILLS = 4, 1000, 50


def main() -> None:
    """Run it, check it, write the section; any loss or doubling ends with an AssertionError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels"
        Table.create(path)
        started = time.monotonic()
        acknowledged, kills, reads = _collect(path)
        seconds = time.monotonic() - started
        table = Table.open(path)
        rows = COMMITS * BATCH
        assert kills == KILLS and len(acknowledged) == len(set(acknowledged)), (
            "an acknowledged response was asked again"
        )
        keys = _keys(table)
        assert len(keys) == len(set(keys)) == rows and set(keys) == {make_row(n).key for n in range(rows)}
        assert verify(path).problems == () and not list((path / "journal").iterdir())
        for version in range(0, table.version + 1, 25):
            counted = sum(file.rows for file in Table.open(path, version).files())
            assert counted == len(set(_keys(Table.open(path, version))))
        text = (
            f"{date.today()}: {WRITERS} processes, {table.version:,} commits of up to {BATCH} rows, {kills} SIGKILLs\n"
            f"at random instants, {seconds:.0f} s: {rows:,} rows asked, {rows:,} in the table, none twice, no\n"
            f"acknowledged response lost or asked again; every 25th version and {reads:,} reads made meanwhile\n"
            "saw whole commits.\n"
        )
    write_section("storage-kills", f"## The table under SIGKILL\n\n{text}")
    print(text)


def _collect(path: Path) -> tuple[list[int], int, int]:
    dice = random.Random(1)
    share = COMMITS * BATCH // WRITERS
    command = [sys.executable, "-m", "tests.storage.collecting_child", str(path)]
    outputs = [Path(path.parent / f"writer-{n}.out") for n in range(WRITERS)]

    def start(writer: int) -> subprocess.Popen[bytes]:
        with outputs[writer].open("ab") as out:
            return subprocess.Popen([*command, f"run-{writer}", str(writer * share), str(share)], stdout=out)

    children = [start(writer) for writer in range(WRITERS)]
    kills = reads = 0
    while any(child.poll() is None for child in children):
        time.sleep(0.1 + 0.6 * dice.random())
        writer = dice.randrange(WRITERS)
        if kills < KILLS and children[writer].poll() is None:
            children[writer].kill()
            children[writer].wait()
            children[writer] = start(writer)
            kills += 1
        version = Table.open(path).version
        pinned = Table.open(path, version)
        assert sum(file.rows for file in pinned.files()) == len(set(_keys(pinned)))
        reads += 1
    assert all(child.returncode == 0 for child in children)
    acknowledged = [int(line) for out in outputs for line in out.read_text().split("\n") if line]
    return acknowledged, kills, reads


def _keys(table: Table) -> list[str]:
    columns = [pq.read_table(file.path, columns=["key"], partitioning=None)["key"] for file in table.files()]
    return [key for column in columns for key in column.to_pylist()]


if __name__ == "__main__":
    main()
