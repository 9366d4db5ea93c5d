import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tenacity

from collectors import limits, retry
from tests.collectors.real_teacher import ask, exchange, item, made, send, teacher_server, teacher_tokenizer
from tests.collectors.watched_key import Watch, Wrapped

__all__ = ["ask", "exchange", "item", "made", "send", "teacher_server", "teacher_tokenizer"]

_seen: set[Path] = set()
_watch = Watch()


@pytest.fixture(autouse=True)
def _no_waits_between_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "wait_random_exponential", lambda **_: tenacity.wait_none())


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests on the true clock: an endpoint's pauses are a hundredth as long."""
    monkeypatch.setattr(limits, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(limits, "LONGEST_PAUSE_SECONDS", 0.6)


@pytest.fixture(autouse=True, scope="module")
def _the_key_is_nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever the tests of a module write, log at DEBUG or print, the key of their runs is not in it."""
    logs = tmp_path_factory.mktemp("debug-logs")
    added = {"POTSTILL_DEBUG_LOGS": str(logs), "PYTHONPATH": str(Path(__file__).with_name("debugged"))}
    before = {name: os.environ.get(name) for name in added}
    added["PYTHONPATH"] = os.pathsep.join(filter(None, [added["PYTHONPATH"], before["PYTHONPATH"]]))
    os.environ.update(added)
    _seen.update(set(tmp_path_factory.getbasetemp().iterdir()) - {logs})
    with Wrapped(_watch):
        yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    for folder in set(tmp_path_factory.getbasetemp().iterdir()) - _seen:
        if not folder.is_symlink():
            _watch.scan(folder)
    found, _watch.found = _watch.found, []
    assert not found, found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    for name, text in report.sections:  # type: ignore[attr-defined]
        _watch.look(text.encode(), f"{name} of {item.nodeid}")
    return report
