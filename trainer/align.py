"""The alignment proof: before the first step, show that each label stands at the token that it predicts.

An off-by-one between labels and tokens trains without an error and ruins the student. So the teacher's own likelihood
of the text is measured as the batches will be read, and with the labels moved by one to either side: in place must win.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.errors import TrainError
from trainer.task import Task

SHIFTS = (-1, 0, 1)
LEAST_TOKENS = 16  # fewer positions prove nothing
SAMPLE_TOKENS = 4096


class NotAligned(TrainError):
    """The labels do not stand at the tokens that they predict, or name tokens that the student lacks."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class AlignmentProof:
    """What was measured: mean log-likelihood (nats) of the next token under the teacher's stored labels, by shift."""

    likelihood: dict[int, float]
    tokens: int
    largest_id: int
    vocabulary: int
    tokenizer: str
    templates: tuple[str, ...]

    def to_record(self) -> dict[str, Any]:
        """As JSON-ready data, for the training record."""
        return asdict(self) | {"likelihood": {f"{shift:+d}": value for shift, value in self.likelihood.items()}}

    def lines(self) -> list[str]:
        """How a person reads it."""
        values = ", ".join(f"shift {shift:+d}: {value:.3f}" for shift, value in self.likelihood.items())
        return [
            f"alignment over {self.tokens} targets, nats per token: {values}",
            f"largest id {self.largest_id} of {self.vocabulary}; tokenizer {self.tokenizer}; "
            f"{len(self.templates)} chat template(s)",
        ]


def prove_alignment(
    batches: Iterable[Mapping[str, Tensor]],
    *,
    vocabulary: int,
    tokenizer: str,
    templates: tuple[str, ...] = (),
    task: Task = "causal",
    mask_id: int | None = None,
    classes: int | None = None,
) -> AlignmentProof:
    """Measures up to SAMPLE_TOKENS targets of `batches` (as SoftLabelStream makes them).

    A causal target is the token behind the position that it is read from. A masked one (`mask_id`) is read at a mask,
    and its labels are compared with the neighbouring targets of its text. A class (of `classes`) has no neighbours.

    Raises NotAligned when a shifted reading is likelier, when an id lies outside the student's vocabulary, or when
    there is too little to tell. For text without candidates it is enough that target and next token are equal.
    """
    labels = vocabulary if classes is None else classes
    sums, counts = dict.fromkeys(SHIFTS, 0.0), dict.fromkeys(SHIFTS, 0)
    targets = soft = 0
    largest = -1
    for batch in batches:
        largest = max(largest, _largest(batch, ("input_ids",) if classes else ("input_ids", "target_ids", "top_ids")))
        if classes is not None and _largest(batch, ("target_ids", "top_ids")) >= classes:
            raise NotAligned(f"The labels name more than the {classes} classes of the student; verify the table.")
        if task == "causal":
            _check_targets(batch)
        elif task == "masked":
            _check_masks(batch, mask_id)
        for shift in SHIFTS:
            values = _log_likelihood(batch, shift, labels, task)
            sums[shift] += float(values.sum())
            counts[shift] += int(values.numel())
        targets += int(batch["target_ids"].numel())
        soft += int((batch["top_ids"] >= 0).any(-1).sum())
        if targets >= SAMPLE_TOKENS:
            break
    if largest >= vocabulary:
        raise NotAligned(
            f"The labels name token {largest}, but the student has {vocabulary} tokens; "
            'use its teacher\'s tokenizer, or vocabulary = "trimmed".'
        )
    if targets < LEAST_TOKENS:
        raise NotAligned(
            f"The table has {targets} targets to train on; {LEAST_TOKENS} are the least to prove alignment."
        )
    likelihood = {shift: sums[shift] / counts[shift] for shift in SHIFTS if counts[shift]}
    if soft and likelihood and max(likelihood, key=likelihood.__getitem__) != 0:
        best = max(likelihood, key=likelihood.__getitem__)
        raise NotAligned(
            f"The labels fit the text better when moved by {best:+d} ({likelihood[best]:.3f} against "
            f"{likelihood[0]:.3f} nats per token): they are not aligned to their tokens. "
            "Run `potstill verify` on the table and collect it again."
        )
    return AlignmentProof(likelihood if soft else {}, targets, largest, vocabulary, tokenizer, templates)


def _largest(batch: Mapping[str, Tensor], names: Iterable[str]) -> int:
    return max(int(batch[name].max()) for name in names if batch[name].numel())


def _check_masks(batch: Mapping[str, Tensor], mask_id: int | None) -> None:
    """More targets are read at a mask than beside one."""
    masks = []
    for shift in SHIFTS:
        tokens, inside = _token_after(batch, shift)
        masks.append(int((inside & (tokens == mask_id)).sum()))
    if masks[1] <= max(masks[0], masks[2]):
        raise NotAligned(
            f"Of {batch['loss_index'].numel()} targets {masks[1]} stand at a mask token ({mask_id}) and "
            f"{max(masks[0], masks[2])} beside one: target_positions are not those of the masks. Run `potstill verify`."
        )


def _check_targets(batch: Mapping[str, Tensor]) -> None:
    """Each target must be the token that follows the position it is read from, where that is in the batch."""
    following, inside = _token_after(batch, 1)
    wrong = inside & (batch["target_ids"] >= 0) & (following != batch["target_ids"])
    if bool(wrong.any()):
        raise NotAligned(
            f"{int(wrong.sum())} of {wrong.numel()} targets are not the token after the position they are read from; "
            "this is a fault of the stream, please report it."
        )


def _token_after(batch: Mapping[str, Tensor], distance: int) -> tuple[Tensor, Tensor]:
    """The token `distance` behind each position that is read, and whether it lies in the same document. Both [N]."""
    ids, documents = batch["input_ids"].reshape(-1), batch["document_ids"].reshape(-1)
    position = (batch["loss_index"] + distance).clamp(min=0, max=ids.numel() - 1)
    length = batch["input_ids"].shape[1]
    inside = (position // length == batch["loss_index"] // length) & (position == batch["loss_index"] + distance)
    return ids[position], inside & (documents[position] == documents[batch["loss_index"]])


def _log_likelihood(batch: Mapping[str, Tensor], shift: int, vocabulary: int, task: Task) -> Tensor:
    """log p(target n + shift) under the labels of n, where the document has them all. [M], float64

    A target outside the candidates gets an equal share of the tail.
    """
    if task == "causal":
        tokens, usable = _token_after(batch, 1 + shift)[0], _token_after(batch, 2)[1]
    elif task == "masked":
        tokens, usable = _neighbours(batch, shift)
    else:
        tokens, usable = batch["target_ids"], torch.full_like(batch["target_ids"], shift == 0, dtype=torch.bool)
    usable = usable & (batch["top_ids"] >= 0).any(-1)
    hit = batch["top_ids"] == tokens[:, None]
    others = (vocabulary - (batch["top_ids"] >= 0).sum(-1)).clamp(min=1)
    in_tail = batch["log_tail"].clamp(min=-30.0) - torch.log(others.float())
    in_top = torch.where(hit, batch["top_logprobs"], -torch.inf).amax(-1)
    return torch.where(hit.any(-1), in_top, in_tail)[usable].double()


def _neighbours(batch: Mapping[str, Tensor], shift: int) -> tuple[Tensor, Tensor]:
    """The target `shift` further among its document's (round its end), and whether it has a neighbour. Both [N]."""
    index = batch["loss_index"]
    width = batch["input_ids"].shape[1]
    document = batch["document_ids"].flatten()[index] + index // width * (width + 1)
    _, place, count = torch.unique_consecutive(document, return_inverse=True, return_counts=True)
    first = torch.cumsum(count, 0) - count
    within = (torch.arange(len(index), device=index.device) - first[place] + shift) % count[place]
    return batch["target_ids"][first[place] + within], count[place] > 1
