"""What becomes of the tail: teacher and student over the k stored tokens and, where wanted, one event for all others.

The teacher's k log-probabilities were rounded when stored, and the tail was not: p is rescaled to sum to 1 − r first,
or a perfect student would get a loss below 0.

Letters: N positions, K stored candidates, E = K + 1 events (the last one is the tail).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.divergences import FLOOR

LEAST_TAIL = 1e-7
"""float32 log-probabilities cannot tell a smaller tail from none (their sum is known to 6e-8): r is at least this."""
MISSING = -1e30
"""Stands for the logit −inf: finite, so that differences of two of them are not NaN."""


def least_tail(log_tail_N: Tensor, tail_lse_N: Tensor) -> Tensor:
    """log r for a student: at least LEAST_TAIL where the student has other tokens, −inf where it has none."""
    return torch.where(tail_lse_N > MISSING, log_tail_N.clamp(min=math.log(LEAST_TAIL)), -torch.inf)


def teacher_events(
    top_logprobs_NK: Tensor, log_tail_N: Tensor, temperature: float = 1.0, tail_sum_N: Tensor | None = None
) -> Tensor:
    """Teacher log-probabilities [N, K+1]: the candidates rescaled to 1 − r, then log r (−inf: there is no tail).

    At a temperature T ≠ 1 the tail's mass is S / (Σ_K p^{1/T} + S), and `tail_sum_N` is log S = log Σ_tail p^{1/T}.
    Missing candidates (−inf) come out as FLOOR.
    """
    log_r_N = log_tail_N.clamp(min=FLOOR, max=-LEAST_TAIL)
    kept_NK = top_logprobs_NK.clamp(min=MISSING)
    scale_N = torch.log(-torch.expm1(log_r_N)) - torch.logsumexp(kept_NK, -1)
    events_NE = torch.cat([kept_NK + scale_N[:, None], log_r_N[:, None]], -1)
    if temperature != 1.0:
        assert tail_sum_N is not None, "Objective refuses a bucket at T ≠ 1 without tail sums"
        unnormalised_NE = torch.cat([events_NE[:, :-1] / temperature, tail_sum_N[:, None].clamp(min=MISSING)], -1)
        events_NE = unnormalised_NE - torch.logsumexp(unnormalised_NE, -1, keepdim=True)
    return events_NE.clamp(min=FLOOR)


def student_events(top_logits_NK: Tensor, tail_lse_N: Tensor, temperature: float = 1.0) -> Tensor:
    """Student log-probabilities [N, K+1]: log q of the candidates, then log(1 − Q).

    `tail_lse_N` is log Σ_{v∉K} exp(z_v / T), reduced over the tail's own logits: log(1 − Q) from Q would lose all its
    digits where 1 − Q < 1e-7. The largest event is subtracted first, which keeps the digits of confident positions.
    """
    logits_NE = torch.cat([top_logits_NK / temperature, tail_lse_N[:, None]], -1).clamp(min=MISSING)
    shifted_NE = logits_NE - logits_NE.detach().amax(-1, keepdim=True)
    return (shifted_NE - torch.logsumexp(shifted_NE, -1, keepdim=True)).clamp(min=FLOOR)


def renormalised(logits_NK: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax of logits (or log-probabilities) over the candidates alone, [N, K]: what p_T and q_T are, given K.

    The unknown Σ_tail p^{1/T} cancels, so any temperature is exact; the tail itself is not trained.
    """
    kept_NK = logits_NK.clamp(min=MISSING)
    shifted_NK = (kept_NK - kept_NK.detach().amax(-1, keepdim=True)) / temperature
    return (shifted_NK - torch.logsumexp(shifted_NK, -1, keepdim=True)).clamp(min=FLOOR)
