"""From a batch of the stream to the student's hidden states and loss, for any causal model of transformers.

The mask is dense, [B, 1, S, S]: right for every SDPA and eager model and quadratic in the sequence length. Under flash
attention documents are told apart by their position ids instead, which transformers turns into variable lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import TrainError
from trainer.head import fused_distillation_loss
from trainer.losses import LossParts, SoftTargets
from trainer.objective import Objective


class HeadNotSupported(TrainError):
    """The student computes its logits in a way that the fused head does not repeat."""

    exit_code = 2


class DistilledStudent(nn.Module):
    """A causal model with its loss inside, so that DDP and FSDP see hidden states and head in one forward."""

    def __init__(self, model: Any, objective: Objective) -> None:
        super().__init__()
        check_head(model)
        self.model = model
        self.objective = objective

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
        return fused_distillation_loss(
            loss_hidden(self.model, batch),
            self.model.get_output_embeddings().weight,
            SoftTargets.from_batch(batch),
            self.objective,
            bias_V=self.model.get_output_embeddings().bias,
            softcap=softcap(self.model),
            normaliser=normaliser,
        )


def loss_hidden(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Last hidden states at the positions to read from, [N, D]; prompt positions never reach the head."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = causal.config._attn_implementation or "eager"
    mask = None
    if attention in ("eager", "sdpa"):
        mask = attention_mask(batch["document_ids"], causal.config, causal.dtype)
    hidden_BSD = causal.base_model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask, use_cache=False
    ).last_hidden_state
    hidden_ND: Tensor = hidden_BSD.flatten(0, 1)[batch["loss_index"]]
    return hidden_ND


def loss_logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Dense logits of the loss tokens, [N, V] float32: for evaluation of small batches."""
    head = model.get_output_embeddings()
    logits_NV = head(loss_hidden(model, batch)).float()
    cap = softcap(model)
    return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)


def softcap(model: Any) -> float | None:
    """The bound that Gemma 2 puts on its logits."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def check_head(model: Any) -> None:
    """Raises HeadNotSupported for models that scale their logits, since the fused head would not."""
    for name in ("logit_scale", "logits_scaling", "mup_width_multiplier"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise HeadNotSupported(
                f"{type(model).__name__} scales its logits by {name}, which the fused head does not; "
                "choose another student."
            )
    if model.get_output_embeddings() is None:
        raise HeadNotSupported(
            f"{type(model).__name__} has no language-model head; choose a causal model as the student."
        )


def attention_mask(document_ids: Tensor, config: Any, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Additive mask [B, 1, S, S]: a token sees itself and what stands before it in its own document, nothing else.

    `document_ids` is int64 [B, S], 0 = padding (which sees itself alone, so that no row of the softmax is empty).
    Models that mix full and sliding layers get one mask for each kind.
    """
    length = document_ids.shape[1]
    place = torch.arange(length, device=document_ids.device)
    distance = place[:, None] - place[None, :]
    same = (document_ids[:, :, None] == document_ids[:, None, :]) & (document_ids > 0)[:, :, None]
    visible = (same & (distance >= 0)) | (distance == 0)
    full = _additive(visible, dtype)
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return full
    return {"full_attention": full, "sliding_attention": _additive(visible & (distance < config.sliding_window), dtype)}


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
