"""`potstill evaluate`: the student on rows that it never saw, beside it untrained and its hard-label twin.

The twin gets the same rows, order, steps and settings and differs in the loss alone: what soft labels are worth.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.table import Table
from trainer.config import TrainConfig
from trainer.errors import TrainError
from trainer.fit import RECORD_FILE, Tell, train
from trainer.measure import summary, token_measures
from trainer.prepare import make_stream, make_student
from trainer.report import write_report
from trainer.stream import Batch
from trainer.student import Student, load_student
from trainer.tokenview import Example, examples

BATCH_SIZE = 8


class NothingToEvaluate(TrainError):
    """There is no trained student for these settings."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Report:
    """What evaluate found (JSON-ready) and where it was written."""

    content: dict[str, Any]
    html: Path
    json: Path

    def lines(self) -> list[str]:
        """The figures a person looks for first."""
        heads = f"{'KL':>7} {'NLL':>7} {'perplexity':>11} {'top-1':>7} {'acceptance':>11} {'calibration':>12}"
        lines = [f"{'':<12} {heads}"]
        for name, model in self.content["models"].items():
            lines.append(
                f"{name:<12} {model['kl']:>7.3f} {model['nll']:>7.3f} {model['perplexity']:>11.1f} "
                f"{model['top1_agreement']:>7.1%} {model['acceptance']:>11.1%} {model['calibration_error']:>12.1%}"
            )
        return lines


def evaluate(
    config: TrainConfig,
    *,
    tell: Tell = lambda line: None,
    progress: Callable[[int, int, dict[str, float]], None] = lambda step, steps, logs: None,
) -> Report:
    """Measure the student in `config.out` on the held-out rows; writes report.json and report.html there.

    Trains the hard-label twin first where the settings want one and it is not there yet.
    Raises NothingToEvaluate when the student was not trained with these settings.
    """
    record = _training_record(config)
    table = Table.open(config.table, record["table_version"])
    untrained = make_student(config, table)
    models = {"untrained": untrained.model, "student": load_student(config.out)}
    records = {"student": record}
    if config.evaluate.hard_twin and config.loss.hard_weight < 1:
        records["hard_twin"] = _twin(config, record, tell, progress)
        models["hard_twin"] = load_student(config.hard_twin().out)
    batches = _holdout(config, table, untrained)
    measured = {name: token_measures(model, batches) for name, model in models.items()}
    chosen = examples(batches, models, untrained.vocabulary.definition, count=config.evaluate.examples)
    content = _content(config, table, measured, records, chosen)
    tell(f"measured on {content['rows']} held-out rows, {content['tokens']} tokens")
    json_path, html_path = write_report(content, config.out)
    return Report(content, html_path, json_path)


def _training_record(config: TrainConfig) -> dict[str, Any]:
    path = config.out / RECORD_FILE
    if not path.is_file():
        raise NothingToEvaluate(f"There is no trained student in {config.out}; run `potstill train` first.")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record["config_digest"] != config.digest:
        raise NothingToEvaluate(
            f"The student in {config.out} was trained with other settings; run `potstill train` again."
        )
    if config.data.holdout == 0:
        raise NothingToEvaluate("[data] holdout is 0, so there are no rows to evaluate on; set it and train again.")
    return record


def _twin(config: TrainConfig, record: dict[str, Any], tell: Tell, progress: Any) -> dict[str, Any]:
    """The training record of the hard-label twin, trained now unless it is there already."""
    twin = config.hard_twin().model_copy(update={"version": record["table_version"]})
    path = twin.out / RECORD_FILE
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["config_digest"] == twin.digest:
            return found
    tell("training the twin on hard labels only, same rows and steps")
    return train(twin, tell=tell, progress=progress).record


def _holdout(config: TrainConfig, table: Table, student: Student) -> list[Batch]:
    return list(make_stream(config, table, student, split="holdout", batch_size=BATCH_SIZE, repeat=False, pack=False))


def _content(
    config: TrainConfig,
    table: Table,
    measured: dict[str, dict[str, NDArray[np.float64]]],
    records: dict[str, dict[str, Any]],
    chosen: list[Example],
) -> dict[str, Any]:
    models = {name: summary(tokens) for name, tokens in measured.items()}
    for name, record in records.items():
        models[name] |= {"seconds": record["seconds"], "steps": record["steps"]}
    tokens = measured["student"]
    content: dict[str, Any] = {
        "table": str(config.table),
        "table_version": table.version,
        "out": str(config.out),
        "student": records["student"]["student"],
        "decision": records["student"]["decision"],
        "verdict": records["student"]["verdict"],
        "loss": config.loss.model_dump(mode="json"),
        "rows": int(tokens["row"].max()) + 1,
        "tokens": len(tokens["row"]),
        "teacher": {"nll": float(np.nanmean(tokens["teacher_nll"]))},
        "models": models,
        "curves": {name: _curve(record) for name, record in records.items()},
        "examples": [example.to_record() for example in chosen],
    }
    if "hard_twin" in models:
        content["gap_closed"] = 1 - models["student"]["kl"] / models["hard_twin"]["kl"]
    return content


def _curve(record: dict[str, Any]) -> list[tuple[int, float]]:
    """(step, KL on the training rows) as logged."""
    return [(log["step"], log["divergence"]) for log in record["log"] if "divergence" in log]
