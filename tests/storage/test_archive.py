import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.compact import compact
from storage.errors import TableDamaged
from storage.journal import Journal
from storage.selection import Selection
from storage.table import Table
from storage.takedown import takedown
from storage.verify import verify
from tests.storage.make_rows import make_row
from tests.storage.test_journal import response


def bodies(table):
    return {raw.key: (run, raw) for file in table.archive.files() for run, raw in table.archive.responses(file)}


def batch(journal, numbers, sequence):
    responses = [response(number) for number in numbers]
    journal.record(responses)
    journal.assign([one.key for one in responses], sequence)
    return responses


@pytest.fixture
def table(tmp_path):
    return Table.create(tmp_path / "labels")


def archived(table, run, numbers, sequence=0):
    with Journal.open(table.path / "journal", run) as journal:
        kept = batch(journal, numbers, sequence)
        table.archive_batch(journal, writer=run, sequence=sequence)
        journal.release(sequence)
    return kept


def test_a_batch_is_kept_as_it_came_and_only_once(table):
    assert not table.archive.exists()
    with Journal.open(table.path / "journal", "run") as journal:
        kept = batch(journal, range(150), 0)
        assert table.archive_batch(journal, writer="run", sequence=0) == 150
        assert table.archive_batch(journal, writer="run", sequence=0) == 0
        journal.release(0)
        batch(journal, range(200, 203), 1)
        assert table.archive_batch(journal, writer="run", sequence=1) == 3
    found = bodies(table)
    assert len(found) == 153
    assert all(found[one.key] == ("run", one) for one in kept)
    [first, second] = table.archive.files()
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.path.stem
    assert {pq.ParquetFile(file.path).num_row_groups for file in (first, second)} == {3, 1}
    assert verify(table.path).problems == ()


def test_verify_names_a_file_that_was_altered_or_is_missing(table):
    archived(table, "run", range(4))
    [file] = table.archive.files()
    data = file.path.read_bytes()
    file.path.write_bytes(data[:100] + b"X" + data[101:])
    [problem] = verify(table.path).problems
    assert problem.path == f"archive/{file.path.name}"
    file.path.unlink()
    assert "missing" in verify(table.path).problems[0].what


def test_a_body_that_is_not_the_one_that_came_is_named(table, monkeypatch):
    from storage import archive

    right = archive._lines
    other = pa.array(["0" * 64])
    place = archive.ARCHIVE.get_field_index("raw_sha256")
    monkeypatch.setattr(archive, "_lines", lambda *a: right(*a).set_column(place, archive.ARCHIVE.field(place), other))
    archived(table, "run", range(1))
    [problem] = verify(table.path).problems
    assert "other bytes" in problem.what
    with pytest.raises(TableDamaged, match="other bytes"):
        bodies(table)


def test_a_killed_writers_file_is_a_leftover(table):
    archived(table, "run", range(1))
    (table.path / "archive" / f"{'0' * 64}.parquet").write_bytes(b"x")
    assert verify(table.path).leftovers == (f"archive/{'0' * 64}.parquet",)


@pytest.mark.parametrize("selection", [Selection(run="gone"), Selection(where="run_id = 'gone'")])
def test_a_takedown_reaches_the_archive_and_a_purge_its_bytes(table, selection):
    doomed = archived(table, "gone", range(5))
    kept = archived(table, "kept", range(5, 8))
    for run, ones in (("gone", doomed), ("kept", kept)):
        table.append([make_row(n, key=one.key, run_id=run) for n, one in enumerate(ones)], writer=run, sequence=0)
    assert takedown(table.path, selection, reason="x", dry_run=True).archived == 5
    assert len(bodies(table)) == 8
    done = takedown(table.path, selection, reason="x")
    assert (done.rows, done.archived) == (5, 5)
    assert set(bodies(table)) == {one.key for one in kept}
    assert table.takedown(done.record)["archived"] == 5
    assert verify(table.path).problems == ()
    files = len(list((table.path / "archive").glob("*.parquet")))
    compact(table.path, purge=True)
    assert len(list((table.path / "archive").glob("*.parquet"))) == files - 1
    assert set(bodies(table)) == {one.key for one in kept}


def test_the_rest_of_a_file_stays(table):
    ones = archived(table, "run", range(130))
    table.append([make_row(n, key=one.key, run_id="run") for n, one in enumerate(ones)], writer="run", sequence=0)
    gone = {one.key for one in ones[::7]}
    quoted = ", ".join(f"'{key}'" for key in gone)
    assert takedown(table.path, Selection(where=f"key IN ({quoted})"), reason="x").archived == len(gone)
    found = bodies(table)
    assert set(found) == {one.key for one in ones} - gone
    assert all(found[one.key] == ("run", one) for one in ones if one.key not in gone)
