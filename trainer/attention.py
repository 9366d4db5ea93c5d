"""What a transformers model is given of a batch, so that no document sees another.

Where each sequence holds one document the model gets what its own tokenizer would give: ids, padding, a mask of two
dimensions. Packed sequences get positions that start anew and a dense mask, [B, 1, S, S]: right for every SDPA and
eager model and quadratic in the length. Under flash attention the positions alone tell documents apart, which
transformers turns into variable lengths.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.task import task_of


def model_inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments for the model's forward, by the names that it has, from a batch of SoftLabelStream."""
    documents, ids = batch["document_ids"], batch["input_ids"]
    known = inspect.signature(model.base_model.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if int(documents.max()) <= 1:
        visible = documents > 0
        visible[:, 0] = True  # a sequence of padding alone still needs something to look at
        pad = getattr(model.config, "pad_token_id", None)
        ids = torch.where(documents > 0, ids, 0 if pad is None else pad)
        return options | {"input_ids": ids, "attention_mask": visible.to(ids.dtype)}
    options |= {"input_ids": ids, "position_ids": batch["position_ids"] + _first_position(model)}
    if (model.config._attn_implementation or "eager") in ("eager", "sdpa"):
        causal = task_of(model) == "causal"
        options["attention_mask"] = attention_mask(documents, model.config, model.dtype, causal=causal)
    return options


def _first_position(model: Any) -> int:
    """0, or what RoBERTa and its kin count from: one behind the padding's id."""
    embeddings: Any = getattr(model.base_model, "embeddings", None)
    counts_from_padding = hasattr(embeddings, "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) + 1 if counts_from_padding else 0


def attention_mask(
    document_ids: Tensor, config: Any, dtype: torch.dtype, *, causal: bool = True
) -> Tensor | dict[str, Tensor]:
    """Additive mask [B, 1, S, S]: a token sees itself, its own document (if causal what stands before), nothing else.

    `document_ids` is int64 [B, S], 0 = padding (which sees itself alone, so that no row of the softmax is empty).
    Models that mix full and sliding layers get one mask for each kind; a window that looks both ways is inclusive.
    """
    length = document_ids.shape[1]
    place = torch.arange(length, device=document_ids.device)
    distance = place[:, None] - place[None, :]
    visible = (document_ids[:, :, None] == document_ids[:, None, :]) & (document_ids > 0)[:, :, None]
    if causal:
        visible &= distance >= 0
    visible |= distance == 0
    full = _additive(visible, dtype)
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return full
    near = distance < config.sliding_window if causal else distance.abs() <= config.sliding_window
    return {"full_attention": full, "sliding_attention": _additive(visible & near, dtype)}


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
