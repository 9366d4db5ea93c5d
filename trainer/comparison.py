"""The content of a report: every model on the same held-out rows, whole and by domain, teacher and licence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.table import Table
from trainer.answers import Said, accuracy
from trainer.heldout import HeldOutRow
from trainer.measure import by_entropy, interval, part, reliability, summary

Tokens = Mapping[str, NDArray[np.float64]]
LEAST_ROWS = 2
"""A domain with fewer held-out rows is not shown on its own."""
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Measured:
    """One model: its tokens' measures, what it said, how many parameters it has."""

    tokens: Tokens
    said: Said
    parameters: int


def compare(models: Mapping[str, Measured], rows: Mapping[int, HeldOutRow], table: Table) -> dict[str, Any]:
    """What the report says of models and teacher: figures with intervals, parts, the gap that is closed."""
    student = models["student"].tokens
    content: dict[str, Any] = {
        "rows": len(np.unique(student["row"])),
        "tokens": len(student["row"]),
        "teacher": teacher(student, rows, table),
        "models": {name: _model(one, rows) for name, one in models.items()},
        "groups": {by: _groups(models, rows, by) for by in ("domain", "teacher", "licence")},
    }
    if "hard_twin" in models:
        content |= _gap(models, content)
    return content


def _model(one: Measured, rows: Mapping[int, HeldOutRow]) -> dict[str, Any]:
    return summary(one.tokens) | {
        "parameters": one.parameters,
        "tokens_per_second": one.said.tokens_per_second,
        "accuracy": accuracy(one.said.answers, rows),
        "reliability": reliability(one.tokens),
        "by_entropy": by_entropy(one.tokens),
    }


def teacher(tokens: Tokens, rows: Mapping[int, HeldOutRow], table: Table) -> dict[str, Any]:
    """What is known of the teacher: its own likelihood, accuracy on the same rows, size by its name, its pace.

    Its pace is that of the runs that asked it, waiting included: the labels of a table do not say more.
    """
    names = sorted({one.teacher for one in rows.values()})
    sizes = {parameters_by_name(name) for name in names}
    runs = table.runs()
    seconds = sum(((run.updated_at - run.started_at) for run in runs), timedelta()).total_seconds()
    said = {row: one.answer for row, one in rows.items()}
    known = tokens["teacher_nll"][~np.isnan(tokens["teacher_nll"])]
    costs = [run.cost_usd for run in runs if run.cost_usd is not None]
    return {
        "names": names,
        "nll": float(known.mean()) if known.size else math.nan,
        "accuracy": accuracy(said, rows),
        "parameters_by_name": sizes.pop() if len(sizes) == 1 else None,
        "collected_tokens_per_second": sum(run.completion_tokens for run in runs) / seconds if seconds > 1 else None,
        "labels_usd": sum(costs) if costs else None,
    }


def parameters_by_name(model: str) -> int | None:
    """How many parameters a model's name says it has: "gemma-3-270m" → 270,000,000; None when it does not say."""
    found = _SIZE.search(model.rpartition("/")[2].replace("-", " ").replace("_", " "))
    if found is None:
        return None
    return round(float(found[1]) * (1_000_000_000 if found[2].lower() == "b" else 1_000_000))


def _groups(models: Mapping[str, Measured], rows: Mapping[int, HeldOutRow], by: str) -> list[dict[str, Any]]:
    values = sorted({str(getattr(one, by)) for one in rows.values()})
    found = []
    for value in values:
        inside = np.array([row for row, one in rows.items() if getattr(one, by) == value])
        if len(inside) < LEAST_ROWS and len(values) > 1:
            continue
        parts = {name: part(one.tokens, inside) for name, one in models.items()}
        found.append(
            {
                "name": value,
                "rows": len(inside),
                "tokens": len(parts["student"]["row"]),
                "models": {name: _short(tokens) for name, tokens in parts.items()},
            }
        )
    return found


def _short(tokens: Tokens) -> dict[str, Any]:
    whole = summary(tokens)
    return {name: whole[name] for name in ("kl", "kl_low", "kl_high", "nll", "top1_agreement", "acceptance")}


def _gap(models: Mapping[str, Measured], content: Mapping[str, Any]) -> dict[str, Any]:
    """How much of the way from the hard-label twin to the teacher the student went: in KL, and in likelihood."""
    student, twin = content["models"]["student"], content["models"]["hard_twin"]
    whole = twin["nll"] - content["teacher"]["nll"]
    difference = models["hard_twin"].tokens["kl"] - models["student"].tokens["kl"]
    return {
        "gap_closed": 1 - student["kl"] / twin["kl"],
        "nll_gap_closed": (twin["nll"] - student["nll"]) / whole if whole > 0 else None,
        "kl_saved": interval(models["student"].tokens["row"], difference),
    }


def headline(content: Mapping[str, Any]) -> list[str]:
    """What a person wants to know first, in a few sentences."""
    student, teacher_ = content["models"]["student"], content["teacher"]
    right, ceiling = student["accuracy"], teacher_["accuracy"]
    sentences = [f"In {student['top1_agreement']:.0%} of the tokens the student's first choice is the teacher's."]
    if right and ceiling and ceiling["value"] > 0:
        sentences.insert(
            0,
            f"The student keeps {right['value'] / ceiling['value']:.0%} of the teacher's accuracy "
            f"({right['value']:.1%} beside {ceiling['value']:.1%} on {right['rows']} held-out answers).",
        )
    if "gap_closed" in content:
        low, high = content["kl_saved"]
        sure = "" if low > 0 else " (not certain: the 95 % interval of the difference holds 0)"
        sentences.append(
            f"Soft labels bring it to {student['kl']:.2f} nats from the teacher, hard labels on the same rows and "
            f"steps to {content['models']['hard_twin']['kl']:.2f}: {content['gap_closed']:.0%} of the gap closed, "
            f"{low:.2f} to {high:.2f} nats{sure}."
        )
    return [*sentences, _price(content)]


def _price(content: Mapping[str, Any]) -> str:
    student, teacher_ = content["models"]["student"], content["teacher"]
    parts = [f"It has {student['parameters'] / 1e6:,.1f} M parameters"]
    if teacher_["parameters_by_name"]:
        parts[0] += f", 1/{teacher_['parameters_by_name'] / student['parameters']:,.0f} of what the teacher's name says"
    if student["tokens_per_second"]:
        parts.append(f"writes {student['tokens_per_second']:,.0f} tokens/s here")
        pace = teacher_["collected_tokens_per_second"]
        if pace:
            parts[-1] += f" ({student['tokens_per_second'] / pace:,.1f} × the pace at which the teacher was collected)"
    parts.append(f"cost {content['models']['student']['seconds']:,.0f} s of training")
    if teacher_["labels_usd"] is not None:
        parts[-1] += f" and ${teacher_['labels_usd']:,.2f} of labels"
    return ", ".join(parts) + "."


def ordered(measured: Mapping[str, Tokens]) -> Sequence[int]:
    """The rows of the index that were measured, in order."""
    rows: list[int] = np.unique(measured["student"]["row"]).astype(int).tolist()
    return rows
