"""The likelihood of a chunk of text as a label: two events, this text and any other (approximate likelihood matching,
Minixhofer et al. 2025, arXiv:2503.20083).

One number of the teacher for several tokens of the student, so it says less a token than a distribution; it needs no
common vocabulary.

Letters: N loss tokens, C chunks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.divergences import Divergence
from trainer.tails import LEAST_TAIL


def chunk_events(log_p: Tensor) -> Tensor:
    """log p and log(1 − p) of events [C] → [C, 2]. p is at most 1 − LEAST_TAIL, so that nothing is infinite.

    A nearer 1 cannot be told from 1 in float32; there the gradient is 0.
    """
    log_p = log_p.clamp(min=-1e3, max=-LEAST_TAIL)
    near = log_p > -math.log(2)
    small, large = torch.where(near, log_p, -1.0), torch.where(near, -1.0, log_p)
    rest = torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
    return torch.stack([log_p, rest], -1)


def chunk_divergence(
    log_q_N: Tensor, chunk_ids_N: Tensor, chunk_logprobs_N: Tensor, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """D(p ‖ q) over {the chunk's text, any other text}, at the last token of each chunk; 0 elsewhere. [N], nats

    Args:
        log_q_N: the student's log-probability of each realised token; a chunk's is their sum.
        chunk_ids_N: tokens of one chunk share a number, −1 = in none.
        chunk_logprobs_N: the teacher's log-probability of the chunk at its last token, NaN at all others.

    Returns the divergences, and the student's log-probability of each chunk at the same places.
    """
    last_N = ~chunk_logprobs_N.isnan()
    _, place_N = torch.unique(chunk_ids_N, return_inverse=True)
    inside_N = torch.where(chunk_ids_N >= 0, log_q_N, 0.0)
    log_q_C = torch.zeros_like(log_q_N).index_add(0, place_N, inside_N)
    chunk_log_q_N = torch.where(last_N, log_q_C[place_N], -1.0)
    divergence_N = divergence(chunk_events(chunk_logprobs_N.nan_to_num(-1.0)), chunk_events(chunk_log_q_N))
    return torch.where(last_N, divergence_N, 0.0), chunk_log_q_N
