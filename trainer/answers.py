"""What the student says by itself: is it right where prompts bring references, and how fast does it say it?

Greedy, one prompt at a time on this machine: a figure for comparing students, not the speed of a server.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from storage.profile_reference import matches, wilson
from trainer.forward import loss_logits
from trainer.heldout import HeldOutRow
from trainer.task import task_of
from trainer.tokenizer import TokenizerDefinition

SPEED_PROMPTS = 8
LONGEST = 64
LONGEST_REFERENCE = 12


@dataclass(frozen=True, slots=True)
class Said:
    """What a student said to the held-out prompts: answers by row of the index, tokens a second (None: it only
    classifies, or nothing was said)."""

    answers: dict[int, str]
    tokens_per_second: float | None


def is_answer(reference: str | None) -> bool:
    """Whether a reference is short enough to be right or wrong about."""
    return reference is not None and 0 < len(reference.split()) <= LONGEST_REFERENCE


@torch.no_grad()
def answers(
    model: Any,
    batches: Sequence[Mapping[str, Tensor]],
    rows: Mapping[int, HeldOutRow],
    definition: TokenizerDefinition,
    *,
    most: int,
) -> Said:
    """Let the student answer at most `most` prompts that have a reference, or a few others for the speed alone.

    The batches hold one row a sequence. A masked student says nothing.
    """
    task = task_of(model)
    if task == "classification":
        return Said(_classified(model, batches, rows, most), None)
    if task == "masked":
        return Said({}, None)
    wanted = [row for row, one in rows.items() if is_answer(one.reference)][:most] or list(rows)[:SPEED_PROMPTS]
    tokenizer = definition.build()
    found: dict[int, str] = {}
    tokens, seconds = 0, 0.0
    for row, prompt, targets in _prompts(batches, set(wanted)):
        started = time.perf_counter()
        given = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=min(targets, LONGEST), do_sample=False
        )
        seconds += time.perf_counter() - started
        new = given[0, prompt.shape[1] :].tolist()
        tokens += len(new)
        found[row] = str(tokenizer.decode(new))
    return Said(found, tokens / seconds if tokens else None)


def _prompts(batches: Sequence[Mapping[str, Tensor]], wanted: set[int]) -> list[tuple[int, Tensor, int]]:
    """(row, prompt ids [1, P], targets) of the wanted rows that have a prompt."""
    found = []
    for batch in batches:
        width = batch["input_ids"].shape[1]
        for row in sorted(set(batch["index_row"].tolist())):
            place = batch["loss_index"][batch["index_row"] == row]
            start = int(place[0]) % width
            if row in wanted and start >= 0:
                prompt = batch["input_ids"][int(place[0]) // width, : start + 1]
                found.append((int(row), prompt[None, :], len(place)))
    return found


def _classified(
    model: Any, batches: Sequence[Mapping[str, Tensor]], rows: Mapping[int, HeldOutRow], most: int
) -> dict[int, str]:
    found: dict[int, str] = {}
    for batch in batches:
        for row, best in zip(batch["index_row"].tolist(), loss_logits(model, batch).argmax(-1).tolist(), strict=True):
            if row in rows and rows[row].reference and len(found) < most and best < len(rows[row].labels):
                found[row] = rows[row].labels[best]
    return found


def accuracy(said: Mapping[int, str], rows: Mapping[int, HeldOutRow]) -> dict[str, Any] | None:
    """How many answers say what the reference says, with a 95 % interval; None where no row has such a reference.

    A reference of more than twelve words is one of many right answers, and no measure of right and wrong.
    """
    right = [
        matches(said[row], one.reference)
        for row, one in rows.items()
        if one.reference and is_answer(one.reference) and row in said
    ]
    return None if not right else {"rows": len(right), **asdict(wilson(sum(right), len(right)))}
