"""train.toml: the design's example is read as it stands; what is wrong is named."""

from pathlib import Path

import pytest

from policies.settings import ConfigError
from tests.trainer.synthetic import training_folder
from trainer.config import TrainConfig, read_config
from trainer.loop import TrainingSettingsRefused, training_arguments

EXAMPLE = """
table = "data/soft_labels"
version = 12
use = "use.toml"
out = "students/acme-small"
[student]
from = "config"
[data]
sequence_length = 512
pack = true
seed = 0
holdout = 0.05
[loss]
divergence = "forward_kl"
tail = "bucket"
temperature = 1.0
hard_weight = 0.1
[gates]
[training]
max_steps = 1000
"""


def read(folder: Path, text: str) -> TrainConfig:
    (folder / "train.toml").write_text(text, encoding="utf-8")
    return read_config(folder / "train.toml")


def test_the_example_is_read_and_paths_are_beside_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, EXAMPLE)
    assert (config.table, config.version) == (tmp_path / "data/soft_labels", 12)
    assert config.out == tmp_path / "students/acme-small"
    assert config.student.from_ == "config"
    assert config.training == {"max_steps": 1000}


def test_a_student_from_a_folder_is_beside_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, EXAMPLE.replace('from = "config"', 'from = "base"'))
    assert config.student.from_ == tmp_path / "base"


def test_all_errors_come_at_once_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, EXAMPLE.replace("holdout = 0.05", "holdout = 1.5").replace("tail =", "tial ="))
    assert "[data] holdout" in str(caught.value)
    assert "did you mean tail?" in str(caught.value)


@pytest.mark.parametrize("sizes", ["hidden_size = 30\nheads = 4", "heads = 4\nkey_value_heads = 3"])
def test_heads_that_do_not_fit_are_refused(tmp_path: Path, sizes: str) -> None:
    with pytest.raises(ConfigError, match="heads must divide"):
        read(tmp_path, EXAMPLE.replace('from = "config"', sizes))


def test_the_digest_tells_trainings_apart(tmp_path: Path) -> None:
    config = read(tmp_path, EXAMPLE)
    assert config.digest == read(tmp_path, EXAMPLE.replace("acme-small", "elsewhere")).digest
    assert config.digest != read(tmp_path, EXAMPLE.replace("seed = 0", "seed = 1")).digest
    assert config.digest != config.hard_twin().digest
    assert config.hard_twin().loss.hard_weight == 1


def test_unknown_training_arguments_are_named_with_the_nearest() -> None:
    with pytest.raises(TrainingSettingsRefused) as caught:
        training_arguments({"learning_rat": 1, "output_dir": "x"}, out=Path("out"), seed=0, from_scratch=True)
    assert "learning_rat: transformers.TrainingArguments has no such setting; did you mean learning_rate?" in str(
        caught.value
    )
    assert "output_dir: is set by potstill; use out" in str(caught.value)


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"lr_scheduler_type": "zigzag"}, {"optim": "nothing-known"}])
def test_values_that_transformers_refuses_are_told(settings: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(TrainingSettingsRefused, match=r"\[training\]"):
        training_arguments(dict(settings), out=tmp_path, seed=0, from_scratch=True)


def test_defaults_are_overridden_by_what_is_said(tmp_path: Path) -> None:
    config = read_config(training_folder(tmp_path, steps=7))
    arguments = training_arguments(config.training, out=tmp_path, seed=3, from_scratch=True)
    assert (arguments.max_steps, arguments.seed, arguments.learning_rate) == (7, 3, 5e-3)
