import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.locks import hold
from tests.collectors.runs import run_config, write_run
from tests.collectors.servers import TeacherServer

ROOT = Path(__file__).parents[2]


def potstill(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "potstill", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def server() -> TeacherServer:
    with TeacherServer() as running:
        yield running


def test_collect_probe_and_dry_run_tell_their_result_on_stdout(tmp_path: Path, server: TeacherServer) -> None:
    price = "[price]\ninput_per_million = 100.0\noutput_per_million = 200.0\n"
    run = write_run(tmp_path, server.url, prompts=12, more=price)
    run.write_text(run.read_text().replace("[limits]", "[limits]\nrequests_per_minute = 600"))

    before = len(server.headers)
    estimated = potstill("collect", run, "--dry-run")
    assert estimated.returncode == 0, estimated.stderr
    assert "requests     12" in estimated.stdout
    assert "cost         $0.0" in estimated.stdout
    assert "bundle" in estimated.stdout
    assert len(server.headers) == before
    assert not (tmp_path / "table").exists()

    probed = potstill("probe", run)
    assert probed.returncode == 0, probed.stderr
    assert "Endpoint card" in probed.stdout
    assert not (tmp_path / "table").exists()

    limited = potstill("collect", run, "--limit", "5")
    assert limited.returncode == 0, limited.stderr
    assert "5 rows committed" in limited.stdout
    assert "rows committed" in limited.stderr

    collected = potstill("collect", run)
    assert "7 rows committed" in collected.stdout
    again = potstill("collect", run)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert "requests     0" in potstill("collect", run, "--dry-run").stdout


def test_errors_are_one_sentence_on_stderr_with_the_documented_exit_code(tmp_path: Path, server: TeacherServer) -> None:
    run = write_run(tmp_path, server.url)
    text = run.read_text()
    for change, code, said in (
        (("top_k = 5", "top_q = 5"), 2, "top_q"),
        (("prompts.jsonl", "none.jsonl"), 2, "none.jsonl"),
        (("google/gemma-3-270m", "nobody/unknown"), 3, "UNKNOWN_TERMS"),
        ((server.url, "http://127.0.0.1:9"), 1, "127.0.0.1:9"),
        (("POTSTILL_CANARY_KEY", "POTSTILL_NO_SUCH_KEY"), 2, "POTSTILL_NO_SUCH_KEY"),
    ):
        run.write_text(text.replace(*change))
        result = potstill("collect", run)
        assert result.returncode == code, result.stderr
        assert said in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
    missing = potstill("collect", tmp_path / "missing.toml")
    assert missing.returncode == 2
    assert "potstill init" in missing.stderr


def test_a_dry_run_shows_the_next_starts(tmp_path: Path, server: TeacherServer) -> None:
    more = '[schedule]\ncron = "0 3 * * *"\nwindow = "22:00-06:00"\ntimezone = "UTC"\n'
    said = potstill("collect", write_run(tmp_path, server.url, more=more), "--dry-run").stdout
    [line] = [line for line in said.splitlines() if line.startswith("next starts")]
    assert line.count("03:00 UTC") == 3


def test_a_refused_dry_run_has_the_verdicts_exit_code(tmp_path: Path, server: TeacherServer) -> None:
    run = write_run(tmp_path, server.url)
    run.write_text(run.read_text().replace("google/gemma-3-270m", "nobody/unknown"))
    refused = potstill("collect", run, "--dry-run")
    assert refused.returncode == 3
    assert "UNKNOWN_TERMS" in refused.stdout


def test_rejects_end_in_part_and_say_where_to_look(tmp_path: Path) -> None:
    with TeacherServer(lambda ask: "http-400" if ask.body["n_predict"] == 6 and len(ask.prompt) == 10 else None) as bad:
        run = write_run(tmp_path, bad.url, prompts=12)
        result = potstill("collect", run)
    assert result.returncode == 4
    assert "rejected" in result.stdout
    assert "potstill sql" in result.stdout


def test_a_run_that_another_process_holds_is_told_before_the_slow_imports(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    with hold(config.table / "journal" / f"{config.run_id}.lock", config.run_id):
        command = [sys.executable, "-X", "importtime", "-m", "potstill", "collect", str(tmp_path / "run.toml")]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 75, second.stderr
    assert f"process {os.getpid()}" in second.stderr
    slow = [line for line in second.stderr.splitlines() if line.startswith("import time:")]
    assert not [line for line in slow if line.split()[-1] in ("collectors.run", "deltalake", "duckdb", "aiohttp")]
