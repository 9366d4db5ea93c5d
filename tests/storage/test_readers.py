"""The three-line examples of docs/storage.md, run as they stand there."""

import re
from pathlib import Path

import pytest

from storage.table import Table
from tests.storage.make_rows import make_rows

PAGE = Path(__file__).parents[2] / "docs" / "storage.md"
EXAMPLES = dict(re.findall(r"^### ([^\n]+)\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("reader", ["DuckDB", "Polars", "pyarrow"])
def test_other_readers_see_the_table(reader, tmp_path, monkeypatch):
    if reader == "Polars":
        pytest.importorskip("polars")
    monkeypatch.chdir(tmp_path)
    table = Table.create("data/soft_labels")
    table.append(make_rows(0, 4), writer="w", sequence=0)
    table.append(make_rows(4, 2), writer="w", sequence=1)
    names: dict = {}
    exec(EXAMPLES[reader], names)
    assert names["rows"] == 6 and names["tokens"] == 48
    assert len(EXAMPLES[reader].strip().splitlines()) <= 6
