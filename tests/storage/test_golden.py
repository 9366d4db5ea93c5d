"""Tables of every released schema version are read as they were; they are never written again."""

import json
import shutil
from pathlib import Path

import deltalake
import pytest

from storage.compact import compact
from storage.display import to_json
from storage.schema import ADDED, SCHEMA_VERSION
from storage.table import Table
from storage.verify import verify
from tests.storage.make_rows import make_rows

DATA = Path(__file__).parent / "data"


def close(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, rel=1e-6) if isinstance(a, float) else a == b


@pytest.fixture(params=range(1, SCHEMA_VERSION + 1))
def golden(request, tmp_path):
    return Path(shutil.copytree(DATA / f"golden_v{request.param}", tmp_path / "labels"))


@pytest.mark.parametrize("view", ["soft_labels", "tokens", "candidates", "runs", "rejects"])
def test_the_views_show_what_they_showed(golden, view):
    shown = json.loads(to_json(Table.open(golden).sql(f"SELECT * FROM {view} ORDER BY ALL")))
    expected = json.loads((golden / f"expected_{view}.json").read_text())
    if view == "soft_labels":
        assert all(line.pop(name) is None for line in shown for name in ADDED)
    assert expected and close(shown, expected)


def test_an_old_table_is_whole_and_can_be_written(golden):
    assert verify(golden).problems == ()
    table = Table.open(golden)
    rows = sum(file.rows for file in table.files())
    assert table.append(make_rows(0, 5), writer="new", sequence=0).duplicates >= 1
    assert sum(file.rows for file in table.files()) > rows
    assert verify(golden).problems == ()


def test_columns_added_since_come_with_the_first_rows_that_are_written(golden):
    """Old and new files of one table are read as one, by SQL and by other readers of the log."""
    table = Table.open(golden)
    old = sum(file.rows for file in table.files())
    table.append(make_rows(900, 1, domain="sea", reference="salt"), writer="new", sequence=0)
    query = "SELECT domain, reference, count(*) AS n FROM soft_labels GROUP BY ALL ORDER BY n"
    expected = [{"domain": "sea", "reference": "salt", "n": 1}, {"domain": None, "reference": None, "n": old}]
    assert table.sql(query).to_pylist() == expected
    compact(golden, target_bytes=1 << 30)
    assert Table.open(golden).sql(query).to_pylist() == expected
    plain = deltalake.DeltaTable(golden / "soft_labels").to_pyarrow_dataset().to_table(columns=list(ADDED))
    assert sorted(plain.column("domain").to_pylist(), key=str) == sorted(["sea", *[None] * old], key=str)
    assert verify(golden).problems == ()
