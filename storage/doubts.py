"""Rows whose endpoint turned out to be another teacher than before: flagged, not removed, for they may still be right.

A doubt is kept beside the rows before anything is flagged, so that rows that are committed later, and after a crash,
get the same flag.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.compact import new_data_file, read_rows
from storage.rows import Row
from storage.table import Table

ENDPOINT_CHANGED = "endpoint_changed"
"""The flag of rows that an endpoint gave since it was last known to hold the teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """The rows of a run from the endpoint of a card, received from `since` to `until`, are in doubt for `reason`."""

    run_id: str
    endpoint_card: str
    since: datetime
    until: datetime
    reason: str

    def covers(self, row: Row) -> bool:
        """Whether a row is in doubt."""
        from_there = (row.run_id, row.teacher.endpoint_card) == (self.run_id, self.endpoint_card)
        return from_there and self.since <= row.collected_at <= self.until


def doubts_of(table: Table, run_id: str | None = None) -> list[Doubt]:
    """The doubts that a table keeps, of one run or of all."""
    found = []
    for record in table.doubts():
        times = {name: datetime.fromisoformat(record[name]) for name in ("since", "until")}
        found.append(Doubt(**{**record, **times}))
    return [doubt for doubt in found if run_id in (None, doubt.run_id)]


def keep_doubt(table: Table, doubt: Doubt) -> None:
    """Keep a doubt; durable on return."""
    table.save_doubt({**asdict(doubt), "since": doubt.since.isoformat(), "until": doubt.until.isoformat()})


def flagged(row: Row, doubts: Iterable[Doubt]) -> Row:
    """The row, with the flag when one of the doubts covers it."""
    if ENDPOINT_CHANGED in row.flags or not any(doubt.covers(row) for doubt in doubts):
        return row
    return replace(row, flags=(*row.flags, ENDPOINT_CHANGED))


def flag_rows(table: Table, doubt: Doubt) -> int:
    """Flag the committed rows that a doubt covers, in one commit; → how many had not been. It may be repeated.

    Raises TableDamaged, NotWritable, DiskFull.
    """
    with table.writing():
        opened = table.log.open()
        count, add, remove = 0, [], []
        for file in table.log.files(opened):
            if file.first is not None and file.last is not None and not _meets(doubt, file.first, file.last):
                continue
            rows = read_rows(file, table.log)
            flags, here = _flags(rows, doubt)
            if here:
                count += here
                place = rows.schema.get_field_index("flags")
                rows = rows.set_column(place, rows.schema.field(place), flags)
                add.append(new_data_file(table, rows, file.partition))
                remove.append(file)
        if count:
            note = {"operation": "flag", "flag": ENDPOINT_CHANGED, "reason": doubt.reason}
            table.log.commit(opened, add=add, remove=remove, note=note | {"at": datetime.now(UTC).isoformat()})
        return count


def _meets(doubt: Doubt, first: datetime, last: datetime) -> bool:
    return first <= doubt.until and doubt.since <= last


def _flags(rows: pa.Table, doubt: Doubt) -> tuple[pa.Array, int]:
    """The column of flags with the new ones, and how many these are."""
    at, bounds = rows.column("collected_at"), [pa.scalar(time, rows.schema.field("collected_at").type)
                                               for time in (doubt.since, doubt.until)]  # fmt: skip
    cards = pc.equal(pc.struct_field(rows.column("teacher"), "endpoint_card"), doubt.endpoint_card)
    covered: Any = pc.and_(cards, pc.equal(rows.column("run_id"), doubt.run_id))
    covered = pc.and_(covered, pc.and_(pc.greater_equal(at, bounds[0]), pc.less_equal(at, bounds[1])))
    flags: list[list[str]] = rows.column("flags").to_pylist()
    count = 0
    for line, doubtful in enumerate(covered.to_pylist()):
        if doubtful and ENDPOINT_CHANGED not in flags[line]:
            flags[line] = [*flags[line], ENDPOINT_CHANGED]
            count += 1
    return pa.array(flags, rows.schema.field("flags").type), count
