"""What a killed run leaves in the cache folder is found and removed, what a living one uses is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collectors.leftovers import leftovers, remove
from tests.collectors.test_embedded import ends, gone

ROOT = Path(__file__).parents[2]
PARENT = """
import os, sys, time
from collectors.providers.embedded import EmbeddedServer, default_gguf
gguf = default_gguf()
os.environ["XDG_CACHE_HOME"] = sys.argv[1]
with EmbeddedServer(gguf=gguf, context_length=64, threads=1) as server:
    print(server.pid, flush=True)
    time.sleep(120)
"""


def doctor(*options: str) -> str:
    command = [sys.executable, "-m", "potstill", "doctor", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ).stdout


def test_the_log_of_a_killed_run_is_a_leftover_and_that_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    [log] = (tmp_path / "potstill").glob("embedded-*.log")
    assert leftovers() == []
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert ends(lambda: gone(child))
    assert ends(lambda: leftovers() == [log])  # its threads may live a little longer
    assert f"leftover {log}" in doctor()
    assert log.exists()
    assert f"removed  {log}" in doctor("--fix")
    assert not log.exists()
    assert leftovers() == []


def test_a_half_made_model_is_a_leftover_once_nobody_can_be_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    half = tmp_path / "potstill" / "assembling-x"
    half.mkdir(parents=True)
    (half / "model.gguf").write_bytes(b"x")
    assert leftovers() == []
    os.utime(half, (time.time() - 7200,) * 2)
    assert leftovers() == [half]
    remove(half)
    remove(half)
    assert not half.exists()
