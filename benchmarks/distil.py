"""What each loss is worth: Gemma 3 270M scores real text, a small student is trained with each (make bench-distil).

The teacher is cut down to the tokens of the texts first, so that it and the students have the same vocabulary.
Everything lies in bench/distil; what is there already is not made again, so an interrupted run goes on. Only the last
figures look past the stored labels, at the teacher's whole distribution.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.distil_measure import measure
from benchmarks.distil_teacher import trim
from benchmarks.distil_text import prompts
from benchmarks.distil_write import plot, section
from benchmarks.profile_rows import INSIDE_USE
from benchmarks.storage_figures import write_section
from trainer.config import TrainConfig, read_config
from trainer.fit import train

FOLDER = Path(__file__).parents[1] / "bench" / "distil"
SEEDS = (0, 1, 2)
# name → what its [loss] says; all else is the same
LOSSES: dict[str, dict[str, Any]] = {
    "CE on the text": {"hard_weight": 1.0},
    "top-k, teacher renormalised": {"tail": "zero", "hard_weight": 0.0},
    "top-k, both renormalised": {"tail": "renormalised", "hard_weight": 0.0},
    "bucket": {"tail": "bucket", "hard_weight": 0.0},
    "bucket + CE": {"tail": "bucket", "hard_weight": 0.1},
}
RUN = """table = "soft_labels"
use = "use.toml"
[teacher]
model = "google/gemma-3-270m"
revision = "gguf-q4_k_m-trimmed"
[endpoint]
kind = "local"
model_path = "teacher"
[prompts]
path = "prompts.jsonl"
[ask]
mode = "score"
top_k = 20
"""
TRAIN = """table = "soft_labels"
use = "use.toml"
out = "students-{steps}"
[student]
from = "config"
vocabulary = "full"
hidden_size = 128
intermediate_size = 352
[data]
sequence_length = 256
holdout = 0.1
[training]
max_steps = {steps}
per_device_train_batch_size = 2
learning_rate = 2e-3
warmup_steps = 20
logging_steps = 50
save_strategy = "no"
"""


def main() -> None:
    """Collect, train each loss with each seed, measure, write the section; exit 1 when bucket did not win each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=160)
    parser.add_argument("--steps", type=int, default=170)
    options = parser.parse_args()
    folder = FOLDER / str(options.passages)
    folder.mkdir(parents=True, exist_ok=True)
    lines = prompts(options.passages)
    _teacher(folder / "teacher", [line["prompt"] for line in lines])
    _collect(lines, folder)
    (folder / "train.toml").write_text(TRAIN.format(steps=options.steps), "utf-8")
    config = read_config(folder / "train.toml")
    students = {(name, seed): _student(config, name, seed) for name in LOSSES for seed in SEEDS}
    found = measure(config, folder / "teacher", students)
    (folder / "measured.json").write_text(json.dumps(found, indent=2), "utf-8")
    plot(found, Path(__file__).with_name("distil.svg"))
    text = section(found, _setting(options.passages, options.steps))
    write_section("distil", text)
    print(text)
    if not found["bucket_wins_every_seed"]:
        sys.exit("bucket did not beat CE and renormalised in every seed")


def _teacher(folder: Path, texts: list[str]) -> None:
    """The weights of the GGUF as safetensors, cut down to the tokens of the texts."""
    whole = FOLDER / "gemma"
    subprocess.run([sys.executable, FOLDER.parents[1] / "examples" / "recipes" / "gemma.py", whole], check=True)
    if not (folder / "config.json").is_file():
        trim(whole, folder, texts)


def _collect(lines: list[dict[str, Any]], folder: Path) -> None:
    written = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    (folder / "prompts.jsonl").write_text("".join(written), "utf-8")
    (folder / "run.toml").write_text(RUN, "utf-8")
    (folder / "use.toml").write_text(INSIDE_USE, "utf-8")
    potstill = Path(sys.executable).with_name("potstill")
    subprocess.run([potstill, "collect", "run.toml"], cwd=folder, check=True)


def _student(config: TrainConfig, name: str, seed: int) -> Path:
    out: Path = config.out / f"{list(LOSSES).index(name)}-{seed}"
    if not (out / "training.json").is_file():
        print(f"training: {name}, seed {seed}", flush=True)
        data = config.data.model_copy(update={"seed": seed})
        loss = config.loss.model_copy(update=LOSSES[name])
        train(config.model_copy(update={"data": data, "loss": loss, "out": out}), tell=print)
    return out


def _setting(passages: int, steps: int) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{date.today()}, {platform.machine()} with 2 cores shared with other work, Python "
        f"{platform.python_version()}, {libraries}; `make bench-distil`: {passages} passages of /usr/share/doc, "
        f"{steps} steps of at most 512 tokens."
    )


if __name__ == "__main__":
    main()
