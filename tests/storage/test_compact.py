import pyarrow.parquet as pq
import pytest

from storage.compact import compact
from storage.errors import DiskFull, TableDamaged, VersionNotFound
from storage.query import sql
from storage.rows import rows_from_arrow
from storage.table import Table
from storage.verify import repair, verify
from tests.storage.make_rows import QWEN, make_rows
from tests.storage.test_machine import stored_keys
from tests.storage.test_rows import same


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "labels")
    for n in (4, 3, 2, 1, 0):
        table.append([*make_rows(10 * n, 5), *make_rows(1000 + 10 * n, 2, teacher=QWEN)], writer="w", sequence=4 - n)
    return table


def all_rows(table):
    rows = [row for f in table.files() for row in rows_from_arrow(pq.read_table(f.path, partitioning=None))]
    return sorted(rows, key=lambda row: row.key)


def test_the_same_rows_in_fewer_files_sorted_by_prompt(table):
    before = all_rows(table)
    done = compact(table.path)
    assert (done.files_before, done.files_after, done.rows, done.version) == (10, 2, 35, 6)
    assert all(map(same, before, all_rows(table)))
    for file in table.files():
        prompts = pq.read_table(file.path, columns=["prompt_id"], partitioning=None)["prompt_id"].to_pylist()
        assert prompts == sorted(prompts)
    assert verify(table.path).problems == ()
    assert compact(table.path) == type(done)(6, 2, 2, 35)


def test_earlier_versions_stay_readable_and_writers_go_on(table):
    old = [sorted(stored_keys(table.path, v)) for v in range(6)]
    compact(table.path)
    assert [sorted(stored_keys(table.path, v)) for v in range(6)] == old
    assert table.append(make_rows(0, 6), writer="w", sequence=5).written == 1
    assert table.committed_sequence("w") == 5
    assert table.append(make_rows(50, 6), writer="w", sequence=4).written == 0


def test_versions_say_what_made_them(table):
    compact(table.path, purge=True)
    assert [v.operation for v in table.versions()] == ["create", *["append"] * 5, "compact", "purge"]
    assert [v.number for v in table.versions()] == list(range(8))


def test_files_near_the_target_are_left_alone(table):
    sizes = sorted(file.size for file in table.files())
    assert compact(table.path, target_bytes=sizes[0] * 2).files_after == 10
    assert compact(table.path, target_bytes=sizes[-1] * 2 + 2).files_after == 6


def test_purged_bytes_are_gone_and_their_versions_say_why(table):
    old = {file.path for file in table.files()}
    done = compact(table.path, purge=True)
    assert done.purged_files == 10 and done.purged_bytes > 0
    assert not any(path.exists() for path in old)
    assert verify(table.path).problems == () and verify(table.path).leftovers == ()
    with pytest.raises(VersionNotFound, match=r"Version 3 of .* purged on 20.*; version 7 and later ones can"):
        sql(table.path, "SELECT 1", version=3)
    assert len(stored_keys(table.path, None)) == 35
    assert compact(table.path, purge=True).purged_files == 0


def test_damaged_bytes_are_not_given_a_new_name(table):
    path = table.files()[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(TableDamaged, match="was altered since it was written"):
        compact(table.path)
    assert Table.open(table.path).version == 5


def test_a_failed_compaction_changes_nothing(table, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.delta_log.DeltaTable.create_write_transaction", full)
    with pytest.raises(DiskFull):
        compact(table.path)
    monkeypatch.undo()
    assert Table.open(table.path).version == 5 and len(stored_keys(table.path, None)) == 35
    assert len(repair(table.path)) == 2
