"""`potstill train --check`: the first step's gradient must not depend on how its batch is split.

Packing, padding and micro-batches are bookkeeping; where one of them leaks into the gradient, two runs that should be
the same are not. The whole batch is compared with its sequences one by one and its documents one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.errors import TrainError
from trainer.forward import DistilledStudent

TOLERANCE = 1e-3
"""Relative to the gradient's norm; float32 sums in another order differ by about 1e-6."""
PER_TOKEN = (
    *("target_ids", "target_logprobs", "top_ids", "top_logprobs", "log_tail", "from_teacher", "weight"),
    *("top_weights", "tail_sum", "chunk_ids", "chunk_logprobs"),
)


class SplitMatters(TrainError):
    """The gradient depends on how the batch is split."""


def check_splits(student: DistilledStudent, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative difference of the gradient for each way to split `batch`, dropout off. Raises SplitMatters."""
    student.eval()
    whole = _gradient(student, [dict(batch)])
    differences = {}
    for name, parts in {"sequences": _sequences(batch), "documents": _documents(batch)}.items():
        difference = (_gradient(student, list(parts)) - whole).norm() / whole.norm().clamp(min=1e-12)
        differences[name] = float(difference)
    worst = max(differences, key=differences.__getitem__)
    if not differences[worst] <= TOLERANCE:
        raise SplitMatters(
            f"The first step's gradient changes by {differences[worst]:.1e} of its norm when the batch is split into "
            f"its {worst}: attention or positions leak between documents; set pack = false, or choose another student."
        )
    return differences


def _gradient(student: DistilledStudent, batches: list[dict[str, Tensor]]) -> Tensor:
    """The gradient of one optimizer step over the micro-batches, as one vector."""
    student.zero_grad()
    total = torch.stack([batch["weight"].sum() for batch in batches]).sum()
    for batch in batches:
        student(normaliser=total, **batch).loss.backward()
    gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    return torch.cat(gradients)


def _sequences(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for row in range(batch["input_ids"].shape[0]):
        yield from _part(batch, row, slice(None))


def _documents(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for row, documents in enumerate(batch["document_ids"]):
        for document in documents.unique().tolist():
            if document > 0:
                places = (documents == document).nonzero()[:, 0]
                yield from _part(batch, row, slice(int(places[0]), int(places[-1]) + 1))


def _part(batch: Mapping[str, Tensor], row: int, places: slice) -> Iterator[dict[str, Any]]:
    """The batch of one row's positions `places`; nothing when no loss token is read there."""
    length = batch["input_ids"].shape[1]
    start, stop, _ = places.indices(length)
    index = batch["loss_index"] - row * length - start
    inside = (index >= 0) & (index < stop - start) & (batch["loss_index"] // length == row)
    if bool(inside.any()):
        wide = ("input_ids", "position_ids", "document_ids")
        part = {name: batch[name][row : row + 1, places] for name in wide}
        part |= {name: batch[name][inside] for name in PER_TOKEN if name in batch}
        yield {**part, "loss_index": index[inside]}
