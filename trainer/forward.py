"""From a batch of the stream to the student's hidden states, logits and loss, for any model of transformers.

A causal model's body is run and its head left to us. A masked model's own head does more than one product, so it is run
whole with its last product put off; a classifier is run as it is, its labels being few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.attention import model_inputs
from trainer.errors import TrainError
from trainer.head import CHUNK_ELEMENTS, fused_distillation_loss
from trainer.hidden import HiddenTeacher, cosine_loss
from trainer.losses import LossParts, SoftTargets, distillation_loss, student_logits
from trainer.objective import Objective
from trainer.task import task_of


class HeadNotSupported(TrainError):
    """The student computes its logits in a way that is not repeated here."""

    exit_code = 2


class Outputs(NamedTuple):
    """What a loss needs of a student's forward."""

    last_BSD: Tensor
    """The body's last hidden states."""
    read_ND: Tensor
    """What the output embedding is given at the N positions to read from; of a classifier its logits, [N, labels]."""


class DistilledStudent(nn.Module):
    """A model with its loss inside, so that DDP and FSDP see hidden states and head in one forward.

    `guide` is a local teacher whose hidden states are followed too.
    """

    def __init__(self, model: Any, objective: Objective, guide: HiddenTeacher | None = None) -> None:
        super().__init__()
        check_head(model)
        self.model = model
        self.objective = objective
        self._guide = (guide,)  # in a tuple, so that it is no part of the student

    @property
    def config(self) -> Any:
        """The model's own configuration, which the transformers Trainer looks at."""
        return self.model.config

    def get_input_embeddings(self) -> Any:
        """The model's, for NEFTune."""
        return self.model.get_input_embeddings()

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """The model's, for `gradient_checkpointing`."""
        self.model.activation_checkpointing_enable(**options)

    def forward(self, normaliser: Tensor | float | None = None, **batch: Tensor) -> LossParts:
        """Loss of one batch of SoftLabelStream; `normaliser` as in `distillation_loss`."""
        targets, out = SoftTargets.from_batch(batch), run(self.model, batch)
        if task_of(self.model) == "classification":
            logits = student_logits(out.read_ND, targets, self.objective.temperature)
            parts = distillation_loss(logits, targets, self.objective, normaliser)
        else:
            head = self.model.get_output_embeddings()
            parts = fused_distillation_loss(
                out.read_ND,
                head.weight,
                targets,
                self.objective,
                bias_V=head.bias,
                softcap=softcap(self.model),
                normaliser=normaliser,
            )
        (guide,) = self._guide
        return parts if guide is None else cosine_loss(parts, out.last_BSD, guide, batch, normaliser)


def run(model: Any, batch: Mapping[str, Tensor]) -> Outputs:
    """The forward of a batch; prompt positions never reach the head."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs, task = model_inputs(inner, batch), task_of(model)
    if task == "causal":
        last_BSD = inner.base_model(**inputs).last_hidden_state
        return Outputs(last_BSD, last_BSD.flatten(0, 1)[batch["loss_index"]])
    inputs.pop("use_cache", None)
    last: list[Tensor] = []
    hook = inner.base_model.register_forward_hook(lambda body, given, out: last.append(out[0]))
    try:
        if task == "classification":
            logits_BL = inner(**inputs).logits
            return Outputs(last[0], logits_BL[batch["loss_index"] // batch["input_ids"].shape[1]])
        with _put_off(inner.get_output_embeddings()):
            read_BSD = inner(**inputs).logits
    finally:
        hook.remove()
    return Outputs(last[0], read_BSD.flatten(0, 1)[batch["loss_index"]])


@contextmanager
def _put_off(head: nn.Module) -> Iterator[None]:
    """Inside, the output embedding hands on what it is given."""
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward


def loss_hidden(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """What the output embedding is given at the positions to read from, [N, D]."""
    return run(model, batch).read_ND


def loss_logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Dense logits of the loss tokens, [N, V] float32: for evaluation of small batches."""
    return torch.cat([logits for _, logits in logit_pieces(model, batch)])


def logit_pieces(model: Any, batch: Mapping[str, Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Dense logits of a few loss tokens at a time, float32, at most CHUNK_ELEMENTS of them; and which tokens."""
    read_ND = loss_hidden(model, batch)
    if task_of(model) == "classification":
        yield slice(0, len(read_ND)), read_ND.float()
        return
    head, cap = model.get_output_embeddings(), softcap(model)
    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    for start in range(0, max(len(read_ND), 1), size):
        part = slice(start, start + size)
        logits_NV = head(read_ND[part]).float()
        yield part, logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)


def softcap(model: Any) -> float | None:
    """The bound that Gemma 2 puts on its logits."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def check_head(model: Any) -> None:
    """Raises HeadNotSupported for models that scale their logits, since the fused head would not."""
    if task_of(model) == "classification":
        return
    for name in ("logit_scale", "logits_scaling", "mup_width_multiplier"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise HeadNotSupported(
                f"{type(model).__name__} scales its logits by {name}, which the fused head does not; "
                "choose another student."
            )
    if model.get_output_embeddings() is None:
        raise HeadNotSupported(
            f"{type(model).__name__} has no language-model head; choose a causal or masked model as the student."
        )
