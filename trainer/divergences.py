"""Divergences between teacher p and student q over the same E events, as plain functions of log-probabilities.

An event is a token, or "any other token" (the tail): a divergence of coarser events is a lower bound of the full one.
All are at least 0, and 0 where p = q, as long as p and q each sum to 1 over the events. An event that does not exist at
a position has log-probability FLOOR on both sides, so that nothing is ever infinite.

Letters: N positions, E events.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

FLOOR = -1e4
"""The least log-probability: exp(FLOOR) is 0 in float32 and float64, and 0 · FLOOR is 0 where 0 · −inf is NaN."""
SAME_PROBABILITY = 1e-5
"""Closer probabilities may differ by rounding alone (a float32 logit of 100 is known to 4e-6): total variation, which
has a kink at 0, calls them equal."""

Divergence = Callable[[Tensor, Tensor], Tensor]


def forward_kl(log_p_NE: Tensor, log_q_NE: Tensor) -> Tensor:
    """Σ p (log p − log q), shape [N], nats; gradient in the logits q − p. Hinton et al. 2015, arXiv:1503.02531."""
    return (log_p_NE.exp() * (log_p_NE - log_q_NE)).sum(-1)


def reverse_kl(log_p_NE: Tensor, log_q_NE: Tensor) -> Tensor:
    """Σ q (log q − log p), shape [N], nats: seeks a mode of p. Gu et al. 2024 (MiniLLM), arXiv:2306.08543."""
    return (log_q_NE.exp() * (log_q_NE - log_p_NE)).sum(-1)


def jensen_shannon(log_p_NE: Tensor, log_q_NE: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p‖m) + (1 − β) KL(q‖m) with m = βp + (1 − β)q, 0 < β < 1, shape [N], nats.

    Agarwal et al. 2024 (GKD), arXiv:2306.13649, equation 1. Divided by β it tends to KL(p‖q) as β → 0.
    """
    log_m_NE = torch.logaddexp(log_p_NE + math.log(beta), log_q_NE + math.log1p(-beta))
    return beta * forward_kl(log_p_NE, log_m_NE) + (1 - beta) * forward_kl(log_q_NE, log_m_NE)


def skewed_kl(log_p_NE: Tensor, log_q_NE: Tensor, skew: float = 0.1) -> Tensor:
    """KL(p ‖ λp + (1 − λ)q) with skew λ, 0 ≤ λ < 1, shape [N], nats. Ko et al. 2024 (DistiLLM), arXiv:2402.03898."""
    if skew == 0:
        return forward_kl(log_p_NE, log_q_NE)
    return forward_kl(log_p_NE, torch.logaddexp(log_p_NE + math.log(skew), log_q_NE + math.log1p(-skew)))


def total_variation(log_p_NE: Tensor, log_q_NE: Tensor) -> Tensor:
    """½ Σ |p − q|, shape [N], between 0 and 1. Wen et al. 2023 (f-DISTILL), arXiv:2307.15190."""
    difference_NE = torch.nn.functional.softshrink(log_p_NE.exp() - log_q_NE.exp(), SAME_PROBABILITY)
    return 0.5 * difference_NE.abs().sum(-1)
