"""The hidden states of a local teacher as a further target: DistilBERT's cosine term (Sanh et al. 2019, 1910.01108).

They are computed as the student trains, from the same inputs, and never stored: a table of them would be a thousand
times its labels. The teacher reads its own ids, so a student with a trimmed vocabulary is followed back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.attention import model_inputs
from trainer.errors import TrainError
from trainer.losses import LossParts


class HiddenTeacherRefused(TrainError):
    """The local teacher's hidden states cannot be followed by this student."""

    exit_code = 2


class HiddenTeacher:
    """A frozen local teacher and what its hidden states count for.

    Args:
        model: with the same kind of head as the student, so that it reads batches alike.
        weight: of the mean of 1 − cosine, beside the loss of the labels.
        id_map: teacher id → student id, −1 where there is none; None where they are the same.
    """

    def __init__(self, model: Any, *, weight: float, id_map: NDArray[np.int32] | None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.weight = weight
        self._ids: Tensor | None = None
        if id_map is not None:
            teacher_ids = np.flatnonzero(id_map >= 0)
            back = np.full(int(id_map.max()) + 1, -1)
            back[id_map[teacher_ids]] = teacher_ids
            self._ids = torch.from_numpy(back)

    @torch.no_grad()
    def last_hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The body's last hidden states, [B, S, D]."""
        device = batch["input_ids"].device
        if self.model.device != device:
            self.model.to(device)
        ids = batch["input_ids"]
        if self._ids is not None:
            ids = self._ids.to(device)[ids]
            if bool((ids < 0).any()):
                raise HiddenTeacherRefused("A token of the student is none of its teacher's; choose vocabulary = full.")
        inputs = model_inputs(self.model, {**batch, "input_ids": ids})
        hidden: Tensor = self.model.base_model(**inputs)[0]
        return hidden


def cosine_loss(
    parts: LossParts,
    last_BSD: Tensor,
    guide: HiddenTeacher,
    batch: Mapping[str, Tensor],
    normaliser: Tensor | float | None,
) -> LossParts:
    """`parts` with weight · (1 − cosine) added.

    1 − cos(student, teacher) is averaged over all positions of a document, which counts like its loss tokens: one
    normaliser serves both terms, and the sum does not depend on how a step is split.
    """
    documents_BS, weight_N = batch["document_ids"], batch["weight"]
    distance_BS = 1 - torch.cosine_similarity(last_BSD.float(), guide.last_hidden(batch).float(), dim=-1)
    width = int(documents_BS.max()) + 1
    row = torch.arange(len(documents_BS), device=documents_BS.device)[:, None]
    place_M = (row * width + documents_BS).flatten()
    count = len(documents_BS) * width
    positions_D = torch.zeros(count, device=last_BSD.device).index_add(
        0, place_M, torch.ones_like(distance_BS).flatten()
    )
    sums_D = torch.zeros_like(positions_D).index_add(0, place_M, distance_BS.flatten())
    weight_D = torch.zeros_like(positions_D).index_add(0, place_M[batch["loss_index"]], weight_N)
    total = (weight_D * sums_D / positions_D.clamp(min=1)).sum()
    tokens = parts.tokens
    if normaliser is None:
        normaliser = torch.where(tokens > 0, tokens, 1.0)
    return dataclasses.replace(parts, loss=parts.loss + guide.weight * total / normaliser, cosine=total.detach())


def check_widths(student: Any, teacher: Any, folder: Path) -> None:
    """Raises HiddenTeacherRefused where the two have hidden states of other widths."""
    ours, theirs = student.config.hidden_size, teacher.config.hidden_size
    if ours != theirs:
        raise HiddenTeacherRefused(
            f"The student's hidden states have {ours} numbers and those of {folder} {theirs}: a cosine needs the same "
            "width; take the student from the teacher's layers, or set hidden_size, or cosine_weight = 0."
        )
