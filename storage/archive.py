"""Raw responses kept beside the rows (`keep_raw = true`), so that they can be read again when a reader was mended.

A Delta table of its own, one file a batch, named by its sha256; a response travels from the journal as it is,
compressed. The price is about a sixth of the bytes that came over the wire, besides the rows.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from storage.data_files import DataFileWriter
from storage.delta_log import DeltaLog, LoggedFile, NewFile, statistics
from storage.errors import TableDamaged, mapped
from storage.journal import PackedResponse, RawResponse, unpacked
from storage.ledgers import committed_sequence
from storage.schema import TIME, table_metadata

_NAMES = ("key", "run_id", "prompt_id")
_TOGETHER = 64
"""Responses of a row group: what is in memory while an archive is written or read."""

ARCHIVE = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("item", pa.binary(), nullable=False),  # JSON that is needed to build the row
        pa.field("status", pa.int32(), nullable=False),
        pa.field("headers", pa.string(), nullable=False),
        pa.field("body", pa.binary(), nullable=False),  # zstd
        pa.field("raw_sha256", pa.string(), nullable=False),  # of the body as it came: what the row names too
        pa.field("received_at", TIME, nullable=False),
        pa.field("usage", pa.string()),
    ]
)


class Archive:
    """The archive of the table whose folder `root` is in; the writing methods want that table held for writing."""

    def __init__(self, root: Path) -> None:
        self.log = DeltaLog(root, ARCHIVE)

    def exists(self) -> bool:
        """Whether any run of the table kept its raw responses."""
        return self.log.exists()

    def files(self) -> list[LoggedFile]:
        """Its files by the log; none where there is no archive."""
        if not self.exists():
            return []
        with mapped(self.log.root):
            return sorted(self.log.files(self.log.open()), key=lambda file: file.relative)

    def append(self, responses: Iterable[PackedResponse], run_id: str, sequence: int) -> int:
        """Keep a journal's batch, exactly once for each (run_id, sequence); durable on return. → how many are new."""
        if not self.exists():
            self.log.create(table_metadata(0))
        opened = self.log.open()
        if committed_sequence(opened, run_id) >= sequence:
            return 0
        rows = iter(responses)
        chunks = (_lines(chunk, run_id) for chunk in iter(lambda: list(islice(rows, _TOGETHER)), []))
        written = self._write(chunks)
        if written is None:
            return 0
        self.log.commit(opened, add=[written], transaction=(run_id, sequence))
        return int(written.statistics["numRecords"])

    def _write(self, chunks: Iterable[pa.Table]) -> NewFile | None:
        """One finished file of these lines; None where there are none."""
        filled = (chunk for chunk in chunks if chunk.num_rows)
        first = next(filled, None)
        if first is None:
            return None
        writer = DataFileWriter(self.log.root, ARCHIVE)
        names = []
        try:
            for chunk in chain([first], filled):
                writer.write(chunk)
                names.append(chunk.select(_NAMES))
            return NewFile(writer.finish(), None, statistics(pa.concat_tables(names)))
        except BaseException:
            writer.abandon()
            raise

    def responses(self, file: LoggedFile) -> Iterator[tuple[str, RawResponse]]:
        """The responses of a file, each with its run. Raises TableDamaged for one that is not as it was kept."""
        for chunk in self._read(file):
            for line in chunk.to_pylist():
                run_id, sha256 = line.pop("run_id"), line.pop("raw_sha256")
                try:
                    response = unpacked(PackedResponse(**line))
                except (zstandard.ZstdError, ValueError) as error:
                    raise TableDamaged(f"{file.path} cannot be read at the key {line['key'][:12]}: {error}.") from error
                if hashlib.sha256(response.body).hexdigest() != sha256:
                    raise TableDamaged(f"{file.path} holds other bytes for the key {line['key'][:12]} than came in.")
                yield run_id, response

    def _read(self, file: LoggedFile) -> Iterator[pa.Table]:
        with mapped(file.path), pq.ParquetFile(file.path, page_checksum_verification=True) as source:
            for number in range(source.num_row_groups):
                yield source.read_row_group(number).select(ARCHIVE.names).cast(ARCHIVE)

    def remove(self, doomed: Callable[[pa.Table], pa.Array], note: Mapping[str, Any], dry_run: bool) -> int:
        """Remove the responses for which `doomed` gives true (it sees keys and runs), in one commit; → how many."""
        removed: list[LoggedFile] = []
        count = 0
        for file in self.files():
            with mapped(file.path):
                names = pq.read_table(file.path, columns=list(_NAMES), partitioning=None)
            here = pc.sum(doomed(names)).as_py() or 0
            if here:
                removed.append(file)
                count += here
        if removed and not dry_run:
            kept = [self._write(part.filter(pc.invert(doomed(part))) for part in self._read(file)) for file in removed]
            rest = [file for file in kept if file is not None]
            self.log.commit(self.log.open(), add=rest, remove=removed, note=note)
        return count


def _lines(responses: list[PackedResponse], run_id: str) -> pa.Table:
    lines = [
        response._asdict()
        | {"run_id": run_id, "raw_sha256": hashlib.sha256(zstandard.decompress(response.body)).hexdigest()}
        for response in responses
    ]
    return pa.Table.from_pylist(lines, schema=ARCHIVE)
