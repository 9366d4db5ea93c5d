"""A run whose terminal goes away: it drains, commits and says in its record that it was interrupted."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from collectors.config import read_run
from storage.query import sql
from storage.table import Table
from tests.collectors.runs import write_run
from tests.collectors.servers import TeacherServer
from tests.collectors.test_kill import answers_to_prompts, finish, wait_for

ROOT = Path(__file__).parents[2]


def rows(run: Path) -> int:
    return sql(read_run(run).table, "SELECT key FROM soft_labels").num_rows


def test_a_closed_terminal_drains_the_run(tmp_path: Path) -> None:
    with TeacherServer(latency=0.1) as server:
        run = write_run(tmp_path, server.url, prompts=150, concurrency=8)
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "potstill", "collect", str(run)],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # its controlling terminal
        )
        os.close(theirs)
        wait_for(lambda: os.read(ours, 4096) and sum(answers_to_prompts(server).values()) > 30)
        os.close(ours)  # the kernel sends SIGHUP, and nothing can be written any more
        assert process.wait(30) == 130
        answered = sum(answers_to_prompts(server).values())
        assert rows(run) == answered < 150
        [record] = Table.open(read_run(run).table).runs()
        assert record.outcome == "interrupted"
        code, said = finish(run)
        assert code == 0, said
        assert max(answers_to_prompts(server).values()) == 1
    assert rows(run) == 150


@pytest.mark.parametrize(("ignored", "code"), [(False, 130), (True, 0)])
def test_sighup_stops_gently_unless_nohup_ignores_it(tmp_path: Path, ignored: bool, code: int) -> None:
    with TeacherServer(latency=0.05) as server:
        run = write_run(tmp_path, server.url, prompts=60, concurrency=4)
        process = subprocess.Popen(
            [sys.executable, "-m", "potstill", "collect", str(run)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL),
        )
        wait_for(lambda: sum(answers_to_prompts(server).values()) > 10)
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == code
    assert rows(run) == 60 if ignored else 10 < rows(run) < 60
