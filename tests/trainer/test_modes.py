"""What `[training]` hands to transformers changes how a step is computed, not what it learns."""

from pathlib import Path

import pytest

from tests.trainer.synthetic import MarkovTeacher, training_folder
from trainer.config import read_config
from trainer.fit import train


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(tmp_path_factory.mktemp("plain"), "")


def losses(folder: Path, settings: str) -> list[float]:
    MarkovTeacher().table(folder / "table", 30)
    path = training_folder(folder, steps=4, settings=settings)
    path.write_text(
        path.read_text(encoding="utf-8").replace("logging_steps = 10", "logging_steps = 1"), encoding="utf-8"
    )
    return [entry["loss"] for entry in train(read_config(path)).record["log"] if "loss" in entry]


def test_gradient_checkpointing_gives_the_same_losses(plain: list[float], tmp_path: Path) -> None:
    assert losses(tmp_path, "activation_checkpointing = true") == pytest.approx(plain, abs=1e-6)
    assert len(set(plain)) == 4


def test_bfloat16_gives_nearly_the_same_losses(plain: list[float], tmp_path: Path) -> None:
    found = losses(tmp_path, "bf16 = true")
    assert found == pytest.approx(plain, abs=0.05)
    assert found != plain
