"""Columns of a table version, batch by batch: for what is counted or shown, where order does not matter.

The training itself reads through SoftLabelStream; here rows come as the files hold them, a row group at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.query import sql
from storage.table import Table
from trainer.errors import TrainError
from trainer.index import Damage, row_groups


class TableUnfit(TrainError):
    """The table holds nothing that one student can be trained on."""

    exit_code = 2


def column_batches(
    table: Table, columns: Sequence[str], modes: Sequence[str] = (), *, quarantine: float = 0.0
) -> Iterator[pa.RecordBatch]:
    """The named columns of every row of the table's version, or of the rows of some modes.

    Raises RowGroupLost when more than the share `quarantine` of all rows is unreadable.
    """
    wanted = list(columns) if not modes or "mode" in columns else [*columns, "mode"]
    files = table.files()
    damage = Damage(sum(file.rows for file in files), quarantine)
    for file in files:
        for _, part in row_groups(file, wanted, damage):
            for batch in part.to_batches(max_chunksize=1024):
                yield batch.filter(pc.is_in(batch.column("mode"), pa.array(modes))) if modes else batch


def table_tokenizer(
    table: Table, modes: Sequence[str] = (), where: str | None = None, *, quarantine: float = 0.0
) -> str:
    """The sha256 of the one tokenizer that the labels were made with.

    Raises TableUnfit when the table is empty, when rows name no tokenizer, or when they name several.
    """
    names = _distinct(table, "tokenizer_sha256", modes, where, quarantine)
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise TableUnfit(f"No row of {table.path} names the tokenizer of its labels; set [teacher] tokenizer.")
    raise TableUnfit(
        f"{table.path} mixes the labels of {len(names)} tokenizers ({', '.join(name[:12] for name in names)}), "
        "and a student learns from one; choose the rows of one by [data] where."
    )


def table_templates(table: Table, *, quarantine: float = 0.0) -> tuple[str, ...]:
    """The sha256 of each chat template that rows were asked with."""
    return tuple(_distinct(table, "template_sha256", quarantine=quarantine))


def table_labels(table: Table, where: str | None = None, *, quarantine: float = 0.0) -> tuple[str, ...]:
    """The labels that a classifier learns: the one label set of the rows of classify.

    Raises TableUnfit when there are no such rows, or several sets.
    """
    found = _distinct(table, "label_set", ("classify",), where, quarantine)
    if len(found) == 1:
        return tuple(found[0])
    if not found:
        raise TableUnfit(f"{table.path} has no rows of classify, which a classifier learns from; see [student] task.")
    raise TableUnfit(
        f"{table.path} holds {len(found)} label sets, and a classifier learns one; choose by [data] where, "
        f'for instance where = "label_set = {list(found[0])}".'
    )


def _distinct(
    table: Table, column: str, modes: Sequence[str] = (), where: str | None = None, quarantine: float = 0.0
) -> list[Any]:
    """The values of a column that are not null, in order. A condition is SQL's to judge, which wants a whole table."""
    if where is None:
        found: set[Any] = set()
        for batch in column_batches(table, [column], modes, quarantine=quarantine):
            values = batch.column(column).drop_null()
            strings = pa.types.is_string(values.type)
            found.update(values.unique().to_pylist() if strings else map(tuple, values.to_pylist()))
        return sorted(found)
    conditions = [f"{column} IS NOT NULL", f"({where})"]
    conditions += [f"mode IN ({', '.join(repr(mode) for mode in modes)})"] if modes else []
    query = f"SELECT DISTINCT {column} AS value FROM soft_labels WHERE {' AND '.join(conditions)} ORDER BY value"
    return list(sql(table, query).column("value").to_pylist())
