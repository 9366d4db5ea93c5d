"""What the held-out rows are besides numbers: prompt, answer, reference, domain, teacher, licence.

Read again from the row groups that the stream's index names, so that the stream itself carries no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from trainer.index import RowIndex

COLUMNS = ["prompt_id", "mode", "completion", "teacher", "prompt_licence", "label_set", "top_ids"]
ADDED = ["reference", "domain"]


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """One row: `answer` is what the teacher said, for a classification the likeliest label."""

    prompt_id: str
    answer: str
    reference: str | None
    labels: tuple[str, ...]
    domain: str
    teacher: str
    licence: str


def describe(index: RowIndex, rows: Sequence[int]) -> dict[int, HeldOutRow]:
    """Row of the index → what it is, for these rows."""
    blocks = np.searchsorted(index.first_row, np.asarray(rows, dtype=np.int64), side="right") - 1
    found: dict[int, HeldOutRow] = {}
    for number in np.unique(blocks):
        block = index.blocks[number]
        inside = [row for row, of in zip(rows, blocks, strict=True) if of == number]
        with pq.ParquetFile(block.path) as source:
            known = [name for name in COLUMNS + ADDED if name in source.schema_arrow.names]
            table = source.read_row_group(block.group, columns=known)
        for row in inside:
            values = {name: table.column(name)[int(index.row_in_block[row])].as_py() for name in known}
            labels = tuple(values["label_set"] or ())
            best = values["top_ids"][0] if labels and values["top_ids"] else -1
            teacher = values["teacher"]
            found[row] = HeldOutRow(
                prompt_id=values["prompt_id"],
                answer=labels[best] if best >= 0 else values["completion"] or "",
                reference=values.get("reference"),
                labels=labels,
                domain=values.get("domain") or "",
                teacher=teacher["model"] + (f"@{teacher['revision']}" if teacher["revision"] else ""),
                licence=values["prompt_licence"] or "",
            )
    return found
