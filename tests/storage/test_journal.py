import os
import random
import signal
import subprocess
import sys
import time

import pytest

from storage.errors import InvalidRecord, NotWritable, RunHeld
from storage.journal import Journal, RawResponse
from storage.rows import Usage
from storage.table import Table
from tests.storage.make_rows import START, make_row
from tests.storage.test_table import keys_at


def response(number, **changes):
    values = {
        "key": make_row(number).key,
        "prompt_id": f"p{number}",
        "sample_index": 0,
        "item": b'{"max_tokens": 8}',
        "status": 200,
        "headers": {"content-type": "application/json"},
        "body": b'{"answer": "\xc3\xa9"}' * 50,
        "received_at": START,
        "usage": Usage(prompt_tokens=1, completion_tokens=2),
    }
    return RawResponse(**(values | changes))


def test_a_response_goes_through_its_life(tmp_path):
    journal = Journal.open(tmp_path, "run-1")
    responses = [response(1), response(2, usage=None), response(3, body=b"", status=503)]
    journal.record(responses)
    assert list(journal.open_responses()) == responses
    assert journal.assign([responses[0].key, responses[2].key], 0) == 2
    assert [r.prompt_id for r in journal.open_responses()] == ["p2"]
    journal.close()
    assert (tmp_path / "run-1.sqlite").exists()

    journal = Journal.open(tmp_path, "run-1")
    assert journal.batches() == [0] and len(journal) == 3
    assert list(journal.batch(0)) == [responses[0], responses[2]]
    journal.release(0)
    assert journal.keys() == {responses[1].key}
    assert journal.assign([responses[1].key], 1) == 1
    journal.release(1)
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_the_first_answer_to_a_key_is_kept(tmp_path):
    with Journal.open(tmp_path, "run-1") as journal:
        journal.record([response(1, body=b"first")])
        journal.record([response(1, body=b"second"), response(2)])
        assert next(journal.open_responses()).body == b"first"
        assert len(journal) == 2


def test_a_batch_is_fixed_once(tmp_path):
    with Journal.open(tmp_path, "run-1") as journal:
        journal.record([response(1), response(2)])
        journal.assign([response(1).key], 0)
        with pytest.raises(InvalidRecord, match="fixed already"):
            journal.assign([response(2).key], 0)
        assert journal.assign([response(1).key, response(2).key], 1) == 1
        assert [r.prompt_id for r in journal.batch(0)] == ["p1"]


def test_a_failed_group_leaves_none_of_it(tmp_path):
    with Journal.open(tmp_path, "run-1") as journal:
        with pytest.raises(InvalidRecord):
            journal.record([response(1)])
            journal.assign([response(1).key], 0)
            journal.assign([], 0)
        assert len(journal) == 1


def test_the_second_opener_is_told_who_holds_the_run(tmp_path):
    with Journal.open(tmp_path, "run-1"):
        script = "import sys; from pathlib import Path; from storage.journal import Journal;"
        script += "Journal.open(Path(sys.argv[1]), 'run-1')"
        done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
        assert f"RunHeld: Run run-1 is already running: process {os.getpid()} on " in done.stderr
        assert "has held it since 20" in done.stderr
        with pytest.raises(RunHeld) as caught:
            Journal.open(tmp_path, "run-1")
        assert caught.value.exit_code == 75
        Journal.open(tmp_path, "run-2").close()
    Journal.open(tmp_path, "run-1").close()


def test_the_lock_dies_with_its_process(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from storage.journal import Journal;"
        "j = Journal.open(Path(sys.argv[1]), 'run-1'); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RunHeld, match=f"process {child.pid}"):
            Journal.open(tmp_path, "run-1")
        child.kill()
        child.wait()
    Journal.open(tmp_path, "run-1").close()


def test_a_run_id_is_no_path(tmp_path):
    for name in ("../run", "", ".hidden", "a/b", "x" * 152):
        with pytest.raises(InvalidRecord, match="is no run id"):
            Journal.open(tmp_path, name)


def test_a_journal_folder_that_is_a_file(tmp_path):
    (tmp_path / "journal").write_text("x")
    with pytest.raises(NotWritable, match="under, a file"):
        Journal.open(tmp_path / "journal", "run-1")


def run_child(path, run_id, first, count, after):
    """Start a collecting child and kill it after some seconds (None: let it end); → the numbers it acknowledged."""
    command = [sys.executable, "-m", "tests.storage.collecting_child", str(path), run_id, str(first), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        if after is not None:
            time.sleep(after)
            child.send_signal(signal.SIGKILL)
        out, error = child.communicate(timeout=120)
    assert after is not None or child.returncode == 0, error
    return [int(line) for line in out.split("\n")[:-1] if line]


def test_a_kill_at_any_instant_loses_nothing_and_doubles_nothing(tmp_path):
    dice = random.Random(7)
    path, count = tmp_path / "labels", 120
    asked = []
    for _ in range(12):
        asked += run_child(path, "run-1", 0, count, after=0.25 + dice.random() * 0.5)
    asked += run_child(path, "run-1", 0, count, after=None)
    assert len(asked) == len(set(asked)), "an acknowledged response was asked again"
    assert sorted(keys_at(path)) == sorted(make_row(n).key for n in range(count))
    assert not list((path / "journal").iterdir())
    table = Table.open(path)
    assert sum(file.rows for file in table.files()) == count
    for version in range(table.version + 1):
        keys = keys_at(path, version)
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("point", ["record", "assign", "append", "release"])
def test_a_kill_right_after_each_step(tmp_path, point):
    """The child kills itself with SIGKILL when the step has returned; the next one goes on from there."""
    path = tmp_path / "labels"
    script = f"""
import os, signal, sys
from pathlib import Path
from storage.journal import Journal
from storage.table import Table
from tests.storage import collecting_child
owner = Table if "{point}" == "append" else Journal
step = getattr(owner, "{point}")
def then_die(*args, **options):
    result = step(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, "{point}", then_die)
collecting_child.collect(Path(sys.argv[1]), "run-1", 0, 7)
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    run_child(path, "run-1", 0, 7, after=None)
    assert sorted(keys_at(path)) == sorted(make_row(n).key for n in range(7))
