"""SQL over a table version: three views, the records, a few macros; one SELECT, within its limits of time and memory.

The files are those of the log, which DuckDB sees through a file system of ours and no other (checked_files.py).
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from storage.checked_files import CheckedFiles
from storage.errors import QueryFailed, QueryTimeout, StorageError, TableDamaged, mapped
from storage.pruning import files_wanted
from storage.sandbox import Checked, check_query, connect, lock
from storage.schema import REJECTS, RUNS, SOFT_LABELS, TIME
from storage.table import Table
from storage.views import VIEWS, statements

SECONDS = 600.0
MEMORY_MB = 2048
LABEL_VIEWS = {"soft_labels", "tokens", "candidates"}
SCHEMAS = {"soft_labels": SOFT_LABELS, "runs": RUNS, "rejects": REJECTS}
DECISIONS = pa.schema(
    [
        ("digest", pa.string()),
        ("action", pa.string()),
        ("verdict", pa.string()),
        ("bundle", pa.string()),
        ("decided_at", TIME),
        ("record", pa.string()),
    ]
)


def sql(
    path: Path | str | Table,
    query: str,
    *,
    version: int | None = None,
    seconds: float = SECONDS,
    memory_mb: int = MEMORY_MB,
) -> pa.Table:
    """Run one SELECT over a table (its newest version, or `version`) and return the result.

    `memory_mb` bounds what DuckDB works with and, again, the size of the result. Raises QueryRefused, QueryFailed,
    QueryTimeout, and what opening the table raises.
    """
    with ThreadPoolExecutor(1) as beside:  # a database takes 25 ms to start, as long as all else before the query
        starting = beside.submit(connect, f"{memory_mb}MB")
        table = path if isinstance(path, Table) else Table.open_pinned(path, version)
    connection, files = starting.result(), None
    with connection, _interrupted_after(connection, seconds) as timed_out:
        try:
            asked = check_query(connection, query, set(VIEWS))
            with mapped(table.path):
                sources, files = _sources(table, asked, connection)
                lock(connection, *sources, files)
            return _result(connection, query, memory_mb)
        except (duckdb.Error, pa.ArrowException, OSError, RuntimeError) as error:
            raise _named(error, seconds if timed_out.is_set() else None, files) from error


def _sources(
    table: Table, asked: Checked, connection: Any
) -> tuple[tuple[dict[str, pa.Table], list[str]], CheckedFiles]:
    """Tables and statements that make the views that a query uses, and the files they read."""
    used = asked.names
    paths: dict[str, list[Path]] = {}
    older = False
    if LABEL_VIEWS & used:
        logged, older = table.files_to_query()
        logged = files_wanted(connection, asked.nodes, LABEL_VIEWS, logged, table.groups.read)
        paths["soft_labels"] = [file.path for file in logged]
    if "runs" in used:
        paths["runs"] = table.run_ledger.paths()
    if "rejects" in used:
        paths["rejects"] = table.rejects.paths()
    files = CheckedFiles([path for part in paths.values() for path in part])
    names = iter(files.names)
    tables, views = {"decisions": _decisions(table)} if "decisions" in used else {}, []
    for view, part in paths.items():
        uneven = older and view == "soft_labels"
        if uneven or not part:
            tables[f"empty_{view}"] = SCHEMAS[view].empty_table()
        views.append(f"CREATE VIEW {view} AS {_scan(view, [next(names) for _ in part], uneven)}")
    return (tables, [*views, *statements(used)]), files


def _scan(view: str, names: list[str], uneven: bool) -> str:
    """SQL that reads these files; where some may lack columns, by name and beside an empty table that has them all."""
    if not names:
        return f"FROM empty_{view}"
    if not uneven:
        return f"FROM read_parquet({names}, hive_partitioning = false)"
    scan = f"FROM read_parquet({names}, hive_partitioning = false, union_by_name = true)"
    return f"FROM empty_{view} UNION ALL BY NAME {scan}"


def _decisions(table: Table) -> pa.Table:
    lines = [
        {
            "digest": decision.digest,
            "action": decision.action,
            "verdict": decision.verdict,
            "bundle": decision.bundle,
            "decided_at": decision.decided_at,
            "record": decision.to_json(),
        }
        for decision in table.decisions()
    ]
    return pa.Table.from_pylist(lines, schema=DECISIONS)


def _result(connection: Any, query: str, memory_mb: int) -> pa.Table:
    reader = connection.sql(query).to_arrow_reader(10_000)
    batches, size = [], 0
    for batch in reader:
        size += batch.nbytes
        if size > memory_mb * 2**20:
            raise QueryFailed(f"The result is larger than {memory_mb} MB: select fewer columns, or add a LIMIT.")
        batches.append(batch)
    return pa.Table.from_batches(batches, schema=reader.schema)


@contextmanager
def _interrupted_after(connection: Any, seconds: float) -> Iterator[threading.Event]:
    ended, timed_out = threading.Event(), threading.Event()

    def watch() -> None:
        # an interrupt between two steps of the query is lost, so it is repeated until the query has ended
        pause = seconds
        while not ended.wait(pause):
            timed_out.set()
            connection.interrupt()
            pause = 0.05

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield timed_out
    finally:
        ended.set()
        watcher.join()


def _named(error: Exception, seconds: float | None, files: CheckedFiles | None) -> StorageError:
    text = str(error).strip()
    if files is not None and files.damage is not None:
        return TableDamaged(files.damage)
    if seconds is not None:
        return QueryTimeout(f"The query was stopped after {seconds:g} s: filter more, or give it more time.")
    if "Out of Memory" in text or "failed to allocate" in text:
        return QueryFailed("The query needs more memory than it may use: filter more, or select fewer columns.")
    if any(
        sign in text
        for sign in ("arquet magic bytes", "arquet file", "Couldn't deserialize thrift", "TProtocolException")
    ):
        return TableDamaged(f"A data file cannot be read ({text.splitlines()[0][:200]}): run `potstill verify`.")
    return QueryFailed(f"The query failed: {text}")
