"""Each origin of a student beside its hard-label twin, in the tests' settings, three seeds (prints).

A seed is that of the teacher, of the rows, of the student and of the order; Gemma's recorded labels have one only for
the last two. Run it by `python -m benchmarks.train_twins`; it takes some minutes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from tests.trainer.gemma import gemma_table
from tests.trainer.synthetic import MarkovTeacher, training_folder
from tests.trainer.test_across import OWN, settings_of
from tests.trainer.test_surgery import base_folder, student_settings
from tests.trainer.words import own_words, words_table
from trainer.config import read_config
from trainer.evaluate import evaluate
from trainer.fit import train

SEEDS = (0, 1, 2)


def _config(folder: Path, seed: int) -> Path:
    MarkovTeacher(seed=seed).table(folder / "table", 80, seed=seed)
    return training_folder(folder, steps=60, seed=seed)


def _from_base(student: str) -> Callable[[Path, int], Path]:
    def prepare(folder: Path, seed: int) -> Path:
        MarkovTeacher(seed=seed).table(folder / "table", 60, seed=seed)
        base_folder(folder / "base")
        return student_settings(training_folder(folder, steps=60, seed=seed), student)

    return prepare


def _words(folder: Path, seed: int) -> Path:
    words_table(folder / "table", 160, seed)
    (folder / "own.json").write_text(json.dumps(own_words().content), encoding="utf-8")
    return settings_of(folder, 60, sequence_length="128", hard_weight="0.1", seed=str(seed))


def _gemma(folder: Path, seed: int) -> Path:
    gemma_table(folder / "table")
    (folder / "own.json").write_text(json.dumps(OWN.content), encoding="utf-8")
    return settings_of(folder, 60, sequence_length="160", holdout="0.15", seed=str(seed))


ORIGINS: dict[str, Callable[[Path, int], Path]] = {
    "configuration": _config,
    "adapters of a base": _from_base('from = "base"\n[student.lora]\nrank = 8'),
    "teacher layers": _from_base('from = "teacher-layers"\nteacher = "base"\nevery = 2'),
    "another tokenizer, known teacher": _words,
    "another tokenizer, Gemma": _gemma,
}


def main() -> None:
    """Held-out divergence of student and twin, and their ratio."""
    torch.set_num_threads(1)
    for name, prepare in ORIGINS.items():
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                config = read_config(prepare(Path(folder), seed))
                train(config)
                found = evaluate(config).content
            student, twin = (found["models"][model]["kl"] for model in ("student", "hard_twin"))
            print(
                f"{name}, seed {seed}: {student:.3f} beside {twin:.3f} nats on {found['rows']} rows, "
                f"ratio {student / twin:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
