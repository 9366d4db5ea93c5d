"""Journal, reading, commit, crash and resume against a dictionary: what was acknowledged is there, once.

A crash is an exception that no code of ours may catch to go on, at each labelled point, and an abandoned start.
"""

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from collectors import keeping
from collectors.asking import Answer
from collectors.bookmark import TeacherTokens
from collectors.budget import Spend
from collectors.config import AskSettings, EndpointSettings, TeacherSettings
from collectors.gate import Clearance
from collectors.http import Response
from collectors.keeping import Keeper, Received, received
from collectors.labelling import Provenance, Readers, label
from collectors.limits import Grant
from collectors.plan import Item
from collectors.providers import provider
from storage.journal import Journal, journal_keys
from storage.rows import Row, Sampling, TeacherRecord
from storage.table import Table
from tests.collectors.killed_child import POINTS
from tests.collectors.servers import completion

NUMBERS = st.lists(st.integers(0, 29), min_size=2, max_size=6, unique=True)
RUN = "run-1"
INNER = {name: point for name, point in POINTS.items() if point[0].__name__ not in ("HttpSender", "Chronicle")}
INNER["archived"] = (Table, "archive_batch", False)
PLACES = st.sampled_from(sorted(INNER))
SHARED = Provenance(
    run_id=RUN,
    mode="generate",
    teacher=TeacherRecord(model="google/gemma-3-270m", provider="llamacpp", access_path="self_host"),
    tokens=TeacherTokens(),
    sampling=Sampling(temperature=1.0),
    clearance=Clearance(terms=("gemma-tou@2025-03-24",), policy_bundle="b", collect_verdict="allow", decision="0" * 64),
)
PROVIDER = provider(
    "llamacpp",
    teacher=TeacherSettings(model="google/gemma-3-270m"),
    endpoint=EndpointSettings(kind="llamacpp", base_url="http://127.0.0.1:1"),
    ask=AskSettings(top_k=2, max_tokens=2),
)
READERS = Readers(lambda card: PROVIDER, [])


class Crash(BaseException):
    """Stands for the end of the process."""


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def is_good(number: int) -> bool:
    return number % 3 != 2


@cache
def answer(number: int, version: int) -> Received:
    """An answer to the question of this number; every third is malformed."""
    body = json.dumps(completion({"prompt": [number], "seed": version, "n_probs": 2, "n_predict": 2})).encode()
    body = body if is_good(number) else body[:-20]
    item = Item(key=key(number), prompt_id=f"p{number}", sample_index=0, prompt_token_ids=(number,), max_tokens=2)
    response = Response(200, {}, body, 0.0)
    grant = Grant(None, False)
    return received(SHARED, Answer(item, response, datetime.now(UTC), Spend(), grant, None))  # type: ignore[arg-type]


def digest(number: int, version: int) -> str:
    return hashlib.sha256(answer(number, version).raw.body).hexdigest()


@cache
def empty_table() -> Path:
    path = Path(tempfile.mkdtemp()) / "table"
    Table.create(path)
    return path


class Collecting(RuleBasedStateMachine):
    """One run and another writer on one table. `acknowledged` is the dictionary; `possible` holds the digests that a
    question's row may have: all answers up to the first acknowledged one, and the other writer's."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "table"
        self.loop = asyncio.new_event_loop()
        self.armed: tuple[Any, str, bool] | None = None
        self.acknowledged: set[int] = set()
        self.possible: dict[int, set[str]] = {}
        self.rejected: set[str] = set()
        self.offered: set[int] = set()
        self.others = self.settled = 0
        self.journal: Journal | None = None
        self.steps = {(owner, name): getattr(owner, name) for owner, name, _ in INNER.values()}
        for (owner, name), step in self.steps.items():
            setattr(owner, name, self.passing(owner, name, step))

    def passing(self, owner: Any, name: str, step: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.passed((owner, name, True))
            result = step(*arguments, **options)
            self.passed((owner, name, False))
            return result

        return wrapped

    def passed(self, point: tuple[Any, str, bool]) -> None:
        if point == self.armed:
            self.armed = None
            raise Crash

    @initialize(keep_raw=st.booleans())
    def create(self, keep_raw: bool) -> None:
        shutil.copytree(empty_table(), self.path)
        self.table = Table.open(self.path)
        self.onlooker = Table.open(self.path)
        self.keep_raw = keep_raw

    # -- one start of the run ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.journal is None)
    @rule()
    def start(self) -> None:
        self.journal = Journal.open(self.path / "journal", RUN)
        try:
            self.keeper = Keeper(
                self.journal,
                Table.open(self.path),
                READERS,
                RUN,
                keep_raw=self.keep_raw,
                may_write=lambda: None,
                settled=self.read,
                committed=lambda counts, keys: None,
            )
            self.keeper.recover()
        except Crash:
            self.abandon()
            return
        self.offered = set()
        self.look_at_rejects()
        self.work = self.loop.create_task(self.keeper.work())

    @precondition(lambda self: self.journal is not None)
    @rule(numbers=NUMBERS, version=st.integers(0, 3))
    def receive(self, numbers: list[int], version: int) -> None:
        """Answers to questions that a plan would ask, and again to some that it would not: those are dropped."""
        asked = [n for n in numbers if is_good(n) or not (n in self.offered or key(n) in self.rejected)]
        for number in asked:
            self.offered.add(number)
            if number not in self.acknowledged:
                self.possible.setdefault(number, set()).add(digest(number, version))
        self.loop.run_until_complete(self.keep(asked, version))
        commit = self.keeper._commit
        if self.work.done() or (commit is not None and commit.exception() is not None):
            self.crashed(self.work if self.work.done() else commit)

    async def keep(self, asked: list[int], version: int) -> None:
        """Until all is read and no commit runs: what a thread does meanwhile must not depend on its speed."""
        before = self.settled
        keeps = {asyncio.create_task(self.keeper.keep(answer(number, version))): number for number in asked}
        while not self.work.done() and (self.settled < before + len(asked) or self.keeper._reading is not None):
            await asyncio.sleep(0.0005)
        if self.keeper._commit is not None and not self.work.done():
            await asyncio.wait({self.keeper._commit})
        for one, number in keeps.items():
            if one.done():
                self.acknowledged.add(number)
            else:
                one.cancel()

    def read(self, one: Received, outcome: Any) -> None:
        self.settled += 1

    @precondition(lambda self: self.journal is not None)
    @rule()
    def stop(self) -> None:
        self.loop.run_until_complete(self.keeper.close())
        self.loop.run_until_complete(asyncio.wait({self.work}))
        if self.work.exception() is not None:
            self.crashed(self.work)
            return
        assert self.journal is not None and len(self.journal) == 0
        self.journal.close()
        self.journal = None
        assert not [*(self.path / "journal").iterdir()]

    # -- what else happens ------------------------------------------------------------------------------------------

    def arm(self, point: str) -> None:
        """The next step that comes by this point is the last one."""
        self.armed = INNER[point]

    @precondition(lambda self: self.journal is None)
    @rule(point=PLACES)
    def start_and_crash(self, point: str) -> None:
        self.arm(point)
        self.start()

    @precondition(lambda self: self.journal is not None)
    @rule(point=PLACES, numbers=NUMBERS, version=st.integers(0, 3))
    def receive_and_crash(self, point: str, numbers: list[int], version: int) -> None:
        self.arm(point)
        self.receive(numbers, version)

    @precondition(lambda self: self.journal is not None)
    @rule(point=PLACES)
    def stop_and_crash(self, point: str) -> None:
        self.arm(point)
        self.stop()

    @precondition(lambda self: self.journal is not None)
    @rule()
    def kill(self) -> None:
        self.armed = None
        self.abandon()

    def crashed(self, task: "asyncio.Task[None]") -> None:
        assert isinstance(task.exception(), Crash), task.exception()
        self.abandon()

    def abandon(self) -> None:
        """What is left of a process after its end: its files, without its locks."""
        if getattr(self, "work", None) is not None:
            self.work.cancel()
            self.loop.run_until_complete(asyncio.gather(self.work, return_exceptions=True))
        assert self.journal is not None
        self.journal._database.close()
        os.close(self.journal._lock._descriptor)
        self.journal = None

    @rule(numbers=NUMBERS)
    def another_writes(self, numbers: list[int]) -> None:
        armed, self.armed = self.armed, None
        rows = [label(answer(number, 9).raw, READERS, "run-2") for number in numbers if is_good(number)]
        done = self.table.append([row for row in rows if isinstance(row, Row)], writer="run-2", sequence=self.others)
        self.others += 1
        assert done.written + done.duplicates == len(rows)
        for number in filter(is_good, numbers):
            self.possible.setdefault(number, set()).add(digest(number, 9))
        self.armed = armed

    # -- what must hold ---------------------------------------------------------------------------------------------

    def look_at_rejects(self) -> list[str]:
        found: list[str] = self.onlooker.rejects.read().column("key").to_pylist()
        self.rejected = set(found)
        return found

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        keys, rows = self.onlooker.keys(), sum(file.rows for file in self.onlooker.files())
        assert len(keys) == rows
        journal = self.path / "journal" / f"{RUN}.sqlite"
        waiting = self.journal.keys() if self.journal else journal_keys(journal) if journal.exists() else set()
        missing = {n for n in self.acknowledged if key(n) not in keys and key(n) not in waiting}
        assert not {n for n in missing if is_good(n)}
        if not {key(n) for n in missing} <= self.rejected:
            self.look_at_rejects()
        assert {key(n) for n in missing} <= self.rejected

    def teardown(self) -> None:
        try:
            if hasattr(self, "table"):
                self.armed = None
                if self.journal is None:
                    self.start()
                self.stop()
                self.compare()
        finally:
            for (owner, name), step in self.steps.items():
                setattr(owner, name, step)
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.folder)

    def compare(self) -> None:
        """Everything in the end: each question once, with one of the answers that it may have."""
        rows: list[dict[str, str]] = []
        for file in self.onlooker.files():
            columns = pq.read_table(file.path, columns=["key", "raw_sha256"], partitioning=None)
            rows += columns.to_pylist()
        found = {row["key"]: row["raw_sha256"] for row in rows}
        rejects = self.onlooker.rejects.read().to_pylist()
        assert len(found) == len(rows)
        assert len({one["key"] for one in rejects}) == len(rejects)
        expected = {key(n): digests for n, digests in self.possible.items()}
        for row in rows:
            assert row["raw_sha256"] in expected[row["key"]]
        for one in rejects:
            assert hashlib.sha256(one["raw"]).hexdigest() in expected[one["key"]]
            assert one["reason"] == "broken_json"
        assert {key(n) for n in self.acknowledged} <= found.keys() | {one["key"] for one in rejects}
        if self.keep_raw and self.acknowledged:
            archived = [
                response for file in self.onlooker.archive.files() for response in self.onlooker.archive.responses(file)
            ]
            assert {key(n) for n in self.acknowledged} <= {response.key for _, response in archived}


def test_no_difference_from_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_BATCH_ROWS", 4)
    monkeypatch.setattr(keeping, "_FIRST_COMMIT", 1000.0)
    monkeypatch.setattr(keeping, "_LONGEST_WAIT", 1000.0)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Collecting,
        settings=settings(
            max_examples=int(os.environ.get("POTSTILL_MACHINE_EXAMPLES", "100")),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
