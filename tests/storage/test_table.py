import errno
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from storage.errors import DiskFull, InvalidRecord, InvalidRow, NotWritable, SchemaTooNew, TableDamaged, TableNotFound
from storage.errors import VersionNotFound as NoVersion
from storage.ledgers import Reject, RunRecord
from storage.rows import rows_from_arrow
from storage.table import Table
from tests.storage.make_rows import QWEN, START, make_row, make_rows


def keys_at(path, version=None):
    files = Table.open(path, version).files()
    return [key for f in files for key in pq.read_table(f.path, columns=["key"], partitioning=None)["key"].to_pylist()]


def reject(number):
    return Reject(
        key=make_row(number).key,
        run_id="r",
        prompt_id=f"p{number}",
        reason="no_logprobs",
        detail="the server sent none",
        raw=b"{}",
        rejected_at=START,
        status=200,
    )


@pytest.fixture
def table(tmp_path):
    return Table.create(tmp_path / "labels")


def test_rows_are_read_back_as_they_were_appended(table):
    rows = make_rows(0, 20)
    done = table.append(rows, writer="w", sequence=0)
    assert (done.written, done.duplicates, done.version) == (20, 0, 1)
    [file] = table.files()
    back = rows_from_arrow(pq.read_table(file.path, partitioning=None))
    assert [r.key for r in back] == [r.key for r in rows]
    assert back[3].messages == rows[3].messages and back[3].collected_at == rows[3].collected_at
    assert (file.rows, file.tokens) == (20, 160)


def test_repeating_a_commit_changes_nothing(table):
    rows = make_rows(0, 5)
    table.append(rows, writer="w", sequence=0)
    again = Table.open(table.path).append(rows, writer="w", sequence=0)
    assert (again.version, again.written) == (1, 0)
    assert table.committed_sequence("w") == 0
    assert table.committed_sequence("other") == -1


def test_keys_that_are_there_are_dropped_and_counted(table):
    table.append(make_rows(0, 5), writer="a", sequence=0)
    done = Table.open(table.path).append([*make_rows(3, 5), make_row(7)], writer="b", sequence=0)
    assert (done.written, done.duplicates) == (3, 3)
    assert len(keys_at(table.path)) == len(set(keys_at(table.path))) == 8
    nothing = table.append(make_rows(0, 5), writer="a", sequence=1)
    assert (nothing.written, nothing.duplicates) == (0, 5)
    assert table.committed_sequence("a") == 1


def test_a_handle_sees_keys_that_another_wrote(table):
    other = Table.open(table.path)
    assert len(other.keys()) == 0
    table.append(make_rows(0, 5), writer="a", sequence=0)
    known = other.keys()
    assert make_row(4).key in known and make_row(5).key not in known
    assert other.append(make_rows(0, 5), writer="b", sequence=0).duplicates == 5


def test_versions_are_pinned(table):
    table.append(make_rows(0, 5), writer="w", sequence=0)
    table.append(make_rows(5, 5), writer="w", sequence=1)
    assert [len(keys_at(table.path, v)) for v in (0, 1, 2)] == [0, 5, 10]
    pinned = Table.open(table.path, 1)
    assert pinned.version == 1
    with pytest.raises(NotWritable, match="opened at version 1"):
        pinned.append(make_rows(10, 1), writer="w", sequence=2)
    with pytest.raises(NoVersion, match="no version 9: its versions are 0 to 2"):
        Table.open(table.path, 9)


def test_materials_come_from_groups_and_log_alone(table):
    table.append(make_rows(0, 4), writer="w", sequence=0)
    table.append(
        [*make_rows(4, 2), *make_rows(2000, 3, teacher=QWEN, terms=("apache-2.0@2004-01-01",))], writer="w", sequence=1
    )
    for file in table.files():
        file.path.write_bytes(b"labels are not read")
    gemma, qwen = sorted(table.materials(), key=lambda m: m.teacher.model, reverse=True)
    assert (gemma.teacher.model, gemma.teacher.revision, gemma.signal) == (
        "google/gemma-3-270m",
        "gguf-q4_k_m",
        "top_k_logprobs",
    )
    assert (gemma.rows, gemma.tokens, gemma.terms, gemma.prompt_licence) == (
        6,
        48,
        ("gemma-tou@2025-03-24",),
        "CC0-1.0",
    )
    assert (qwen.rows, qwen.collected_from, qwen.collected_to) == (3, date(2026, 11, 2), date(2026, 11, 2))


def test_a_file_is_named_by_its_content_and_synced(table):
    import hashlib

    table.append(make_rows(0, 3), writer="w", sequence=0)
    [file] = table.files()
    assert hashlib.sha256(file.path.read_bytes()).hexdigest() == file.sha256
    assert file.path.parent.name == f"audit_group={file.audit_group}"


def test_bad_rows_leave_nothing(table):
    with pytest.raises(InvalidRow):
        table.append([make_row(0), make_row(1, terms=())], writer="w", sequence=0)
    with pytest.raises(InvalidRow, match="sample_index"):
        table.append([make_row(1, sample_index=2**40)], writer="w", sequence=0)
    with pytest.raises(InvalidRow, match="completion"):
        table.append([make_row(1, completion="\ud800")], writer="w", sequence=0)
    assert (table.version, table.committed_sequence("w"), keys_at(table.path)) == (0, -1, [])
    assert table.append(make_rows(0, 2), writer="w", sequence=0).written == 2


def test_rejects_are_kept_once(table):
    assert table.append_rejects([reject(1), reject(2)], writer="w", sequence=0) == 2
    assert table.append_rejects([reject(1), reject(2)], writer="w", sequence=0) == 0
    assert table.append_rejects([], writer="w", sequence=1) == 0
    lines = table.rejects.read().to_pylist()
    assert [line["prompt_id"] for line in lines] == ["p1", "p2"] and lines[0]["raw"] == b"{}"


def test_a_run_is_one_line(table):
    run = RunRecord(
        run_id="r1",
        started_at=START,
        updated_at=START,
        outcome="running",
        config="{}",
        policy_bundle="b",
        decision="d",
        endpoint_cards=("{}",),
    )
    table.save_run(run)
    table.save_run(replace(run, run_id="r2"))
    done = replace(run, outcome="done", committed=7, cost_usd=1.5)
    table.save_run(done)
    assert sorted(table.runs(), key=lambda r: r.run_id) == [done, replace(run, run_id="r2")]


def test_records_are_kept_under_their_digest(table):
    digest = table.save_tokenizer(b'{"model": 1}')
    assert Table.open(table.path).tokenizer(digest) == b'{"model": 1}'
    table.save_training({"student": "s", "version": 3})
    [training] = table.trainings()
    assert training["student"] == "s" and training["saved_at"]
    with pytest.raises(InvalidRecord, match="was never saved"):
        table.tokenizer("0" * 64)
    with pytest.raises(InvalidRecord, match="is no digest"):
        table.tokenizer("../../etc/passwd")
    (table.path / "tokenizers" / f"{digest}.json.zst").write_bytes(b"x")
    with pytest.raises(InvalidRecord, match="cannot be decompressed"):
        table.tokenizer(digest)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(TableNotFound, match="potstill collect"):
        Table.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(NotWritable, match="file"):
            Table.open_or_create(path)
    with pytest.raises(NotWritable, match="object storage"):
        Table.open("s3://bucket/table")


def test_a_table_of_someone_else_or_of_the_future_is_refused(tmp_path, table):
    from storage.delta_log import DeltaLog
    from storage.schema import SOFT_LABELS, table_metadata

    foreign = tmp_path / "foreign"
    DeltaLog(foreign / "soft_labels", SOFT_LABELS, "audit_group").create({})
    with pytest.raises(TableDamaged, match="not written by potstill"):
        Table.open(foreign)
    future = tmp_path / "future"
    metadata = table_metadata(8) | {"potstill.schema_version": "9"}
    DeltaLog(future / "soft_labels", SOFT_LABELS, "audit_group").create(metadata)
    with pytest.raises(SchemaTooNew, match="schema version 9"):
        Table.open(future)


def test_a_path_out_of_the_table_is_refused(table):
    table.append(make_rows(0, 1), writer="w", sequence=0)
    log = table.path / "soft_labels" / "_delta_log" / f"{1:020}.json"
    name = table.files()[0].path.name
    log.write_text(log.read_text().replace(f"audit_group={table.files()[0].audit_group}/{name}", f"../../../{name}"))
    with pytest.raises(TableDamaged, match="outside of the table"):
        Table.open(table.path).files()


FUTURE = '{"protocol":{"minReaderVersion":99,"minWriterVersion":99}}'


@pytest.mark.parametrize(("line", "error"), [(FUTURE, SchemaTooNew), ("{not json", TableDamaged)])
def test_a_log_entry_that_cannot_be_read_is_named(table, line, error):
    table.append(make_rows(0, 1), writer="w", sequence=0)
    (table.path / "soft_labels" / "_delta_log" / f"{2:020}.json").write_text(line)
    with pytest.raises(error, match="soft_labels"):
        Table.open(table.path)
    assert keys_at(table.path, 1) == [make_row(0).key], "what was committed stays readable"


def test_a_folder_of_the_table_that_links_out_of_it_is_refused(table, tmp_path):
    table.append(make_rows(0, 1), writer="w", sequence=0)
    group = table.files()[0].path.parent
    group.rename(tmp_path / "elsewhere")
    group.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TableDamaged, match="a link out of the table"):
        table.files()


@pytest.mark.parametrize("part", ["decisions", "groups", "journal"])
def test_a_part_of_the_table_that_links_out_of_it_is_refused(table, tmp_path, part):
    (tmp_path / "elsewhere").mkdir()
    if (table.path / part).is_dir():
        (table.path / part).rename(tmp_path / "elsewhere" / part)
    (table.path / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TableDamaged, match=f"{part} is a link out of the table"):
        Table.open(table.path)


def test_a_full_disk_loses_nothing(table, monkeypatch):
    """Real: a tmpfs of 3 MB. It is filled up to some bytes, so that data file, log entry or record fails."""
    script = """
import sys
from pathlib import Path
from storage.errors import DiskFull
from storage.table import Table
from tests.storage.make_rows import make_rows
root = Path(sys.argv[1])
table = Table.create(root / "labels")
table.append(make_rows(0, 5), writer="w", sequence=0)
filler = (root / "filler").open("wb", buffering=0)
failed = 0
for free in (0, 4096, 8192, 12288, 20480, 32768):
    try:
        while True:
            filler.write(b"x" * 65536)
    except OSError:
        pass
    try:
        while True:
            filler.write(b"x" * 512)
    except OSError:
        pass
    filler.truncate(max(filler.tell() - free, 0)); filler.seek(0, 2)
    try:
        Table.open(table.path).append(make_rows(100, 200), writer="w", sequence=1)
    except DiskFull as error:
        failed += "nothing committed is lost" in str(error)
filler.truncate(0)
done = Table.open(table.path).append(make_rows(100, 200), writer="w", sequence=1)
print(failed, done.written, len(Table.open(table.path).keys()))
"""
    mount = "mkdir -p /tmp/potstill-small && mount -t tmpfs -o size=3m tmpfs /tmp/potstill-small"
    command = f"{mount} && exec {sys.executable} -c '{script}' /tmp/potstill-small"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    if (done.returncode and "unshare" in done.stderr) or "mount:" in done.stderr:
        pytest.skip("no user namespaces here to mount a small disk in")
    assert done.stdout.split() == ["6", "200", "205"], done.stderr


def test_a_folder_that_may_not_be_written():
    script = """
import os, sys
from storage.errors import NotWritable
from storage.table import Table
from tests.storage.make_rows import make_rows
os.setgid(65534); os.setuid(65534)
table = Table.open(sys.argv[1])
try:
    table.append(make_rows(0, 1), writer="w", sequence=0)
except NotWritable as error:
    print(error, len(table.files()))
"""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Table.create(f"{folder}/labels")
        command = [sys.executable, "-c", script, f"{folder}/labels"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "cannot be written: make the folder writable" in done.stdout, done.stderr


def test_errors_of_the_disk_are_mapped():
    from storage.errors import mapped

    for code, kind in ((errno.ENOSPC, DiskFull), (errno.EROFS, NotWritable), (errno.EIO, TableDamaged)):
        with pytest.raises(kind), mapped("t"):
            raise OSError(code, os.strerror(code))
    with pytest.raises(KeyError), mapped("t"):
        raise KeyError("a mistake of ours stays one")


def test_delta_readers_see_the_same_rows(table):
    table.append(make_rows(0, 5), writer="w", sequence=0)
    read = DeltaTable(table.path / "soft_labels").to_pyarrow_dataset().to_table()
    assert sorted(read["key"].to_pylist()) == sorted(keys_at(table.path))


@pytest.mark.parametrize(
    "unlicensed",
    [
        {"terms": ()},
        {"decision": ""},
        {"policy_bundle": ""},
        {"collect_verdict": "deny"},
        {"collect_verdict": "review"},
        {"collect_verdict": ""},
    ],
    ids=str,
)
def test_gate_at_every_write(tmp_path, unlicensed):
    """Named for the gate without which it fails: no writer gets a row in that a decision did not clear."""
    table = Table.create(tmp_path / "labels")
    with pytest.raises(InvalidRow, match="was not written"):
        table.append([make_row(0), make_row(1, **unlicensed)], writer="w", sequence=0)
    assert table.files() == [] and table.version == 0


def test_a_data_file_that_links_out_of_the_table_is_refused(tmp_path):
    table = Table.create(tmp_path / "t")
    table.append(make_rows(0, 2), writer="w", sequence=0)
    path = table.files()[0].path
    path.rename(path.parent / "inside")
    path.symlink_to(path.parent / "inside")
    assert len(table.files()) == 1
    (path.parent / "inside").rename(tmp_path / "outside")
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    for read in (table.files, Table.open(table.path).keys, lambda: table.sql("SELECT count(*) FROM soft_labels")):
        with pytest.raises(TableDamaged, match="a link out of the table"):
            read()


def test_the_log_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    from storage import delta_log

    one, other = Table.create(tmp_path / "t"), Table.open(tmp_path / "t")
    opened = []
    monkeypatch.setattr(delta_log, "DeltaTable", lambda *a, **k: opened.append(1) or DeltaTable(*a, **k))
    assert (one.version, one.files(), one.version, opened) == (0, [], 0, [])
    other.append(make_rows(0, 1), writer="w", sequence=0)
    opened.clear()
    assert (one.version, len(one.files()), len(one.keys()), len(opened)) == (1, 1, 1, 1)
    entry = one.log.root / "_delta_log" / f"{1:020}.json"
    whole = entry.read_bytes()
    entry.write_bytes(whole.replace(b"audit_group=", b"../group=", 1))
    with pytest.raises(TableDamaged, match="outside of the table"):
        one.files()
    entry.unlink()
    assert (one.version, one.files()) == (0, []), "a table put back to an older copy"
