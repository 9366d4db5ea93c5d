"""The proof that a student reads each document as if it stood alone, and that its logits are the model's own.

Which models take a mask of four dimensions, count positions from elsewhere or carry a state from one document to the
next cannot be listed. So each student is tried once on a few made-up tokens, before its first step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.errors import TrainError
from trainer.forward import loss_logits
from trainer.task import task_of

LENGTHS = (13, 6, 9)
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
COARSE = 5e-2
"""Relative difference of logits; half precision rounds at 4e-3, a document that sees another differs by tenths."""
FAILURES = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)


class DocumentsMixed(TrainError):
    """The student cannot be given several documents in one sequence, or its logits are not those computed here."""

    exit_code = 2


@torch.no_grad()
def prove_documents(model: Any, *, pack: bool) -> None:
    """Compares logits of documents given as batches are with those of the model's plain forward of each alone.

    Raises DocumentsMixed, which says whether `pack = false` would do.
    """
    was_training = model.training
    model.eval()
    try:
        documents = _documents(model)
        alone = [_plain(model, ids) for ids in documents]
        if problem := _difference(model, [[ids] for ids in documents], alone):
            raise DocumentsMixed(
                f"The logits of {type(model).__name__} are not those that its own forward gives ({problem}); "
                "choose another student."
            )
        if pack and (problem := _difference(model, [documents[:2], documents[2:]], alone)):
            raise DocumentsMixed(
                f"{type(model).__name__} does not keep documents of one sequence apart ({problem}); "
                "set pack = false in [data]."
            )
    finally:
        model.train(was_training)


def _documents(model: Any) -> list[Tensor]:
    config = model.config
    pad = getattr(config, "pad_token_id", None)
    ends = {pad, config.eos_token_id if isinstance(config.eos_token_id, int) else None}
    free = torch.tensor([i for i in range(min(config.vocab_size, 1000)) if i not in ends])
    chosen = torch.randint(len(free), (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    return list(torch.split(free[chosen].to(model.device), list(LENGTHS)))


def _plain(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids[None]).logits[0]
    return logits.float()


def _difference(model: Any, rows: list[list[Tensor]], alone: list[Tensor]) -> str:
    """What is wrong with our logits of documents laid out in rows; empty when nothing is."""
    try:
        found = loss_logits(model, _batch(rows, last_only=task_of(model) == "classification"))
    except FAILURES as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    expected = torch.cat([logits.reshape(-1, logits.shape[-1]) for logits in alone])
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    difference = float((found - expected).norm() / expected.norm().clamp(min=1e-9))
    return "" if difference <= TOLERANCE.get(model.dtype, COARSE) else f"they differ by {difference:.1e} of their norm"


def _batch(rows: list[list[Tensor]], *, last_only: bool) -> dict[str, Tensor]:
    """Documents laid out as the stream does, all positions read, or the last one of each."""
    width = max(sum(len(ids) for ids in row) for row in rows)
    device = rows[0][0].device
    batch = {
        name: torch.zeros(len(rows), width, dtype=torch.int64, device=device)
        for name in ("input_ids", "position_ids", "document_ids")
    }
    index = []
    for number, row in enumerate(rows):
        start = 0
        for document, ids in enumerate(row, 1):
            here = slice(start, start + len(ids))
            batch["input_ids"][number, here] = ids
            batch["position_ids"][number, here] = torch.arange(len(ids), device=device)
            batch["document_ids"][number, here] = document
            first = len(ids) - 1 if last_only else 0
            index += [number * width + start + place for place in range(first, len(ids))]
            start += len(ids)
    return batch | {"loss_index": torch.tensor(index, device=device)}
