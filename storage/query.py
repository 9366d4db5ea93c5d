"""SQL over a table version: three views, the records, a few macros; one SELECT, within its limits of time and memory.

The files are those of the log, read through Arrow, so that DuckDB itself needs no access to any file.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from storage.errors import QueryFailed, QueryTimeout, TableDamaged, mapped
from storage.sandbox import check_query, connect, lock
from storage.schema import REJECTS, RUNS, SOFT_LABELS, TEACHER, TIME
from storage.table import Table
from storage.views import VIEWS, statements

SECONDS = 600.0
MEMORY_MB = 2048
REPEATED = [f"teacher.{field.name}" for field in TEACHER]
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
    table = path if isinstance(path, Table) else Table.open(path, version)
    connection = connect(f"{memory_mb}MB")
    with connection, _interrupted_after(connection, seconds) as timed_out:
        try:
            used = check_query(connection, query, set(VIEWS))
            with mapped(table.path):
                lock(connection, _sources(table, used), statements())
            return _result(connection, query, memory_mb)
        except (duckdb.Error, pa.ArrowException, OSError, RuntimeError) as error:
            raise _named(error, seconds if timed_out.is_set() else None) from error


def _sources(table: Table, used: set[str]) -> dict[str, pa.Table | pads.Dataset]:
    """What a query reads; a part of the table that it does not name is not opened."""
    labels = {"soft_labels", "tokens", "candidates"} & used
    return {
        "soft_labels": dataset([f.path for f in table.files()] if labels else [], SOFT_LABELS),
        "runs": dataset(table.run_ledger.paths() if "runs" in used else [], RUNS),
        "rejects": dataset(table.rejects.paths() if "rejects" in used else [], REJECTS),
        "decisions": _decisions(table) if "decisions" in used else DECISIONS.empty_table(),
    }


def dataset(files: list[Path], schema: pa.Schema) -> pa.Table | pads.Dataset:
    """An Arrow dataset of exactly these files, with what repeats much read as dictionaries."""
    if not files:
        return schema.empty_table()
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise TableDamaged(f"The data file {missing} is missing: `potstill verify` names what is damaged.")
    form = pads.ParquetFileFormat(
        read_options=pads.ParquetReadOptions(dictionary_columns=REPEATED),
        default_fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True),
    )
    found = pads.dataset([str(file) for file in files], format=form)
    added = [field for field in schema if field.name not in found.schema.names]  # the first file may be an older one
    return found.replace_schema(pa.schema([*found.schema, *added])) if added else found


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


def _named(error: Exception, seconds: float | None) -> QueryFailed | QueryTimeout | TableDamaged:
    text = str(error).strip()
    if seconds is not None:
        return QueryTimeout(f"The query was stopped after {seconds:g} s: filter more, or give it more time.")
    if "Out of Memory" in text or "failed to allocate" in text:
        return QueryFailed("The query needs more memory than it may use: filter more, or select fewer columns.")
    if any(
        sign in text for sign in ("CRC checksum", "arquet magic bytes", "arquet file", "Couldn't deserialize thrift")
    ):
        return TableDamaged(f"A data file cannot be read ({text.splitlines()[0][:200]}): run `potstill verify`.")
    return QueryFailed(f"The query failed: {text}")
