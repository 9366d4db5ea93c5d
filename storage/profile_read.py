"""The rows that a profile looks at: all of a version, or a fixed sample of a large one, with their texts.

The sample is the rows with the smallest keys: a key is a digest, so that is a random choice which stays the same.
Candidates are measured file by file and let go; only texts and a few numbers a row are held.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from storage.errors import mapped
from storage.rows import Row, rows_from_arrow
from storage.table import Table

ROWS = 20_000
"""Rows that are looked at; a share of 1 % is then known to ±0.14 points."""
BATCH = 256


@dataclass(frozen=True, slots=True)
class Text:
    """What a person would read of a row, and where the row comes from."""

    key: str
    prompt_id: str
    prompt: str
    answer: str
    finish_reason: str | None
    flags: tuple[str, ...]
    domain: str | None
    source: tuple[tuple[str, str], ...]
    """(what it is grouped by, the group): teacher, run, endpoint, engine, day."""


def rows(table: Table, most: int = ROWS) -> Iterator[Row]:
    """At most `most` rows of the table's version, in the order of its files."""
    files = table.files()
    last = None
    if sum(file.rows for file in files) > most:
        keys: list[str] = []
        for file in files:
            with mapped(file.path):
                keys = heapq.nsmallest(most, [*keys, *pq.read_table(file.path, columns=["key"])["key"].to_pylist()])
        last = keys[-1]
    for file in files:
        with mapped(file.path), pq.ParquetFile(file.path) as source:
            for batch in source.iter_batches(batch_size=BATCH):
                chosen = batch if last is None else batch.filter([key <= last for key in batch["key"].to_pylist()])
                if chosen.num_rows:
                    yield from rows_from_arrow(chosen)


def text(row: Row) -> Text:
    """The texts of a row. In `score` without a completion the prompt is what was scored."""
    prompt = row.prompt if row.messages is None else "\n".join(message.content for message in row.messages)
    answer = row.completion
    if answer is None and row.mode == "score":
        prompt, answer = "", prompt
    return Text(
        key=row.key,
        prompt_id=row.prompt_id,
        prompt=prompt or "",
        answer=answer or "",
        finish_reason=row.finish_reason,
        flags=row.flags,
        domain=row.domain,
        source=_source(row),
    )


def _source(row: Row) -> tuple[tuple[str, str], ...]:
    teacher = row.teacher
    found = {
        "teacher": teacher.model + (f"@{teacher.revision}" if teacher.revision else ""),
        "run": row.run_id,
        "endpoint": (teacher.endpoint_card or "")[:12],
        "server": " ".join(part for part in (teacher.served_by, teacher.engine, teacher.engine_version) if part),
        "day": row.collected_at.date().isoformat(),
    }
    return tuple((name, value) for name, value in found.items() if value)
