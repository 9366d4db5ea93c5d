"""Rows put in place of others that were made from the same responses: one Delta commit, the old version still readable.

Only what really changed is written again. A response counts for the row whose `raw_sha256` it has, or for the reject of
its key and run, and for nothing else: what was taken down, or came from another run, does not come back by it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.compact import new_data_file, read_rows
from storage.delta_log import LoggedFile, NewFile
from storage.errors import mapped
from storage.ledgers import Reject, rejects_to_arrow
from storage.rows import Row, rows_to_arrow
from storage.selection import selected
from storage.table import Table

_TOGETHER_ROWS = 5_000
_TOGETHER_VALUES = 4_000_000
_OPEN_FILES = 2  # rows of a batch lie in one or two files, also after files were joined


@dataclass(frozen=True, slots=True)
class Replaced:
    """What a replacement did, and the version that it left.

    Of `read` outcomes so many rows `changed`, were rejects that `became_rows` or rows that `became_rejects`;
    `unmatched` ones belong to nothing that the table has.
    """

    version: int
    read: int
    changed: int
    became_rows: int
    became_rejects: int
    unmatched: int


def replace_rows(table: Table, outcomes: Iterable[Row | Reject], note: Mapping[str, Any]) -> Replaced:
    """Put each outcome in the place of what was made from the same response before; appends wait meanwhile.

    It may be repeated when it was cut short. Raises TableDamaged, NotWritable, DiskFull, and what `outcomes` raises.
    """
    with table.writing():
        work = _Replacement(table)
        for batch in _batches(outcomes):
            work.take(batch)
        return work.commit(note)


def _batches(outcomes: Iterable[Row | Reject]) -> Iterator[list[Row | Reject]]:
    batch: list[Row | Reject] = []
    values = 0
    for outcome in outcomes:
        batch.append(outcome)
        labels = outcome.labels if isinstance(outcome, Row) else None
        values += 0 if labels is None else int(labels.top_ids.size + labels.token_ids.size)
        if len(batch) >= _TOGETHER_ROWS or values >= _TOGETHER_VALUES:
            yield batch
            batch, values = [], 0
    if batch:
        yield batch


class _Replacement:
    """A replacement in the making. Where each row lies is held meanwhile: some 200 MB for a million rows."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._opened = table.log.open()
        self._bits = table.mantissa_bits
        self._files = table.log.files(self._opened)
        self._places = {
            bytes.fromhex(key[:32]): number << 32 | line
            for number, file in enumerate(self._files)
            for line, key in enumerate(_columns(file.path, "key").column("key").to_pylist())
        }
        self._rejects = {
            (line["key"], line["run_id"])
            for path in table.rejects.paths()
            for line in _columns(path, "key", "run_id").to_pylist()
        }
        self._rows_of = lru_cache(_OPEN_FILES)(lambda number: read_rows(self._files[number], table.log))
        self._fresh: list[NewFile] = []
        self._doomed: dict[int, set[str]] = {}
        self._settled: set[str] = set()
        self._new_rejects: list[Reject] = []
        self._read = self._changed = self._became_rows = self._unmatched = 0

    def take(self, batch: list[Row | Reject]) -> None:
        """Sort outcomes into what changes nothing and what does, and write the rows that do."""
        self._read += len(batch)
        rows = [one for one in batch if isinstance(one, Row)]
        arrow = rows_to_arrow(rows, mantissa_bits=self._bits)
        changed = [row for line, row in enumerate(rows) if self._counts(row, arrow.slice(line, 1))]
        for one in batch:
            if isinstance(one, Reject):
                self._take_reject(one)
        self._fresh += self._table.new_files(changed, self._bits)

    def _counts(self, row: Row, new: pa.Table) -> bool:
        """Whether a row must be written: it is another than before, or there was none."""
        old = self._old(row.key, row.raw_sha256)
        if old is None:
            if bytes.fromhex(row.key[:32]) in self._places or (row.key, row.run_id) not in self._rejects:
                self._unmatched += 1
                return False
            self._settled.add(row.key)
            self._became_rows += 1
            return True
        if (row.key, row.run_id) in self._rejects:  # an earlier replacement was cut short before it removed this one
            self._settled.add(row.key)
        number, rows = old
        if _same(rows, new.select(rows.schema.names)):
            return False
        self._doomed.setdefault(number, set()).add(row.key)
        self._changed += 1
        return True

    def _take_reject(self, reject: Reject) -> None:
        old = self._old(reject.key, hashlib.sha256(reject.raw).hexdigest())
        if old is not None:
            self._doomed.setdefault(old[0], set()).add(reject.key)
            self._new_rejects.append(reject)
        elif (reject.key, reject.run_id) not in self._rejects:
            self._unmatched += 1

    def _old(self, key: str, raw_sha256: str | None) -> tuple[int, pa.Table] | None:
        """The file and the row that was made from the same response; None where there is none."""
        place = self._places.get(bytes.fromhex(key[:32]))
        if place is None:
            return None
        number, line = place >> 32, place & 0xFFFFFFFF
        row = self._rows_of(number).slice(line, 1)
        return (number, row) if row.column("raw_sha256")[0].as_py() == raw_sha256 else None

    def commit(self, note: Mapping[str, Any]) -> Replaced:
        """New rejects first, then all rows at once, then the rejects that became rows: repeated, it ends the same."""
        table, version = self._table, self._opened.version()
        rejects = [one for one in self._new_rejects if (one.key, one.run_id) not in self._rejects]
        if rejects:
            table.rejects.append(rejects_to_arrow(rejects))
        if self._fresh or self._doomed:
            rest = [self._rest(self._files[number], keys) for number, keys in self._doomed.items()]
            version = table.log.commit(
                self._opened,
                add=[*self._fresh, *(file for file in rest if file is not None)],
                remove=[self._files[number] for number in self._doomed],
                note=note,
            )
        if self._settled:
            table.rejects.remove(lambda lines: selected(lines, self._settled), note, dry_run=False)
        return Replaced(
            version=version,
            read=self._read,
            changed=self._changed,
            became_rows=self._became_rows,
            became_rejects=len(self._new_rejects),
            unmatched=self._unmatched,
        )

    def _rest(self, file: LoggedFile, keys: set[str]) -> NewFile | None:
        rows = read_rows(file, self._table.log)
        kept = rows.filter(pc.invert(selected(rows, keys)))
        return new_data_file(self._table, kept, file.partition) if kept.num_rows else None


def _columns(path: Path, *names: str) -> pa.Table:
    with mapped(path):
        return pq.read_table(path, columns=list(names), partitioning=None, page_checksum_verification=True)


def _same(one: pa.Table, two: pa.Table) -> bool:
    """Whether two rows are equal, where unknown log-probabilities (NaN) are equal too."""
    return bool(one.equals(two)) or repr(one.to_pylist()) == repr(two.to_pylist())
