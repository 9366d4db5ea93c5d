"""A training that is killed and resumed, on one rank or two, is the training that was not."""

import shutil
from pathlib import Path

import pytest

from tests.trainer.synthetic import MarkovTeacher, training_folder
from tests.trainer.training_child import (
    SEQUENCES,
    differences,
    finish,
    forkserver,
    history,
    killed_training,
    settings_file,
    start,
)
from trainer.checkpoint import ResumeRefused, TrainingState, last_checkpoint
from trainer.config import read_config
from trainer.errors import TrainError
from trainer.fit import train

STEPS = 12


def kill_folder(folder: Path, steps: int, save_steps: int, kept: int = 1) -> Path:
    """A table and the settings of one training, for one rank and for two; dropout nowhere, so that ranks agree."""
    folder.mkdir()
    MarkovTeacher().table(folder / "table", 60)
    text = training_folder(folder, steps=steps).read_text(encoding="utf-8")
    text = text.replace("save_steps = 20", f"save_steps = {save_steps}\nsave_total_limit = {kept}")
    for world in (1, 2):
        size = f"batch_size = {SEQUENCES // world}"
        settings_file(folder, world).write_text(text.replace("batch_size = 8", size), encoding="utf-8")
    return folder


def test_killed_trainings_read_and_learn_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """World sizes 1 → 2 → 1, two SIGKILLs."""
    whole, killed = (kill_folder(tmp_path / name, STEPS, 2) for name in ("whole", "killed"))
    context = forkserver()
    finish(start(context, 1, whole, 0, resume=False), whole)
    assert killed_training(context, killed, [1, 2, 1], STEPS) == 2
    _, largest = differences(killed, whole)
    assert largest < 1e-6
    assert len(history(whole)) == STEPS
    assert len({loss for ((_, loss),) in map(tuple, history(whole).values())}) == STEPS


def test_the_older_checkpoint_stays_until_the_newer_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with save_total_limit = 1: what ends the training in between is the write of the mark itself."""
    folder = kill_folder(tmp_path / "t", 4, 2)
    save = TrainingState.save

    def full_disk(self: TrainingState, checkpoint: Path) -> None:
        if self.step == 4:
            raise OSError(28, "No space left on device", str(checkpoint))
        save(self, checkpoint)

    monkeypatch.setattr(TrainingState, "save", full_disk)
    with pytest.raises(TrainError, match="cannot be written"):
        train(read_config(settings_file(folder, 1)))
    found = last_checkpoint(folder / "student")
    assert found is not None and found[1].step == 2


def test_a_step_of_another_size_is_not_resumed(tmp_path: Path) -> None:
    """Splits of a step may change, and its gradient does not; its number of sequences may not."""
    folder = kill_folder(tmp_path / "t", 4, 2, kept=2)
    train(read_config(settings_file(folder, 1)))
    other = settings_file(folder, 2).read_text(encoding="utf-8")
    with pytest.raises(ResumeRefused, match=r"had 8 sequences .* would have 4"):
        train(read_config(settings_file(folder, 2)), resume=True)
    split = other.replace("batch_size = 4", "batch_size = 4\ngradient_accumulation_steps = 2")
    settings_file(folder, 2).write_text(split, encoding="utf-8")
    shutil.rmtree(folder / "student" / "checkpoint-4")
    assert train(read_config(settings_file(folder, 2)), resume=True).record["steps"] == 4
