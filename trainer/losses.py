"""The distillation loss of one batch: divergence × tail × hard labels, in float32, from k + 4 numbers a position.

The student enters as `StudentLogits`, which `head.py` makes without ever holding [N, V], and `student_logits` from
dense logits. That cut keeps every loss a plain function that autograd differentiates; the price is that a loss can look
at one tail token only, the realised one.

Letters: N loss tokens, K stored candidates, V vocabulary, E events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.chunks import chunk_divergence
from trainer.divergences import FLOOR, forward_kl
from trainer.errors import LossRefused
from trainer.objective import Objective
from trainer.tails import MISSING, least_tail, renormalised, student_events, teacher_events


class StudentLogits(NamedTuple):
    """What a loss needs of the student at N positions: float32 logits, not normalised."""

    top_NK: Tensor
    """z of the stored candidates; MISSING where there is none."""
    tail_lse_N: Tensor
    """log Σ_{v∉K} exp z_v."""
    tail_lse_T_N: Tensor | None
    """log Σ_{v∉K} exp(z_v / T) where T ≠ 1."""
    target_N: Tensor
    """z of the realised token; anything where there is none."""
    tail_max_N: Tensor
    """max_{v∉K} z_v, for diagnostics; has no gradient."""


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """The labels of N loss tokens, as the stream gives them; float32 unless said otherwise."""

    target_ids_N: Tensor
    """int64: realised tokens, −1 where there is none to learn."""
    top_ids_NK: Tensor
    """int64: candidates, −1 where missing; no id twice in a row."""
    top_logprobs_NK: Tensor
    """log p, −inf exactly where the id is −1."""
    log_tail_N: Tensor
    """log r, the mass outside the candidates."""
    weight_N: Tensor
    """What a position counts for in the loss and in its normaliser."""
    target_logprobs_N: Tensor | None = None
    """log p of the realised token, NaN where unknown: a one-sample estimate then lacks a constant, not its gradient."""
    from_teacher_N: Tensor | None = None
    """bool: the realised token was drawn from the labelled distribution itself (T = 1, nothing cut off)."""
    top_weights_NK: Tensor | None = None
    """Of labels that were sampled with replacement: draws of the candidate / all draws. Rows of 0 for other labels."""
    tail_sum_N: Tensor | None = None
    """log Σ_{v∉K} p_v^{1/T} at the objective's temperature T."""
    chunk_ids_N: Tensor | None = None
    """int64: tokens of one chunk of text share a number, −1 = in none. See `chunks.py`."""
    chunk_logprobs_N: Tensor | None = None
    """The teacher's log-probability of a chunk at its last token, NaN at all others."""

    @classmethod
    def from_batch(cls, batch: Mapping[str, Tensor]) -> SoftTargets:
        """The labels in a batch of `SoftLabelStream`."""
        return cls(
            target_ids_N=batch["target_ids"],
            top_ids_NK=batch["top_ids"],
            top_logprobs_NK=batch["top_logprobs"],
            log_tail_N=batch["log_tail"],
            weight_N=batch["weight"],
            target_logprobs_N=batch.get("target_logprobs"),
            from_teacher_N=batch.get("from_teacher"),
            top_weights_NK=batch.get("top_weights"),
            tail_sum_N=batch.get("tail_sum"),
            chunk_ids_N=batch.get("chunk_ids"),
            chunk_logprobs_N=batch.get("chunk_logprobs"),
        )

    @property
    def has_soft_N(self) -> Tensor:
        """bool: the position has at least one candidate."""
        return (self.top_ids_NK >= 0).any(-1)

    @property
    def has_target_N(self) -> Tensor:
        """bool: the position has a realised token to learn."""
        return self.target_ids_N >= 0


@dataclass(frozen=True, slots=True)
class LossParts:
    """One loss and what it is made of: scalars. All but `loss` are weighted sums over positions, detached, so that they
    add up over micro-batches and ranks."""

    loss: Tensor
    """Σ weight · loss of the position / normaliser: the one to differentiate."""
    divergence: Tensor
    """Σ weight · T² · divergence, over positions with soft labels."""
    hard: Tensor
    """Σ weight · CE, over positions with a realised token."""
    soft_tokens: Tensor
    """Σ weight of positions with soft labels."""
    hard_tokens: Tensor
    """Σ weight of positions with a realised token."""
    teacher_mass: Tensor
    """Σ weight · P, the teacher's mass on its candidates."""
    student_mass: Tensor
    """Σ weight · Q, the student's mass on the same candidates."""
    agreement: Tensor
    """Σ weight where the student's likeliest token is the teacher's."""
    tokens: Tensor
    """Σ weight: what `loss` is divided by when no normaliser is given."""
    chunks: Tensor | float = 0.0
    """Σ weight of chunks of text, of which `divergence` holds one each."""
    cosine: Tensor | float = 0.0
    """Σ weight · mean (1 − cosine) of its document, where a teacher's hidden states are followed (hidden.py)."""


def student_logits(logits_NV: Tensor, targets: SoftTargets, temperature: float = 1.0) -> StudentLogits:
    """The same as `head.project`, from dense logits [N, V]: for evaluation, for tests, and as the reference."""
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    present_NK = targets.top_ids_NK >= 0
    ids_NK = targets.top_ids_NK.clamp(min=0)
    in_top_NV = torch.zeros_like(logits_NV, dtype=torch.int32).scatter_add(1, ids_NK, present_NK.int()) > 0
    tail_NV = logits_NV.clamp(min=MISSING).masked_fill(in_top_NV, MISSING)
    return StudentLogits(
        top_NK=torch.where(present_NK, logits_NV.gather(1, ids_NK), MISSING),
        tail_lse_N=torch.logsumexp(tail_NV, -1),
        tail_lse_T_N=None if temperature == 1 else torch.logsumexp(tail_NV / temperature, -1),
        target_N=logits_NV.gather(1, targets.target_ids_N.clamp(min=0)[:, None])[:, 0],
        tail_max_N=tail_NV.detach().amax(-1),
    )


def soft_divergence(student: StudentLogits, targets: SoftTargets, objective: Objective) -> Tensor:
    """The divergence of each position with the objective's tail, [N], nats, without the factor T².

    Positions whose candidates were sampled with replacement get Σ w (log p − log q), w = draws of a candidate / all
    draws, which is unbiased for the full forward KL (Anshumann et al. 2025, arXiv:2503.16870).
    Raises LossRefused when the labels lack what the objective needs.
    """
    if objective.tail == "renormalised":
        log_p_NE = renormalised(targets.top_logprobs_NK, objective.temperature)
        log_q_NE = renormalised(student.top_NK, objective.temperature)
        loss_N = objective.make_divergence()(log_p_NE, log_q_NE)
    elif objective.tail == "zero":
        log_q_NE = student_events(student.top_NK, student.tail_lse_N)
        loss_N = forward_kl(renormalised(targets.top_logprobs_NK), log_q_NE[:, :-1])
    else:
        loss_N = _with_tail_event(student, targets, objective)
    if targets.top_weights_NK is None:
        return loss_N
    if objective.divergence != "forward_kl" or objective.temperature != 1:
        raise LossRefused(
            "labels sampled with replacement estimate the forward KL at T = 1 alone: use it, or leave them out"
        )
    log_q_NK = student_events(student.top_NK, student.tail_lse_N)[:, :-1]
    ratio_NK = torch.where(targets.top_ids_NK >= 0, targets.top_logprobs_NK - log_q_NK, 0.0)
    return torch.where(targets.top_weights_NK.sum(-1) > 0, (targets.top_weights_NK * ratio_NK).sum(-1), loss_N)


def _with_tail_event(student: StudentLogits, targets: SoftTargets, objective: Objective) -> Tensor:
    """The bucket, and its two variants that read one tail token. [N]

    bucket          D over K ∪ {tail}
    bucket_shape    + 1[y∉K] · (log p_y/r − log q_y/(1−Q)): the expectation over y is the full KL
    realised_token  Σ_K p log(p/q) + 1[y∉K] · (log p_y − log q_y): the same expectation, without the bucket
    The last two hold for a y that the teacher drew from p itself; other positions keep the bucket.
    """
    temperature = objective.temperature
    if objective.needs_tail_sum and targets.tail_sum_N is None:
        raise LossRefused(
            f"temperature {temperature} with the tail bucket needs tail sums stored for it: collect them, "
            "or use temperature 1 or tail renormalised"
        )
    tail_lse_N = student.tail_lse_N if temperature == 1 else student.tail_lse_T_N
    assert tail_lse_N is not None, "student logits were made without the objective's temperature"
    log_tail_N = least_tail(targets.log_tail_N, tail_lse_N.detach())
    log_p_NE = teacher_events(targets.top_logprobs_NK, log_tail_N, temperature, targets.tail_sum_N)
    log_q_NE = student_events(student.top_NK, tail_lse_N, temperature)
    bucket_N = objective.make_divergence()(log_p_NE, log_q_NE)
    if objective.tail == "bucket":
        return bucket_N
    if targets.from_teacher_N is None:
        raise LossRefused(f"tail {objective.tail!r} needs to know which realised tokens the teacher drew: use bucket")
    target_in_top_N = (targets.top_ids_NK == targets.target_ids_N[:, None]).any(-1)
    drawn_from_tail_N = ~target_in_top_N & targets.has_target_N
    log_q_y_N = hard_cross_entropy(student, targets).neg()
    log_p_y_N = (
        torch.full_like(log_q_y_N, torch.nan) if targets.target_logprobs_N is None else targets.target_logprobs_N
    )
    if objective.tail == "bucket_shape":
        base_N = bucket_N
        constant_N, log_q_tail_y_N = log_p_y_N - log_p_NE[:, -1], log_q_y_N - log_q_NE[:, -1]
    else:
        base_N = forward_kl(log_p_NE[:, :-1], log_q_NE[:, :-1])
        constant_N, log_q_tail_y_N = log_p_y_N, log_q_y_N
    estimate_N = base_N + torch.where(drawn_from_tail_N, constant_N.nan_to_num(0.0) - log_q_tail_y_N, 0.0)
    return torch.where(targets.from_teacher_N & targets.has_target_N, estimate_N, bucket_N)


def _of_chunks(log_q_N: Tensor, chunk_ids_N: Tensor, chunk_logprobs_N: Tensor, objective: Objective) -> Tensor:
    """The divergence of each chunk of text at its last token, [N]. Raises LossRefused where the tail has no bucket."""
    if objective.temperature != 1 or objective.tail in ("renormalised", "zero"):
        raise LossRefused(
            f"tail {objective.tail!r} at temperature {objective.temperature}: a student of another tokenizer learns "
            "how likely chunks of text are, each one event beside all others: choose tail bucket and temperature 1"
        )
    return chunk_divergence(log_q_N, chunk_ids_N, chunk_logprobs_N, objective.make_divergence())[0]


def hard_cross_entropy(student: StudentLogits, targets: SoftTargets) -> Tensor:
    """−log q of the realised token, [N], nats; 0 where there is none.

    From the same pieces: log Σ_v exp z_v is the log-sum-exp of the candidates' logits and the tail's.
    """
    logits_NE = torch.cat([student.top_NK, student.tail_lse_N[:, None]], -1).clamp(min=MISSING)
    top_N = logits_NE.detach().amax(-1)
    lse_N = torch.logsumexp(logits_NE - top_N[:, None], -1)
    loss_N = (lse_N - (student.target_N.clamp(min=MISSING) - top_N)).clamp(max=-FLOOR)
    return torch.where(targets.has_target_N, loss_N, 0.0)


def distillation_loss(
    student: StudentLogits, targets: SoftTargets, objective: Objective, normaliser: Tensor | float | None = None
) -> LossParts:
    """The loss of N positions, and what it is made of.

    Args:
        normaliser: what the weighted sum is divided by; default Σ weight of these N. Pass Σ weight over all
            micro-batches and ranks of an optimizer step (divided by the world size under DDP, which averages
            gradients), so that the step does not depend on how it was split. Weights that are all 0 give loss 0.
    """
    soft_N, target_N = targets.has_soft_N, targets.has_target_N
    divergence_N = torch.where(soft_N, soft_divergence(student, targets, objective), 0.0) * objective.temperature**2
    hard_N = hard_cross_entropy(student, targets)
    share_N = torch.where(soft_N, objective.hard_weight, 1.0)
    weight_N = targets.weight_N
    chunks: Tensor | float = 0.0
    if targets.chunk_ids_N is not None:
        assert targets.chunk_logprobs_N is not None
        divergence_N = divergence_N + _of_chunks(hard_N.neg(), targets.chunk_ids_N, targets.chunk_logprobs_N, objective)
        share_N = torch.where(targets.chunk_ids_N >= 0, objective.hard_weight, share_N)
        chunks = (weight_N * ~targets.chunk_logprobs_N.isnan()).sum()
    total = (weight_N * ((1 - share_N) * divergence_N + share_N * hard_N)).sum()
    tokens = weight_N.sum()
    if normaliser is None:
        normaliser = torch.where(tokens > 0, tokens, 1.0)
    loss = total / normaliser
    with torch.no_grad():
        soft_weight_N = weight_N * soft_N
        teacher_mass_N = -torch.expm1(targets.log_tail_N)
        student_mass_N = -torch.expm1(student_events(student.top_NK, student.tail_lse_N)[:, -1])
        teacher_first_N = targets.top_logprobs_NK.argmax(-1)
        best_N, student_first_N = student.top_NK.max(-1)
        agrees_N = (student_first_N == teacher_first_N) & (best_N >= student.tail_max_N)
        return LossParts(
            loss=loss,
            divergence=(weight_N * divergence_N).sum().detach(),
            hard=(weight_N * hard_N).sum().detach(),
            soft_tokens=soft_weight_N.sum(),
            hard_tokens=(weight_N * target_N).sum(),
            teacher_mass=(soft_weight_N * teacher_mass_N).sum(),
            student_mass=(soft_weight_N * student_mass_N).sum(),
            agreement=(soft_weight_N * agrees_N).sum(),
            tokens=tokens,
            chunks=chunks,
        )
