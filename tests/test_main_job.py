"""The main job, end to end, on a real teacher: a killed collection, a counting proxy, and what the table then holds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from collectors.providers.embedded import EmbeddedServer
from storage.query import sql
from storage.table import Table

ROOT = Path(__file__).parents[1]
CONCURRENCY = 4
PROMPTS = 24
MAX_TOKENS = 12


class CountingProxy(ThreadingHTTPServer):
    """Passes every request on to a real server, and counts the completions asked for by prompt."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.asked: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), _Pass)
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Pass(BaseHTTPRequestHandler):
    server: CountingProxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/completion" and json.loads(body)["n_predict"] == MAX_TOKENS:  # a probe asks for other numbers
            prompt = json.loads(body)["prompt"]
            self.server.asked[prompt if isinstance(prompt, str) else json.dumps(prompt)] += 1
        onward = HTTPConnection(self.server.upstream.hostname or "", self.server.upstream.port, timeout=120)
        onward.request(self.command, self.path, body, {"Content-Type": "application/json"})
        answer = onward.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _pass

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with EmbeddedServer(slots=CONCURRENCY) as server:
        yield server.base_url


def project(folder: Path, base_url: str) -> Path:
    """A run of 24 prompts against `base_url`, in a folder of its own."""
    prompts = (ROOT / "examples" / "demo" / "prompts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "prompts.jsonl").write_text("".join(prompts[:PROMPTS]), encoding="utf-8")
    (folder / "run.toml").write_text(
        f"""
        table = "table"
        [teacher]
        model = "google/gemma-3-270m"
        revision = "gguf-q4_k_m"
        [endpoint]
        kind = "llamacpp"
        base_url = "{base_url}"
        [limits]
        requests_per_minute = 6000
        concurrency = {CONCURRENCY}
        [prompts]
        path = "prompts.jsonl"
        licence = "CC0-1.0"
        [ask]
        mode = "generate"
        top_k = 20
        max_tokens = {MAX_TOKENS}
        """,
        encoding="utf-8",
    )
    return folder / "run.toml"


def potstill(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "potstill.py"), *map(str, arguments)], capture_output=True, text=True, timeout=240
    )


def keys(table: Path) -> list[str]:
    """Of rows, and of answers that are no rows since llama.cpp left out log-probabilities inside a character."""
    found = sql(table, "SELECT key, NULL AS reason FROM soft_labels UNION ALL SELECT key, reason FROM rejects")
    assert set(found["reason"].to_pylist()) <= {None, "length_mismatch"}
    assert found["reason"].null_count > 0.8 * PROMPTS
    return sorted(found["key"].to_pylist())


def test_a_collection_killed_in_the_middle_asks_again_at_most_what_was_in_flight(tmp_path: Path, teacher: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert potstill("collect", project(whole, teacher)).returncode in (0, 4)

    proxy = CountingProxy(teacher)
    run = project(killed, proxy.url)
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "potstill.py"), "collect", str(run)], stderr=subprocess.DEVNULL
    )
    give_up = time.monotonic() + 120
    while proxy.asked.total() < 3 * CONCURRENCY and time.monotonic() < give_up:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before = proxy.asked.total()
    assert 3 * CONCURRENCY <= before < PROMPTS, "the kill came too early or too late to prove anything"

    done = potstill("collect", run)
    assert done.returncode in (0, 4), done.stderr
    told = re.findall(rf"^(\d+) of {PROMPTS} rows committed", done.stderr, re.MULTILINE)
    assert told and 0.8 * PROMPTS < int(told[-1]) <= PROMPTS
    assert keys(killed / "table") == keys(whole / "table")
    assert len(set(keys(killed / "table"))) == PROMPTS
    asked_again = sum(count - 1 for count in proxy.asked.values())
    assert asked_again <= CONCURRENCY
    proxy.shutdown()

    third = potstill("collect", run)
    assert third.returncode == 0 and "nothing to do" in third.stdout
    assert len(keys(killed / "table")) == PROMPTS


def test_every_row_says_where_it_comes_from_and_the_views_agree(tmp_path: Path, teacher: str) -> None:
    run = project(tmp_path, teacher)
    address = f'kind = "llamacpp"\n        base_url = "{teacher}"'
    text = run.read_text(encoding="utf-8")
    assert address in text
    run.write_text(text.replace(address, 'kind = "embedded"'), encoding="utf-8")
    done = potstill("collect", run, "--limit", "6")
    assert done.returncode in (0, 4), done.stderr
    table = tmp_path / "table"
    (row,) = sql(
        table,
        """SELECT count(*) AS rows, sum(len(token_ids)) AS tokens, sum(len(top_ids)) AS candidates,
                  bool_and(terms = ['gemma-tou@2025-03-24']) AS terms, bool_and(len(decision) = 64) AS decision,
                  bool_and(len(tokenizer_sha256) = 64) AS tokenizer, bool_and(len(policy_bundle) > 0) AS bundle,
                  min(prompt_token_ids[1]) AS first_id FROM soft_labels""",
    ).to_pylist()
    assert row["rows"] == 6
    assert row["terms"] and row["decision"] and row["tokenizer"] and row["bundle"]
    assert row["first_id"] == 2, "Gemma's llama.cpp begins a prompt with BOS"
    assert sql(table, "SELECT count(*) AS n FROM tokens")["n"].to_pylist() == [row["tokens"]]
    assert sql(table, "SELECT count(*) AS n FROM candidates")["n"].to_pylist() == [row["candidates"]]
    (decision,) = set(sql(table, "SELECT decision FROM soft_labels")["decision"].to_pylist())
    assert Table.open(table).decision(decision).verdict in ("allow", "conditional")
    (alignment,) = sql(
        table, "SELECT max(abs(token_logprobs[1] - top_logprobs[1])) AS gap FROM soft_labels WHERE token_ranks[1] = 1"
    )["gap"].to_pylist()
    assert alignment is None or alignment < 0.05
