"""1,000 commits by four processes with 50 SIGKILLs on one table, and what is left of it (section of RESULTS.md).

The processes are the collecting children of the tests: journal, batch, commit, release. A reader beside them opens the
newest version again and again and must never see part of a commit. Afterwards every version is opened and its keys are
compared with its log; a file, which never changes, is read once.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.storage_figures import write_section
from storage.table import DataFile, Table
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
        keys_of: dict[Path, list[str]] = {}
        rows_before = 0
        for version in range(table.version + 1):
            files = Table.open(path, version).files()
            keys = [key for file in files for key in keys_of.get(file.path) or _read(file, keys_of)]
            assert len(set(keys)) == len(keys) == sum(file.rows for file in files), version
            assert rows_before <= len(keys) <= rows_before + BATCH, version
            rows_before = len(keys)
        text = (
            f"{date.today()}: {WRITERS} processes, {table.version:,} commits of up to {BATCH} rows, {kills} SIGKILLs\n"
            f"at random instants, {seconds:.0f} s: {rows:,} rows asked, {rows:,} in the table, none twice, no\n"
            f"acknowledged response lost or asked again; all {table.version + 1:,} versions and {reads:,} reads made\n"
            "meanwhile by a reader in a loop saw whole commits.\n"
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
    kills = 0
    with _reading(path) as reads:
        while any(child.poll() is None for child in children):
            time.sleep(0.1 + 0.6 * dice.random())
            writer = dice.randrange(WRITERS)
            if kills < KILLS and children[writer].poll() is None:
                children[writer].kill()
                children[writer].wait()
                children[writer] = start(writer)
                kills += 1
    assert all(child.returncode == 0 for child in children)
    acknowledged = [int(line) for out in outputs for line in out.read_text().split("\n") if line]
    return acknowledged, kills, len(reads)


@contextmanager
def _reading(path: Path) -> Iterator[list[int]]:
    """Read the newest version in a loop meanwhile; → rows seen by each read. What the reader raises is raised here."""
    stop, seen = threading.Event(), list[int]()

    def read() -> None:
        while not stop.is_set():
            pinned = Table.open(path, Table.open(path).version)
            keys = _keys(pinned)
            assert len(set(keys)) == len(keys) == sum(file.rows for file in pinned.files())
            assert not seen or len(keys) >= seen[-1]
            seen.append(len(keys))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            yield seen
        finally:
            stop.set()
        reader.result()


def _read(file: DataFile, keys_of: dict[Path, list[str]]) -> list[str]:
    with pq.ParquetFile(file.path) as source:
        keys_of[file.path] = source.read(columns=["key"], use_threads=False)["key"].to_pylist()
    return keys_of[file.path]


def _keys(table: Table) -> list[str]:
    return [key for file in table.files() for key in _read(file, {})]


if __name__ == "__main__":
    main()
