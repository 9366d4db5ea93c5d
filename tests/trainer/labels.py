"""Teachers whose whole distribution is known, and the truncated labels that a table would hold of them."""

import torch
from torch import Tensor

from trainer.losses import SoftTargets


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


def drop_candidates(targets: SoftTargets, row: int, keep: int) -> None:
    """Make a row hold fewer candidates than the others, their mass in its tail, in place."""
    lost = targets.top_logprobs_NK[row, keep:].logsumexp(0)
    targets.log_tail_N[row] = torch.logaddexp(targets.log_tail_N[row], lost) if keep else 0.0
    targets.top_ids_NK[row, keep:] = -1
    targets.top_logprobs_NK[row, keep:] = -torch.inf
