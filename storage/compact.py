"""Fewer, larger files with the same rows; and, when asked, the bytes of removed rows gone for good.

Commits grow slow with the number of files, and small files read slowly. The table is held meanwhile: appends wait (what
they would write is safe in their journals), readers do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.data_files import write_data_file
from storage.delta_log import DeltaLog, LoggedFile, NewFile, statistics
from storage.errors import TableDamaged, mapped
from storage.schema import table_metadata
from storage.table import Table, count_tokens

TARGET_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did. `purged_bytes` counts files of earlier versions that were deleted."""

    version: int
    files_before: int
    files_after: int
    rows: int
    purged_files: int = 0
    purged_bytes: int = 0


def compact(path: Path | str, *, target_bytes: int = TARGET_BYTES, purge: bool = False) -> Compaction:
    """Join files of an audit group that are smaller than half of `target_bytes`, in one commit, sorted by prompt.

    With `purge` every file that the new version does not name is deleted: earlier versions then say that they can no
    longer be read. Raises NotWritable, DiskFull, TableDamaged; the table is then as it was.
    """
    table = Table.open(path)
    with table.writing():
        opened = table.log.open()
        files = table.log.files(opened)
        bins = list(_bins(files, target_bytes))
        version = opened.version()
        if bins:
            added = [_joined(table, group) for group in bins]
            removed = [file for group in bins for file in group]
            note = {"operation": "compact", "at": datetime.now(UTC).isoformat()}
            version = table.log.commit(opened, add=added, remove=removed, note=note, same_rows=True)
        purged = _purge(table) if purge else []
        if purged:
            version = table.log.open().version()
    after = table.files()
    rows = sum(file.rows for file in after)
    return Compaction(version, len(files), len(after), rows, len(purged), sum(purged))


def _bins(files: Sequence[LoggedFile], target_bytes: int) -> Iterator[list[LoggedFile]]:
    """Small files of one group, in the order in which their rows were collected, up to the target size together."""
    small = [file for file in files if file.size < target_bytes / 2]
    for group in sorted({str(file.partition) for file in small}):
        current: list[LoggedFile] = []
        for file in sorted((f for f in small if f.partition == group), key=lambda f: (str(f.first), f.relative)):
            if current and sum(f.size for f in current) + file.size > target_bytes:
                if len(current) > 1:
                    yield current
                current = []
            current.append(file)
        if len(current) > 1:
            yield current


def _joined(table: Table, files: Sequence[LoggedFile]) -> NewFile:
    parts = [read_rows(file, table.log) for file in files]
    rows = pa.concat_tables(parts).sort_by(
        [("prompt_id", "ascending"), ("sample_index", "ascending"), ("key", "ascending")]
    )
    return new_data_file(table, rows, files[0].partition)


def read_rows(file: LoggedFile, log: DeltaLog) -> pa.Table:
    """All rows of a file whose bytes are those of its name. Raises TableDamaged: what is rewritten gets a new name."""
    with mapped(file.path):
        with file.path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        if digest != file.path.stem.split("t-")[-1]:
            raise TableDamaged(f"{file.path} was altered since it was written: `potstill verify` names all such files.")
        return pq.read_table(file.path, partitioning=None, schema=log.schema)


def new_data_file(table: Table, rows: pa.Table, group: str | None) -> NewFile:
    """Rows of one audit group as a finished file, to be registered."""
    rows = rows.combine_chunks().replace_schema_metadata(table_metadata(table.mantissa_bits))
    written = write_data_file(table.log.root / f"audit_group={group}", rows, f"{count_tokens(rows)}t-")
    return NewFile(written, group, statistics(rows))


def _purge(table: Table) -> list[int]:
    """Delete what the newest version of each part does not name; → sizes of the deleted files."""
    doomed: list[Path] = []
    archive = [table.archive.log] if table.archive.exists() else []
    for log in (table.log, table.rejects.log, table.run_ledger.log, *archive):
        kept = {file.path for file in log.files(log.open())}
        doomed += [path for name in log.added() if (path := log.root / name) not in kept and path.is_file()]
    if doomed:
        # the note first: a kill in between leaves versions that say why, and a purge that can be repeated
        note = {"operation": "purge", "at": datetime.now(UTC).isoformat()}
        table.log.commit(table.log.open(), note=note)
    sizes = [path.stat().st_size for path in doomed]
    for path in doomed:
        path.unlink()
    return sizes
