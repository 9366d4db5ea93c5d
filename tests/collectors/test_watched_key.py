"""What watches over the key finds it wherever it may hide; and the runs of these tests do send it."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from collectors.run import collect
from storage.query import sql
from tests.collectors.runs import run_config
from tests.collectors.servers import TeacherServer
from tests.collectors.watched_key import KEY, Watch, Wrapped, forms

OTHER = "other/77ab+19=zz"  # what is hidden here must not alarm whoever watches over the real one
FORMS = forms(OTHER)


def parquet(path: Path, data: bytes) -> None:
    row = {"item": {"raw": [b"x" * 100_000 + data]}}
    pq.write_table(pa.Table.from_pylist([row] * 3), path, compression="zstd")


WAYS: dict[str, Callable[[Path, bytes], object]] = {
    "bare.txt": lambda path, data: path.write_bytes(b"x" * 100 + data),
    "packed.zst": lambda path, data: path.write_bytes(zstandard.compress(b"x" * 100_000 + data)),
    "rows.parquet": parquet,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WAYS)
def test_each_form_is_found_in_each_kind_of_file(tmp_path: Path, name: str, form: str) -> None:
    WAYS[name](tmp_path / name, FORMS[form])
    watch = Watch(OTHER)
    watch.scan(tmp_path)
    assert any(found.startswith(form) and name in found for found in watch.found)
    (tmp_path / name).unlink()
    clean = Watch(OTHER)
    clean.scan(tmp_path)
    assert clean.looked_at == 0 and not clean.found


def test_logs_at_debug_and_what_children_say_are_heard() -> None:
    watch = Watch(OTHER)
    with Wrapped(watch):
        logging.getLogger("some.library").debug("sent %s", {"Authorization": f"Bearer {OTHER}"})
        subprocess.run([sys.executable, "-c", f"import sys; sys.stderr.write({OTHER!r})"], capture_output=True)
    assert [found for found in watch.found if "logged by some.library" in found]
    assert [found for found in watch.found if "output of" in found]
    logs = Path(os.environ["POTSTILL_DEBUG_LOGS"])
    said = "a child's line at DEBUG"
    subprocess.run([sys.executable, "-c", f"import logging; logging.getLogger('x').debug({said!r})"], check=True)
    assert any(said in path.read_text() for path in logs.iterdir())


def test_the_runs_of_these_tests_send_the_key_and_what_a_server_sends_back_of_it_is_not_kept(tmp_path: Path) -> None:
    with TeacherServer(lambda ask: "echo-key" if ask.prompt_number in (3, 5) else None) as server:
        config = run_config(tmp_path, server.url)
        report = collect(config)
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert (report.committed, report.rejected) == (18, 2)
    for reject in sql(config.table, "SELECT reason, detail, raw FROM rejects").to_pylist():
        assert reject["reason"] == "http_400" and b"Bearer [key]" in reject["raw"] and "[key]" in reject["detail"]
