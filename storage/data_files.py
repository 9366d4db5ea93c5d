"""Parquet files named by the sha256 of their content, durable once they have their name.

The same rows give the same bytes and so the same name: writing and registering a file twice changes nothing. Encodings
are chosen for numbers that are read often: byte-stream-split without dictionary, row groups of about 2^21 candidates.
"""

import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CANDIDATES_PER_GROUP = 2**21
"""64 rows of 512 tokens at k = 64: larger groups cost memory and shuffling speed, smaller ones only requests."""
MOST_ROWS_PER_GROUP = 2**14
"""Bounds the texts of a group. Fewer short rows make large footers: 1 M rows of 4 tokens took 52 MB at 2^12 rows
a group, 43 MB at 2^14, and a filter over them half the time."""

UNIQUE_TEXT = {"key", "prompt", "completion", "reasoning", "raw", "config", "response_id", "raw_sha256"}
WITH_STATISTICS = {"key", "audit_group", "run_id", "prompt_id", "sample_index", "collected_at", "k", "rejected_at"}
WITH_STATISTICS |= {"mean_entropy", "mean_tail_mass", "nll"}


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file."""

    path: Path
    size: int
    sha256: str


class DataFileWriter:
    """Writes one file piece by piece; it appears under its name only when finished, synced with its folder."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        make_folder(folder)
        self._folder = folder
        self._partial = folder / f".{uuid.uuid4().hex}.partial"
        self._sink = _Hashing(self._partial)
        self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), schema, **writer_options(schema))

    def write(self, table: pa.Table) -> None:
        """Append rows, cut into row groups by their number of candidates."""
        self._writer.write_table(table, row_group_size=rows_per_group(table))

    def finish(self, prefix: str = "") -> Written:
        """Close, sync and name the file `<prefix><sha256>.parquet`."""
        self._writer.close()
        size, digest = self._sink.finish()
        path = self._folder / f"{prefix}{digest}.parquet"
        self._partial.rename(path)
        sync_folder(self._folder)
        return Written(path, size, digest)

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._sink.close()
        self._partial.unlink(missing_ok=True)


def write_data_file(folder: Path, table: pa.Table, prefix: str = "") -> Written:
    """One table as one finished file; nothing is left of it when that fails."""
    writer = DataFileWriter(folder, table.schema)
    try:
        writer.write(table)
        return writer.finish(prefix)
    except BaseException:
        writer.abandon()
        raise


class _Hashing:
    """A file that hashes what it is given; `pa.PythonFile` asks for these methods."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> tuple[int, str]:
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self.close()
        return size, self._digest.hexdigest()

    def close(self) -> None:
        self.closed = True
        self._file.close()


def rows_per_group(table: pa.Table) -> int:
    """Rows of one row group; 4,096 for tables without candidates."""
    if "top_ids" not in table.schema.names or table.num_rows == 0:
        return 4096
    candidates = sum(len(chunk.values) for chunk in table.column("top_ids").chunks) / table.num_rows
    return int(min(max(CANDIDATES_PER_GROUP / max(candidates, 1.0), 1), MOST_ROWS_PER_GROUP))


def writer_options(schema: pa.Schema) -> dict[str, Any]:
    """How pyarrow writes our files, by leaf column."""
    leaves = [leaf for column in schema for leaf in _leaves(column)]
    split = [path for path, type_ in leaves if pa.types.is_floating(type_) or (".list." in path and _is_int(type_))]
    words = [path for path, type_ in leaves if pa.types.is_string(type_) and path not in UNIQUE_TEXT]
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": words,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        "write_statistics": [path for path, _ in leaves if path in WITH_STATISTICS],
        "data_page_size": 1 << 20,
        "write_page_checksum": True,
    }


def _is_int(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_))


def _leaves(column: pa.Field, prefix: str = "") -> list[tuple[str, pa.DataType]]:
    path, type_ = prefix + column.name, column.type
    if pa.types.is_struct(type_):
        return [leaf for child in type_ for leaf in _leaves(child, path + ".")]
    if pa.types.is_list(type_):
        return _leaves(type_.value_field, path + ".list.")
    return [(path, type_)]


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, each synced into the one that holds it, so that it survives a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_once(path: Path, data: bytes) -> None:
    """Write a small file under a name that its content decides; one that is there already is left alone."""
    if path.exists():
        return
    make_folder(path.parent)
    partial = path.parent / f".{uuid.uuid4().hex}.partial"
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
