import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from storage.display import printable, to_csv, to_json, to_rich, write_parquet
from storage.errors import NotWritable

NASTY = "red \x1b[31mtext\x1b[0m \x9b2J\x07 and \u202eright-to-left\n[bold]next[/bold]"
RESULT = pa.table(
    {
        "text": [NASTY, None],
        "number": pa.array([float("nan"), 1.5]),
        "list": [[1, 2], None],
        "bytes": [b"\xff\x00", b""],
        "time": pa.array([datetime(2026, 11, 1, tzinfo=UTC), None]),
        "huge": pa.array([Decimal(7), None], pa.decimal128(38, 0)),
    }
)


def rich_text(result, limit=10):
    console = Console(width=300, file=io.StringIO(), force_terminal=False)
    console.print(to_rich(result, limit))
    return console.file.getvalue()


def test_no_control_code_reaches_a_terminal():
    shown = rich_text(RESULT)
    assert "red [31mtext[0m 2J and right-to-left[bold]next[/bold]" in shown
    assert not set(shown) & set("\x1b\x9b\x07\u202e")
    assert printable("a\tb\nc", keep="\n") == "ab\nc"


def test_lines_over_the_limit_stay_out_and_long_cells_are_cut():
    long = pa.table({"x": ["a" * 1000] * 5})
    shown = rich_text(long, limit=2)
    assert shown.count("…") == 2 and "a" * 200 not in shown


def test_json_is_strict_and_harmless():
    text = to_json(RESULT)
    assert not set(text) & set("\x1b\x9b\x07")
    first, second = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert first["text"] == NASTY
    assert (first["number"], first["list"], first["bytes"], first["huge"]) == (None, [1, 2], "/wA=", 7)
    assert first["time"] == "2026-11-01T00:00:00+00:00"
    assert second["number"] == 1.5 and second["text"] is None
    assert json.loads(to_json(RESULT.slice(0, 0))) == []


def test_csv_is_read_back():
    header, first, second = csv.reader(io.StringIO(to_csv(RESULT)))
    assert header == RESULT.schema.names
    assert first[0] == printable(NASTY, keep="\n") and first[2] == "[1, 2]"
    assert second == ["", "1.5", "", '""', "", ""]


def test_columns_of_one_name_are_told_apart():
    twins = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    assert json.loads(to_json(twins)) == [{"x": 1, "x_1": 2}]


def test_parquet_goes_to_a_file(tmp_path):
    write_parquet(RESULT, tmp_path / "out.parquet")
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 2
    with pytest.raises(NotWritable):
        write_parquet(RESULT, tmp_path / "out.parquet" / "under.parquet")
