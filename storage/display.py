"""Query results for people and for pipes: a table in the terminal, CSV, JSON, Parquet.

Whatever a model wrote is stripped of control codes on its way to a terminal or a CSV file; JSON escapes them.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table as RichTable
from rich.text import Text

from storage.errors import mapped

CELL = 200
_DELETE_TO_C1 = re.compile("[\x7f-\x9f]")


def printable(text: str, keep: str = "") -> str:
    """Text without control, format and surrogate characters (escape codes, bidirectional overrides), but for `keep`."""
    return "".join(c for c in text if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def to_rich(result: pa.Table, limit: int) -> RichTable:
    """The first `limit` lines for a terminal; long cells are cut to 200 characters."""
    table = RichTable()
    for column in result.schema:
        number = (
            pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
        )
        table.add_column(Text(printable(column.name)), justify="right" if number else "left")
    for line in _lines(result.slice(0, limit)):
        table.add_row(*(Text(_cell(value)) for value in line))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = printable(value if isinstance(value, str) else _text(value), keep="")
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def _text(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False) if isinstance(value, dict | list | bytes) else str(value)


def to_csv(result: pa.Table) -> str:
    """CSV with a header; lists and structs as JSON, null as nothing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([printable(name) for name in _names(result)])
    for line in _lines(result):
        writer.writerow(["" if value is None else printable(_text(value), keep="\n\t") for value in line])
    return out.getvalue()


def to_json(result: pa.Table) -> str:
    """A JSON list with one object a line; bytes as base64, times as ISO 8601, NaN and infinities as null."""
    lines = (dict(zip(_names(result), (plain(v) for v in line), strict=True)) for line in _lines(result))
    texts = (json.dumps(line, ensure_ascii=False, allow_nan=False) for line in lines)
    body = ",\n".join(_DELETE_TO_C1.sub(lambda c: f"\\u{ord(c[0]):04x}", text) for text in texts)
    return f"[\n{body}\n]\n" if body else "[]\n"


def write_parquet(result: pa.Table, path: Path) -> None:
    """The result as one Parquet file, compressed with zstd. Raises NotWritable or DiskFull."""
    with mapped(path):
        pq.write_table(result, path, compression="zstd")


def _names(result: pa.Table) -> list[str]:
    """Column names, made distinct: `SELECT 1, 1` names both alike."""
    names: list[str] = []
    for name in result.schema.names:
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _lines(result: pa.Table) -> Iterator[tuple[Any, ...]]:
    for batch in result.to_batches(max_chunksize=1000):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def plain(value: Any) -> Any:
    """A value of a result as JSON has it."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int) else str(value)
