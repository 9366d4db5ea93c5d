from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collectors import pool
from collectors.config import RunConfig, read_run
from collectors.errors import EndpointUnfit
from collectors.run import collect
from storage.query import sql
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


def test_a_model_swapped_during_the_run_stops_that_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CANARY_SECONDS", 0.2)
    swapped: list[bool] = []
    with (
        TeacherServer(other_model(lambda: bool(swapped)), latency=0.05) as turned,
        TeacherServer(latency=0.05) as second,
        TeacherServer(latency=0.05) as third,
    ):
        config = pooled(tmp_path, turned, second, third, prompts=300)
        watcher = Recorder()
        third.fault = lambda ask: swapped.append(True) if ours(third) > 10 else None  # type: ignore[func-returns-value]
        report = collect(config, watcher=watcher)
        assert report.committed == 300
        assert [line for line in watcher.lines if turned.url in line and "no longer answers" in line]
        assert ours(turned) < ours(second)
    assert len(sql(config.table, "SELECT DISTINCT key FROM soft_labels")) == 300
