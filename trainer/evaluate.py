"""`potstill evaluate`: the student on rows that it never saw, beside it untrained and its hard-label twin.

The twin gets the same rows, order, steps and settings and differs in the loss alone: what soft labels are worth.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.table import Table
from trainer.answers import answers
from trainer.comparison import Measured, compare, headline, ordered
from trainer.config import TrainConfig
from trainer.errors import TrainError
from trainer.fit import RECORD_FILE, Tell, train
from trainer.heldout import describe
from trainer.measure import token_measures
from trainer.prepare import make_stream, make_student
from trainer.report import write_report
from trainer.student import load_student
from trainer.tokenview import examples

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
        return [*lines, "", *self.content["headline"]]


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
    stream = make_stream(config, table, untrained, split="holdout", batch_size=BATCH_SIZE, repeat=False, pack=False)
    batches = list(stream)
    measured = {name: token_measures(model, batches) for name, model in models.items()}
    rows = describe(stream.index, ordered(measured))
    definition, most = untrained.vocabulary.definition, config.evaluate.answers
    content = compare(
        {
            name: Measured(measured[name], answers(model, batches, rows, definition, most=most), _parameters(model))
            for name, model in models.items()
        },
        rows,
        table,
    )
    content |= _facts(config, table, records)
    for name, one in records.items():
        content["models"][name] |= {"seconds": one["seconds"], "steps": one["steps"]}
    content["headline"] = headline(content)
    shown = examples(batches, models, definition, count=config.evaluate.examples)
    content["examples"] = [example.to_record() for example in shown]
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


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _facts(config: TrainConfig, table: Table, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Where the figures come from: table, student, decision, loss, how the trainings went."""
    return {
        "format": "potstill-report-1",
        "table": str(config.table),
        "table_version": table.version,
        "out": str(config.out),
        "student": records["student"]["student"],
        "decision": records["student"]["decision"],
        "verdict": records["student"]["verdict"],
        "loss": config.loss.model_dump(mode="json"),
        "curves": {name: _curve(record) for name, record in records.items()},
    }


def _curve(record: dict[str, Any]) -> list[tuple[int, float]]:
    """(step, KL on the training rows) as logged."""
    return [(log["step"], log["divergence"]) for log in record["log"] if "divergence" in log]
