"""Columns of a table version, batch by batch: for what is counted or shown, where order does not matter.

The training itself reads through SoftLabelStream; here rows come as the files hold them, a row group at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.query import sql
from storage.table import Table
from trainer.errors import TrainError


class TableUnfit(TrainError):
    """The table holds nothing that one student can be trained on."""

    exit_code = 2


def column_batches(table: Table, columns: Sequence[str], modes: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The named columns of every row of the table's version, or of the rows of some modes."""
    wanted = list(columns) if not modes or "mode" in columns else [*columns, "mode"]
    for file in table.files():
        with pq.ParquetFile(file.path) as parquet:
            for batch in parquet.iter_batches(columns=wanted, batch_size=1024):
                yield batch.filter(pc.is_in(batch.column("mode"), pa.array(modes))) if modes else batch


def table_tokenizer(table: Table, modes: Sequence[str] = (), where: str | None = None) -> str:
    """The sha256 of the one tokenizer that the labels were made with.

    Raises TableUnfit when the table is empty, when rows name no tokenizer, or when they name several.
    """
    names = _distinct(table, "tokenizer_sha256", modes, where)
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise TableUnfit(f"No row of {table.path} names the tokenizer of its labels; set [teacher] tokenizer.")
    raise TableUnfit(
        f"{table.path} mixes the labels of {len(names)} tokenizers ({', '.join(name[:12] for name in names)}), "
        "and a student learns from one; choose the rows of one by [data] where."
    )


def table_templates(table: Table) -> tuple[str, ...]:
    """The sha256 of each chat template that rows were asked with."""
    return tuple(_distinct(table, "template_sha256"))


def table_labels(table: Table, where: str | None = None) -> tuple[str, ...]:
    """The labels that a classifier learns: the one label set of the rows of classify.

    Raises TableUnfit when there are no such rows, or several sets.
    """
    found = _distinct(table, "label_set", ("classify",), where)
    if len(found) == 1:
        return tuple(found[0])
    if not found:
        raise TableUnfit(
            f"{table.path} has no rows of classify to train a classifier on; collect some, or set [student] task."
        )
    raise TableUnfit(
        f"{table.path} holds {len(found)} label sets, and a classifier learns one; choose by [data] where, "
        f'for instance where = "label_set = {list(found[0])}".'
    )


def _distinct(table: Table, column: str, modes: Sequence[str] = (), where: str | None = None) -> list[Any]:
    """The values of a column that are not null, in order."""
    conditions = [f"{column} IS NOT NULL"]
    conditions += [f"mode IN ({', '.join(repr(mode) for mode in modes)})"] if modes else []
    conditions += [f"({where})"] if where else []
    query = f"SELECT DISTINCT {column} AS value FROM soft_labels WHERE {' AND '.join(conditions)} ORDER BY value"
    return list(sql(table, query).column("value").to_pylist())
