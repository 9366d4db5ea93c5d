"""A reader that reads wrongly, mended later: the rows become what they should have been, with no new request."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.config import RunConfig
from collectors.errors import Rejected
from collectors.plan import Item
from collectors.providers import Reading
from collectors.providers.llamacpp import LlamaCpp
from collectors.reparse import NothingArchived, reparse_table
from collectors.run import collect
from storage.ledgers import Ledger
from storage.query import sql
from storage.selection import Selection
from storage.table import Table
from storage.takedown import takedown
from storage.verify import verify
from tests.collectors.runs import run_config, write_run
from tests.collectors.servers import TeacherServer

pytestmark = pytest.mark.usefixtures("short_pauses")
ROOT = Path(__file__).parents[2]
COLUMNS = "key, prompt_id, completion, token_ids, top_ids, top_logprobs, log_tail, raw_sha256, teacher, usage, flags"


def keeping(folder: Path, url: str, **fields: Any) -> RunConfig:
    return run_config(folder, url, **fields).model_copy(update={"keep_raw": True})


def rows(table: Path, version: int | None = None) -> list[dict[str, Any]]:
    return sql(table, f"SELECT {COLUMNS} FROM soft_labels ORDER BY prompt_id", version=version).to_pylist()  # type: ignore[no-any-return]


def number(item: Item) -> int:
    return int(item.prompt_id[1:])


def misread(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Item, Reading], Reading]) -> None:
    right = LlamaCpp.read
    monkeypatch.setattr(LlamaCpp, "read", lambda self, item, body: wrong(item, right(self, item, body)))


def refuse_every_fifth(item: Item, reading: Reading) -> Reading:
    if number(item) % 5 == 0:
        raise Rejected("not_understood", "a reader that does not know this")
    return reading


def shout_every_third(item: Item, reading: Reading) -> Reading:
    if number(item) % 3 or reading.labels is None:
        return reading
    return replace(reading, text=reading.text + "!")


def both(item: Item, reading: Reading) -> Reading:
    return shout_every_third(item, refuse_every_fifth(item, reading))


def test_rows_and_rejects_of_a_wrong_reader_become_what_they_should_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TeacherServer() as server:
        good = keeping(tmp_path / "good", server.url, prompts=30)
        collect(good)
        config = keeping(tmp_path / "bad", server.url, prompts=30)
        with monkeypatch.context() as patched:
            misread(patched, both)
            report = collect(config)
        assert (report.committed, report.rejected) == (24, 6)
        asked = len(server.headers)
        wrong, version = rows(config.table), Table.open(config.table).version
        done = reparse_table(config.table)
        assert len(server.headers) == asked
    assert (done.read, done.changed, done.became_rows, done.became_rejects, done.unmatched) == (30, 8, 6, 0, 0)
    assert [row | {"decision": ""} for row in rows(config.table)] == [
        row | {"decision": ""} for row in rows(good.table)
    ]
    assert rows(config.table, version) == wrong
    assert done.version == version + 1
    assert not sql(config.table, "SELECT key FROM rejects").num_rows
    assert verify(config.table).problems == ()
    again = reparse_table(config.table)
    assert (again.read, again.changed, again.became_rows, again.version) == (30, 0, 0, done.version)


def test_a_stricter_reader_turns_rows_into_rejects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TeacherServer() as server:
        config = keeping(tmp_path, server.url, prompts=10)
        collect(config)
    with monkeypatch.context() as patched:
        misread(patched, refuse_every_fifth)
        done = reparse_table(config.table)
        assert (done.changed, done.became_rejects) == (0, 2)
        assert reparse_table(config.table).became_rejects == 0
    assert len(rows(config.table)) == 8
    reasons = sql(config.table, "SELECT reason, run_id FROM rejects").to_pylist()
    assert reasons == [{"reason": "not_understood", "run_id": config.run_id}] * 2
    assert reparse_table(config.table).became_rows == 2
    assert len(rows(config.table)) == 10


def test_cut_short_it_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TeacherServer() as server:
        config = keeping(tmp_path, server.url, prompts=10)
        with monkeypatch.context() as patched:
            misread(patched, both)
            collect(config)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "remove", killed_here)
        with pytest.raises(KilledHere):
            reparse_table(config.table)
    assert len(rows(config.table)) == 10
    assert sql(config.table, "SELECT key FROM rejects").num_rows == 2
    done = reparse_table(config.table)
    assert (done.changed, done.became_rows) == (0, 0)
    assert sql(config.table, "SELECT key FROM rejects").num_rows == 0
    assert len(rows(config.table)) == 10


class KilledHere(Exception):
    pass


def killed_here(*_: object, **__: object) -> None:
    raise KilledHere


def test_what_was_taken_down_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TeacherServer() as server:
        config = keeping(tmp_path, server.url, prompts=10)
        with monkeypatch.context() as patched:
            misread(patched, shout_every_third)
            collect(config)
    assert takedown(config.table, Selection(where="prompt_id IN ('p0', 'p1')"), reason="x").archived == 2
    done = reparse_table(config.table)
    assert (done.read, done.changed, done.unmatched) == (8, 3, 0)
    assert len(rows(config.table)) == 8


def test_unknown_logprobs_are_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(item: Item, reading: Reading) -> Reading:
        assert reading.labels is not None
        labels = replace(reading.labels, token_logprobs=np.full_like(reading.labels.token_logprobs, np.nan))
        return replace(reading, labels=labels)

    misread(monkeypatch, unknown)
    with TeacherServer() as server:
        config = keeping(tmp_path, server.url, prompts=5)
        collect(config)
    assert reparse_table(config.table).changed == 0


def test_a_run_that_keeps_nothing_has_nothing_to_read_again(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=3)
        collect(config)
    with pytest.raises(NothingArchived, match="keep_raw"):
        reparse_table(config.table)


KILLED = """
import os, signal, sys
from pathlib import Path
from collectors.config import read_run
from collectors.run import collect
from storage.journal import Journal
from storage.table import Table
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
setattr({"append": Table, "release": Journal}[sys.argv[2]], sys.argv[2], kill)
collect(read_run(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("point", ["append", "release"])
def test_a_kill_after_the_archive_was_written_keeps_each_response_once(tmp_path: Path, point: str) -> None:
    with TeacherServer() as server:
        run = write_run(tmp_path, server.url, prompts=20)
        run.write_text("keep_raw = true\n" + run.read_text())
        command = [sys.executable, "-c", KILLED, str(run), point]
        assert subprocess.run(command, cwd=ROOT, env=os.environ).returncode == -signal.SIGKILL
        config = keeping(tmp_path, server.url, prompts=20)
        journal = list((config.table / "journal").glob("*.sqlite"))
        assert len(journal) == 1
        asked = len(server.asks)
        collect(config)
        assert len(server.asks) == asked, "what was received is not asked again"
    table = Table.open(config.table)
    kept = [raw.key for file in table.archive.files() for _, raw in table.archive.responses(file)]
    assert sorted(kept) == sorted(row["key"] for row in rows(config.table))
    assert len(set(kept)) == 20
