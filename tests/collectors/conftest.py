import pytest
import tenacity

from collectors import limits, retry
from tests.collectors.real_teacher import ask, exchange, item, made, send, teacher_server, teacher_tokenizer

__all__ = ["ask", "exchange", "item", "made", "send", "teacher_server", "teacher_tokenizer"]


@pytest.fixture(autouse=True)
def _no_waits_between_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "wait_random_exponential", lambda **_: tenacity.wait_none())


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests on the true clock: an endpoint's pauses are a hundredth as long."""
    monkeypatch.setattr(limits, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(limits, "LONGEST_PAUSE_SECONDS", 0.6)
