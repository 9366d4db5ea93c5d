"""The fused linear head: hidden states × vocabulary weight → the few logits that a loss needs, chunk by chunk.

Forward keeps [N, D] + [N, K] and drops each chunk's logits; backward makes them again. That costs a fourth matrix
product, and never a tensor larger than chunk × V, or than the weight itself. The loss stays outside, in `losses.py`, so
that a new divergence needs no new kernel. Under FSDP call it inside the wrapped model's forward: there the weight is
whole.

Letters: N loss tokens, D hidden size, V vocabulary, K candidates, C tokens of a chunk.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.losses import LossParts, SoftTargets, StudentLogits, distillation_loss
from trainer.objective import Objective
from trainer.tails import MISSING

CHUNK_ELEMENTS = 2**24
"""Logits held at once: 64 MB in float32, 512 tokens at V = 32k. Fewer gain little beside the weight's gradient."""


def fused_distillation_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets: SoftTargets,
    objective: Objective,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    normaliser: Tensor | float | None = None,
) -> LossParts:
    """CE + divergence + tail of N loss tokens, from their hidden states. Equals the dense loss.

    Args:
        hidden_ND: the last hidden states at the positions to read from (`hidden.flatten(0, 1)[batch["loss_index"]]`).
        weight_VD: the output embedding. Where it does not require a gradient none is computed.
        softcap: final logits are softcap · tanh(z / softcap), as in Gemma 2.
        chunk: tokens at once; default as many as make CHUNK_ELEMENTS logits.
        normaliser: see `distillation_loss`.
    """
    student = project(
        hidden_ND, weight_VD, targets, temperature=objective.temperature, bias_V=bias_V, softcap=softcap, chunk=chunk
    )
    return distillation_loss(student, targets, objective, normaliser)


def project(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets: SoftTargets,
    *,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> StudentLogits:
    """The student's logits that a loss reads, differentiable in hidden states, weight and bias.

    Under autocast the matrix products run in its dtype; sums, exponentials and the weight's gradient are float32.
    """
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // weight_VD.shape[0])
    with torch.autocast(device, enabled=False):
        top_NK, tail_lse_N, tail_lse_T_N, target_N, tail_max_N = _Project.apply(  # type: ignore[no-untyped-call]  # torch ships it untyped
            hidden_ND, weight_VD, bias_V, targets.top_ids_NK, targets.target_ids_N, temperature, softcap, chunk
        )
    return StudentLogits(top_NK, tail_lse_N, tail_lse_T_N if temperature != 1 else None, target_N, tail_max_N)


class _Project(torch.autograd.Function):
    """The gradient in z_v of a loss of (z_K, L = log Σ_tail e^z, z_y): g_K[v] on K, g_L · e^{z_v − L} on the tail, and
    g_y more on y; with a temperature, L_T adds g_{L_T} · e^{z_v/T − L_T} / T on the tail."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        top_ids_NK: Tensor,
        target_ids_N: Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
    ) -> tuple[Tensor, ...]:
        count = hidden_ND.shape[0]
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        top_NK = hidden_ND.new_empty(top_ids_NK.shape, dtype=dtype)
        tail_lse_N, tail_lse_T_N, target_N, tail_max_N = (hidden_ND.new_empty(count, dtype=dtype) for _ in range(4))
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            z_CV = _logits(hidden_ND[part], weight_VD, bias_V, softcap)
            target_N[part] = z_CV.gather(1, target_ids_N[part].clamp(min=0)[:, None])[:, 0]
            top_NK[part] = _take_top(z_CV, top_ids_NK[part])
            passes = _kernels(z_CV)
            tail_max_N[part], tail_lse_N[part], tail_lse_T_N[part] = (
                tail_sums(z_CV, temperature) if passes is None else passes.tail_sums(z_CV, temperature)
            )
        tail_lse_N.clamp_(min=MISSING)
        tail_lse_T_N.clamp_(min=MISSING)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, top_ids_NK, target_ids_N, tail_lse_N, tail_lse_T_N)
        ctx.temperature, ctx.softcap, ctx.chunk = temperature, softcap, chunk
        ctx.mark_non_differentiable(tail_max_N)
        return top_NK, tail_lse_N, tail_lse_T_N, target_N, tail_max_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, top_ids_NK, target_ids_N, tail_lse_N, tail_lse_T_N = ctx.saved_tensors
        grad_top_NK, grad_tail_N, grad_tail_T_N, grad_target_N, _ = grads
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=tail_lse_N.dtype) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=tail_lse_N.dtype) if needs_bias else None
        for start in range(0, hidden_ND.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            z_CV = _logits(hidden_ND[part], weight_VD, bias_V, ctx.softcap)
            slope_CV = None if ctx.softcap is None else (z_CV / ctx.softcap).square_().neg_().add_(1)
            _take_top(z_CV, top_ids_NK[part])
            numbers = tail_lse_N[part], grad_tail_N[part], tail_lse_T_N[part], grad_tail_T_N[part], ctx.temperature
            passes = _kernels(z_CV)
            grad_CV = tail_gradient(z_CV, *numbers) if passes is None else passes.tail_gradient(z_CV, *numbers)
            _add_at(grad_CV, top_ids_NK[part], grad_top_NK[part])
            _add_at(grad_CV, target_ids_N[part, None], grad_target_N[part, None])
            if slope_CV is not None:
                grad_CV.mul_(slope_CV)
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0)
            grad_CV = grad_CV.to(weight_VD.dtype)
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_ND[part])
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_CV, hidden_ND[part])
        grad_weight_VD = None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype)
        grad_bias_V = None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype)
        return grad_hidden_ND, grad_weight_VD, grad_bias_V, None, None, None, None, None


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, softcap: float | None) -> Tensor:
    """float32 logits of a chunk, a fresh tensor that the caller may overwrite."""
    z_CV = hidden_CD @ weight_VD.T
    z_CV = z_CV.to(torch.promote_types(z_CV.dtype, torch.float32))
    if bias_V is not None:
        z_CV.add_(bias_V)
    return z_CV if softcap is None else z_CV.div_(softcap).tanh_().mul_(softcap)


def _take_top(z_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """Take the candidates out of `z_CV`, which keeps −inf in their place, and return them, MISSING where there is none.

    A missing id is read as the row's first present one, so that equal ids write equal values; a row without any writes
    back what it read.
    """
    present_CK = ids_CK >= 0
    first_C1 = ids_CK.gather(1, present_CK.int().argmax(1, keepdim=True)) if ids_CK.shape[1] else ids_CK
    safe_CK = torch.where(present_CK, ids_CK, first_C1).clamp(min=0)
    top_CK = z_CV.gather(1, safe_CK)
    z_CV.scatter_(1, safe_CK, torch.where(present_CK.any(1, keepdim=True), -torch.inf, top_CK))
    return torch.where(present_CK, top_CK, MISSING)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _kernels(z_CV: Tensor) -> Any:
    """The module of kernels where the logits lie on a GPU with Triton; what is compiled is fused by the compiler."""
    if not z_CV.is_cuda or z_CV.dtype != torch.float32 or torch.compiler.is_compiling() or not _has_triton():
        return None
    from trainer import kernels

    return kernels


def tail_sums(z_CV: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """max z (at least MISSING), log Σ e^z and log Σ e^{z/T} (at T = 1 the same) of each row; overwrites `z_CV`."""
    most_C = z_CV.amax(-1).clamp_(min=MISSING)
    z_CV.sub_(most_C[:, None])
    warm_C = None if temperature == 1 else (z_CV / temperature).exp_().sum(-1).log_() + most_C / temperature
    sum_C = z_CV.exp_().sum(-1).log_() + most_C
    return most_C, sum_C, sum_C if warm_C is None else warm_C


def tail_gradient(
    z_CV: Tensor, lse_C: Tensor, grad_C: Tensor, lse_T_C: Tensor, grad_T_C: Tensor, temperature: float
) -> Tensor:
    """g_L · softmax of the tail (+ g_{L_T} / T · its softmax at T), 0 at the candidates; overwrites `z_CV`."""
    warm_CV = None
    if temperature != 1:
        warm_CV = (z_CV / temperature).sub_(lse_T_C[:, None]).exp_().mul_(grad_T_C[:, None] / temperature)
    grad_CV = z_CV.sub_(lse_C[:, None]).exp_().mul_(grad_C[:, None])
    return grad_CV if warm_CV is None else grad_CV.add_(warm_CV)


def _add_at(grad_CV: Tensor, ids_CK: Tensor, added_CK: Tensor) -> None:
    """Add to the logits' gradient at some ids; −1 adds nothing."""
    grad_CV.scatter_add_(1, ids_CK.clamp(min=0), added_CK.masked_fill(ids_CK < 0, 0.0))


def _add_product(total_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """total += gradᵀ · hidden, accumulated in the dtype of the total."""
    if total_VD.dtype == grad_CV.dtype:
        total_VD.addmm_(grad_CV.T, hidden_CD)
    else:
        total_VD.add_(grad_CV.T @ hidden_CD)
