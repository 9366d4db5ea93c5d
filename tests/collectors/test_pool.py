from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest

from collectors import keeping, pool
from collectors.canary import PROMPTS
from collectors.card import read_card
from collectors.config import RunConfig, read_run
from collectors.errors import EndpointUnfit
from collectors.run import collect
from storage.doubts import ENDPOINT_CHANGED, doubts_of
from storage.query import sql
from storage.table import Table
from storage.verify import verify
from tests.collectors.runs import write_run
from tests.collectors.servers import Ask, TeacherServer

pytestmark = pytest.mark.usefixtures("short_pauses")


def pooled(folder: Path, *servers: TeacherServer, prompts: int = 60) -> RunConfig:
    path = write_run(folder, servers[0].url, prompts=prompts, concurrency=4)
    head, rest = path.read_text().split("[endpoint]")
    endpoints = "".join(f'[[endpoints]]\nkind = "llamacpp"\nbase_url = "{server.url}"\n' for server in servers)
    path.write_text(head + endpoints + "[limits]" + rest.split("[limits]")[1])
    return read_run(path)


class Recorder:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, state: Any) -> None:
        pass

    def say(self, line: str) -> None:
        self.lines.append(line)


def other_model(when: Callable[[], bool] = lambda: True) -> Callable[[Ask], str | None]:
    """Answers as of other weights: the candidates of each answer are those of another seed."""
    return lambda ask: "other-model" if when() else None


def ours(server: TeacherServer) -> int:
    return sum(len(name[0]) < 13 and name[1] != 7 for name in server.answered)


def test_equal_endpoints_share_the_work(tmp_path: Path) -> None:
    with TeacherServer(latency=0.02) as first, TeacherServer(latency=0.02) as second:
        config = pooled(tmp_path, first, second)
        report = collect(config)
        assert report.outcome == "done"
        assert report.committed == 60
        assert min(ours(first), ours(second)) > 10


def test_an_endpoint_with_another_model_is_left_out(tmp_path: Path) -> None:
    with TeacherServer(other_model()) as odd, TeacherServer() as first, TeacherServer() as second:
        watcher = Recorder()
        report = collect(pooled(tmp_path, odd, first, second), watcher=watcher)
        assert report.committed == 60
        assert [line for line in watcher.lines if odd.url in line and "left out" in line]
        assert not [ask for ask in odd.asks if ask.body["n_predict"] == 6]


def test_two_that_differ_are_no_pool(tmp_path: Path) -> None:
    with TeacherServer(other_model()) as odd, TeacherServer() as first, pytest.raises(EndpointUnfit, match="canary"):
        collect(pooled(tmp_path, odd, first))


class Swap:
    """A pool of three, the first of which becomes another model when it has rows and was compared so often since."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        *,
        prompts: int = 400,
        compared: int = 1,
        seconds: float = 0.1,
    ) -> None:
        monkeypatch.setattr(pool, "CANARY_SECONDS", seconds)
        self._compared, self._enough = compared, 0
        self.at: datetime | None = None
        self.wrong: set[int] = set()
        self.turned, *others = self.servers = [TeacherServer(latency=0.05) for _ in range(3)]
        self.turned.fault, others[1].fault = self._wrong, self._watch
        self._stack = ExitStack()
        for server in self.servers:
            self._stack.enter_context(server)
        self.config = pooled(folder, *self.servers, prompts=prompts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _watch(self, ask: Ask) -> None:
        songs = sum(one.body["n_predict"] == 4 and one.body["temperature"] == 0 for one in self.turned.asks)
        if ours(self.turned) <= 10:
            begun = -(-songs // len(PROMPTS))
            self._enough = (begun + self._compared) * len(PROMPTS)
        elif self.at is None and songs >= self._enough:
            self.at = datetime.now(UTC)

    def _wrong(self, ask: Ask) -> str | None:
        if self.at is None:
            return None
        self.wrong.add(ask.number)
        return "other-model"

    def check(self, *, all_of_it: bool = False) -> None:
        """All rows of the changed endpoint from the swap on are flagged, none of another's; all of its own or not."""
        table = Table.open(self.config.table)
        [run] = table.runs()
        cards = {read_card(text.encode()).address: read_card(text.encode()).digest for text in run.endpoint_cards}
        assert set(cards) == {server.url for server in self.servers}
        found = sql(
            table, "SELECT key, teacher.endpoint_card AS card, collected_at AS at, flags FROM soft_labels"
        ).to_pylist()
        changed = [row for row in found if row["card"] == cards[self.turned.url]]
        flagged = [row for row in found if ENDPOINT_CHANGED in row["flags"]]
        assert len({row["key"] for row in found}) == len(found)
        assert all(row["card"] == cards[self.turned.url] for row in flagged)
        assert self.at is not None
        assert all(ENDPOINT_CHANGED in row["flags"] for row in changed if row["at"] > self.at)
        assert [row for row in changed if row["at"] > self.at]
        assert (len(flagged) == len(changed)) == all_of_it
        assert verify(self.config.table).problems == ()


def test_a_model_swapped_during_the_run_stops_that_endpoint_and_flags_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_FIRST_COMMIT", 0.1)  # so that some rows are in the table and some in the journal
    with Swap(monkeypatch, tmp_path) as swap:
        watcher = Recorder()
        assert collect(swap.config, watcher=watcher).committed == 400
        assert [line for line in watcher.lines if swap.turned.url in line and "no longer answers" in line]
        assert ours(swap.turned) < ours(swap.servers[1])
        swap.check()


def test_the_last_look_finds_what_was_swapped_since_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Swap(monkeypatch, tmp_path, prompts=90, compared=0, seconds=3600.0) as swap:
        watcher = Recorder()
        assert collect(swap.config, watcher=watcher).committed == 90
        assert [line for line in watcher.lines if "no longer answers" in line]
        swap.check(all_of_it=True)


def test_a_start_that_was_killed_before_it_flagged_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> int:
        raise KilledHere

    monkeypatch.setattr(keeping, "_FIRST_COMMIT", 0.1)
    with Swap(monkeypatch, tmp_path) as swap:
        with monkeypatch.context() as patched:
            patched.setattr(keeping, "flag_rows", killed)
            with pytest.raises(KilledHere):
                collect(swap.config)
        assert doubts_of(Table.open(swap.config.table))
        before = sql(swap.config.table, "SELECT flags FROM soft_labels").to_pylist()
        collect(swap.config)
        swap.check()
        assert sum(bool(row["flags"]) for row in before) < len(before)


@pytest.mark.parametrize("allowed", [30, 60, 110, 160])
def test_canaries_are_paid_out_of_the_budget_and_the_last_look_is_always_covered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    monkeypatch.setattr(pool, "CANARY_SECONDS", 0.05)
    with TeacherServer(latency=0.01) as first, TeacherServer(latency=0.01) as second:
        config = pooled(tmp_path, first, second, prompts=200)
        config = config.model_copy(update={"budget": config.budget.model_copy(update={"requests": allowed})})
        reports = [collect(config) for _ in range(2)]
        seen = len(first.headers) + len(second.headers)
        assert {one.outcome for one in reports} == {"budget"}
        assert 17 < seen <= Table.open(config.table).runs()[0].requests <= allowed
        if reports[0].committed:
            assert [ask.body["temperature"] for ask in first.asks[-8:]] == [0.0] * 8, "the look comes last"


class KilledHere(Exception):
    pass
