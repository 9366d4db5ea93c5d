"""Columns of a table version, batch by batch: for what is counted or shown, where order does not matter.

The training itself reads through SoftLabelStream; here rows come as the files hold them, a row group at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from storage.table import Table
from trainer.errors import TrainError


class TableUnfit(TrainError):
    """The table holds nothing that one student can be trained on."""

    exit_code = 2


def column_batches(table: Table, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The named columns of every row of the table's version."""
    for file in table.files():
        with pq.ParquetFile(file.path) as parquet:
            yield from parquet.iter_batches(columns=list(columns), batch_size=1024)


def table_tokenizer(table: Table) -> str:
    """The sha256 of the one tokenizer that the labels were made with.

    Raises TableUnfit when the table is empty, when rows name no tokenizer, or when they name several.
    """
    names = _distinct(table, "tokenizer_sha256")
    if len(names) == 1:
        return names[0]
    if not names:
        raise TableUnfit(f"No row of {table.path} names the tokenizer of its labels; set [teacher] tokenizer.")
    raise TableUnfit(
        f"{table.path} mixes the labels of {len(names)} tokenizers ({', '.join(name[:12] for name in names)}), "
        "and a student learns from one; train on a table for each."
    )


def table_templates(table: Table) -> tuple[str, ...]:
    """The sha256 of each chat template that rows were asked with."""
    return tuple(_distinct(table, "template_sha256"))


def _distinct(table: Table, column: str) -> list[str]:
    names: set[str] = set()
    for batch in column_batches(table, [column]):
        names.update(name for name in batch.column(column).unique().to_pylist() if name is not None)
    return sorted(names)
