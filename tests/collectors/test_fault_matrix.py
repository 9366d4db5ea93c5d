"""Each fault of a server, to each of 100 requests, against a whole run: transient ones cost tries and nothing else,
payloads that cannot become a row are rejects with their reason and the very bytes that were sent."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from collectors import limits, opening
from collectors.config import RunConfig
from collectors.http import HttpSender
from collectors.report import RunReport
from collectors.run import collect
from storage.query import sql
from tests.collectors.runs import run_config
from tests.collectors.servers import Ask, TeacherServer, tokens_of
from tests.collectors.vllm_server import VllmServer

pytestmark = pytest.mark.timeout(100)
VICTIMS = 100
WELL = 10
"""Prompts that are answered at once, first: an endpoint that never answered is given up after four tries."""
ATTEMPTS = 3


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(limits, "LONGEST_PAUSE_SECONDS", 0.02)


class Faulty:
    """Does `fault` to each victim at its first try or its first two, by chance; `most` bounds them."""

    def __init__(self, fault: str, most: int = 1) -> None:
        self.fault = fault
        chance = random.Random(fault)
        self.tries = {n: chance.randint(1, most) for n in range(WELL, WELL + VICTIMS)}

    def __call__(self, ask: Ask) -> str | None:
        one = ask.prompt_number
        return self.fault if one is not None and ask.attempt <= self.tries.get(one, 0) else None


def collected(
    folder: Path, server: TeacherServer, *, timeout: float = 60.0, concurrency: int = 16, attempts: int = ATTEMPTS
) -> tuple[RunConfig, RunReport]:
    settings = {"prompts": WELL + VICTIMS, "attempts": attempts, "concurrency": concurrency}
    config = run_config(folder, server.url, **settings)
    kind = "vllm" if isinstance(server, VllmServer) else "llamacpp"
    endpoint = config.pool[0].model_copy(update={"timeout_seconds": timeout, "kind": kind})
    config = config.model_copy(update={"endpoint": endpoint})
    return config, collect(config)


def tries(server: TeacherServer) -> "Counter[int]":
    return Counter(one for ask in server.asks if (one := ask.prompt_number) is not None)


def sent(server: TeacherServer, one: int) -> bytes:
    return server.sent[tuple(tokens_of(f"Prompt {one}"))]


def check_stored(config: RunConfig, server: TeacherServer, numbers: range) -> list[dict[str, Any]]:
    """Each of these prompts is in the table once, as the row of the last bytes that the server sent for it."""
    rows = sql(config.table, "SELECT prompt_id, raw_sha256, flags, k FROM soft_labels").to_pylist()
    expected = {f"p{n}": hashlib.sha256(sent(server, n)).hexdigest() for n in numbers}
    assert {row["prompt_id"]: row["raw_sha256"] for row in rows} == expected
    assert len(rows) == len(numbers)
    return rows


AT_ONCE = {"most": 1, "concurrency": VICTIMS + WELL}  # all meet the fault before the first hears of it
TRANSIENT: dict[str, dict[str, Any]] = {
    "reset": {},
    "truncate": {},
    "truncate-chunked": {},
    "truncate-unsized": {},
    "stall": AT_ONCE | {"timeout": 1.5},
    "http-429": {},
    "http-429-0": {},
    "http-429-1": AT_ONCE,
    "http-429-date": AT_ONCE,
    "http-503-1": AT_ONCE,
    "http-busy": {},
    "redirect": {},
}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_costs_tries_and_nothing_else(tmp_path: Path, fault: str) -> None:
    how = dict(TRANSIENT[fault])
    faulty = Faulty(fault, how.pop("most", 2))
    with TeacherServer(faulty) as server:
        server.together = VICTIMS if "concurrency" in how and "http" in fault else 0
        config, report = collected(tmp_path, server, **how)
    assert (report.outcome, report.committed, report.rejected) == ("done", WELL + VICTIMS, 0), report
    check_stored(config, server, range(WELL + VICTIMS))
    assert tries(server) == {n: 1 + faulty.tries.get(n, 0) for n in range(WELL + VICTIMS)}
    if fault.endswith(("-1", "-date")):
        times = sorted(ask.at for ask in server.asks)
        assert max(later - earlier for earlier, later in pairwise(times)) > 0.9  # nobody asked before


def test_a_storm_of_a_hundred_errors_is_sat_out_by_single_tries(tmp_path: Path) -> None:
    left = [VICTIMS]

    def storm(ask: Ask) -> str | None:
        if (ask.prompt_number or 0) < WELL or not left[0]:
            return None
        left[0] -= 1
        return "http-busy"

    with TeacherServer(storm) as server:
        config, report = collected(tmp_path, server, attempts=8, concurrency=32)
    assert (report.outcome, left[0]) == ("done", 0), report
    check_stored(config, server, range(WELL + VICTIMS))
    assert max(tries(server).values()) <= 8


@pytest.mark.parametrize("fault", ["reset", "truncate", "http-500", "http-429"])
def test_a_fault_that_does_not_end_takes_the_attempts_allowed_and_no_more(tmp_path: Path, fault: str) -> None:
    endless = {*range(WELL, WELL + VICTIMS, 20)}
    with TeacherServer(lambda ask: fault if ask.prompt_number in endless else None, latency=0.01) as server:
        config, report = collected(tmp_path, server)
    rest = [n for n in range(WELL + VICTIMS) if n not in endless]
    assert {n: tries(server)[n] for n in endless} == dict.fromkeys(endless, ATTEMPTS)
    assert report.committed == len(rest)
    poison = sql(config.table, "SELECT prompt_id, reason FROM rejects").to_pylist()
    assert {one["reason"] for one in poison} <= {"poison"}
    assert len(poison) + report.unanswered == len(endless)


REJECTED = {
    "broken-json": "broken_json",
    "duplicate-key": "length_mismatch",
    "wrong-type": "wrong_shape",
    "wrong-length": "length_mismatch",
    "out-of-vocabulary": "id_out_of_vocabulary",
    "mass-above-one": "mass_above_one",
    "repeated-id": "repeated_ids",
    "speculative": "empty_candidates",
    "nan": "broken_json",
    "http-400": "http_400",
    "http-413": "http_413",
    "http-422": "http_422",
}
REJECTED_OF_VLLM = {
    "nan": "broken_json",
    "wrong-length": "length_mismatch",
    "colliding strings": "too_few_candidates",
    "candidates by string": "no_token_ids",
    "no labels": "no_logprobs",
    "two choices": "wrong_shape",
}
MALFORMED = [(TeacherServer, *row) for row in REJECTED.items()] + [
    (VllmServer, *row) for row in REJECTED_OF_VLLM.items()
]


@pytest.mark.parametrize(("protocol", "fault", "reason"), MALFORMED)
def test_what_cannot_become_a_row_is_a_reject_with_its_bytes(
    tmp_path: Path, protocol: Callable[..., TeacherServer], fault: str, reason: str
) -> None:
    with protocol(Faulty(fault)) as server:
        config, report = collected(tmp_path, server)
    assert (report.exit_code, report.committed, report.rejected) == (4, WELL, VICTIMS), report
    check_stored(config, server, range(WELL))
    check_rejects(config, reason, {f"p{n}": sent(server, n) for n in range(WELL, WELL + VICTIMS)})
    assert set(tries(server).values()) == {1}


def check_rejects(config: RunConfig, reason: str, raw: dict[str, bytes]) -> None:
    found = sql(config.table, "SELECT prompt_id, reason, detail, raw FROM rejects").to_pylist()
    assert len(found) == len(raw)
    assert {one["prompt_id"]: one["raw"] for one in found} == raw
    assert {one["reason"] for one in found} == {reason}
    assert all(one["detail"] for one in found)


def test_small_bodies_that_unpack_to_huge_ones_are_rejects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "HttpSender", partial(HttpSender, max_body_bytes=1 << 20))
    with TeacherServer(Faulty("gzip-bomb")) as server:
        config, report = collected(tmp_path, server)
    assert (report.committed, report.rejected) == (WELL, VICTIMS)
    beginning = b" " * 65536
    check_rejects(config, "body_too_large", {f"p{n}": beginning for n in range(WELL, WELL + VICTIMS)})
    assert set(tries(server).values()) == {1}


ODD: list[tuple[Callable[..., TeacherServer], str]] = [
    (TeacherServer, "colliding-strings"),
    (TeacherServer, "sentinel"),
    (TeacherServer, "null"),
    (TeacherServer, "lowest-float"),
    (TeacherServer, "large"),
    (VllmServer, "k+1"),
    (VllmServer, "sentinel"),
]


@pytest.mark.parametrize(("protocol", "fault"), ODD)
def test_what_is_only_odd_is_stored_with_its_k_candidates(
    tmp_path: Path, protocol: Callable[..., TeacherServer], fault: str
) -> None:
    with protocol(Faulty(fault)) as server:
        config, report = collected(tmp_path, server)
    assert report.outcome == "done", report
    rows = check_stored(config, server, range(WELL + VICTIMS))
    assert {row["k"] for row in rows} == {5}
    masked = {row["prompt_id"] for row in rows if "masked=1" in row["flags"]}
    expected = VICTIMS if fault in ("sentinel", "null", "lowest-float") else 0
    assert len(masked) == expected
    assert set(tries(server).values()) == {1}
