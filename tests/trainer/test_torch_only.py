"""The example with a hand-written loop does train, within the length it promises."""

import json
from pathlib import Path

import pytest

from examples import torch_only
from tests.trainer.synthetic import MarkovTeacher

EXAMPLES = Path(torch_only.__file__).parent


def test_learns_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = MarkovTeacher()
    teacher.table(tmp_path / "table", 120)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch_only, "LENGTH", 64)
    _, losses = torch_only.train(str(tmp_path / "table"), str(EXAMPLES / "use.toml"), 60, vocabulary=teacher.size)
    assert losses[-1] < 0.3 * losses[0]
    assert json.loads((tmp_path / "stream.json").read_text())["cursor"] == 60 * 8


def test_is_short() -> None:
    lines = (EXAMPLES / "torch_only.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 60
