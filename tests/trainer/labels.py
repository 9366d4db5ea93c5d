"""Teachers whose whole distribution is known, and the truncated labels that a table would hold of them."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from trainer.errors import LossRefused
from trainer.losses import SoftTargets
from trainer.objective import DIVERGENCES, TAILS, Objective


def accepted(temperatures: Iterable[float]) -> list[Objective]:
    """Every divergence × tail × temperature that is not refused."""
    found = []
    for divergence in DIVERGENCES:
        for tail in TAILS:
            for temperature in temperatures:
                try:
                    found.append(Objective(divergence, tail, temperature))  # type: ignore[arg-type]  # names are looped over
                except LossRefused:
                    continue
    return found


def truncated(logits_NV: Tensor, k: int, targets_N: Tensor, temperature: float = 1.0) -> SoftTargets:
    """Labels as they are collected: top k, tail in double, stored as float32 (float64 for float64 logits)."""
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    log_p_NV = logits_NV.double().log_softmax(-1)
    top_NK, ids_NK = log_p_NV.topk(k)
    rest_NV = log_p_NV.scatter(1, ids_NK, -torch.inf)
    tail_N = rest_NV.logsumexp(-1) if k < logits_NV.shape[1] else torch.full_like(top_NK[:, 0], -torch.inf)
    tail_sum_N = (rest_NV / temperature).logsumexp(-1)
    return SoftTargets(
        target_ids_N=targets_N,
        top_ids_NK=ids_NK,
        top_logprobs_NK=top_NK.to(dtype),
        log_tail_N=tail_N.to(dtype),
        weight_N=torch.ones_like(tail_N, dtype=dtype),
        target_logprobs_N=log_p_NV.gather(1, targets_N.clamp(min=0)[:, None])[:, 0].to(dtype),
        from_teacher_N=torch.ones_like(targets_N, dtype=torch.bool),
        tail_sum_N=None if temperature == 1 else tail_sum_N.to(dtype),
    )


def drop_candidates(targets: SoftTargets, row: int, keep: int, temperature: float = 1.0) -> None:
    """Make a row hold fewer candidates than the others, their mass in its tail, in place."""
    lost_K = targets.top_logprobs_NK[row, keep:].clone()
    targets.log_tail_N[row] = torch.logaddexp(targets.log_tail_N[row], lost_K.logsumexp(0)) if keep else 0.0
    if targets.tail_sum_N is not None:
        targets.tail_sum_N[row] = torch.logaddexp(targets.tail_sum_N[row], (lost_K / temperature).logsumexp(0))
    targets.top_ids_NK[row, keep:] = -1
    targets.top_logprobs_NK[row, keep:] = -torch.inf


def sampled(targets: SoftTargets, logits_NV: Tensor, rows: Iterable[int], draws: int, seed: int) -> SoftTargets:
    """The same labels, those of some rows drawn with replacement in place of the top k."""
    random = torch.Generator().manual_seed(seed)
    log_p_NV = logits_NV.double().log_softmax(-1)
    targets = dataclasses.replace(targets, top_weights_NK=torch.zeros_like(targets.top_logprobs_NK))
    for row in rows:
        drawn = torch.multinomial(log_p_NV[row].exp(), draws, replacement=True, generator=random)
        ids, counts = drawn.unique(return_counts=True)
        first = slice(0, len(ids))
        targets.top_ids_NK[row], targets.top_logprobs_NK[row] = -1, -torch.inf
        targets.top_ids_NK[row, first] = ids
        targets.top_logprobs_NK[row, first] = log_p_NV[row, ids].to(targets.top_logprobs_NK.dtype)
        targets.top_weights_NK[row, first] = (counts / draws).to(targets.top_weights_NK.dtype)
        rest_V = log_p_NV[row].scatter(0, ids, -torch.inf)
        targets.log_tail_N[row] = rest_V.logsumexp(0)
    return targets
