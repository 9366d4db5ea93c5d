"""How close a student is to its teacher on given rows: sums over tokens, so that parts add up to the whole.

All against the stored labels: the KL is that of the candidates and one tail bucket, a lower bound of the full one.
Dense logits are made for a few tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.chunks import chunk_divergence, chunk_events
from trainer.divergences import forward_kl
from trainer.forward import logit_pieces
from trainer.losses import SoftTargets, StudentLogits, hard_cross_entropy, student_logits
from trainer.tails import student_events, teacher_events

CALIBRATION_BINS = 15
NAMES = {
    "kl": "kl",
    "head": "head_loss",
    "tail": "tail_loss",
    "acceptance": "acceptance",
    "agrees": "top1_agreement",
    "nll": "nll",
}
"""A measure of a token → what its mean is called."""
BOOTSTRAP = 1000


@torch.no_grad()
def token_measures(model: Any, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, NDArray[np.float64]]:
    """One value per target for each measure, [N] over all batches.

    `row` is the row of the stream's index; `kl`, `head`, `tail`, `nll`, `teacher_nll` and `entropy` (the teacher's) are
    nats; `agrees`, `hit` 0 or 1; `acceptance` is Σ min(p, q), the chance that speculative decoding keeps the student's
    proposal (at most: the tails count as one event); `confidence` is the student's largest probability. NaN where a
    target has no soft labels or no realised token.
    """
    model.eval()
    columns: dict[str, list[Tensor]] = {}
    for batch in batches:
        if not len(batch["loss_index"]):
            continue
        columns.setdefault("row", []).append(batch["index_row"])
        pieces = [_measures(targets, logits_NV) for targets, logits_NV in _chunks(model, batch)]
        found = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        if "chunk_ids" in batch:
            _add_chunks(found, batch)
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    return {name: torch.cat(values).double().numpy() for name, values in columns.items()}


def _chunks(model: Any, batch: Mapping[str, Tensor]) -> Iterator[tuple[SoftTargets, Tensor]]:
    per_token = ("target_ids", "top_ids", "top_logprobs", "log_tail", "weight", "target_logprobs")
    for part, logits_NV in logit_pieces(model, batch):
        yield SoftTargets.from_batch({name: batch[name][part] for name in per_token}), logits_NV


def _add_chunks(found: dict[str, Tensor], batch: Mapping[str, Tensor]) -> None:
    """KL and acceptance of chunks of text, two events each, at their last tokens."""
    log_p_N, log_q_N = batch["chunk_logprobs"], found["nll"].nan_to_num(0.0).neg()
    kl_N, log_q_N = chunk_divergence(log_q_N, batch["chunk_ids"], log_p_N, forward_kl)
    events = torch.minimum(chunk_events(log_p_N.nan_to_num(-1.0)), chunk_events(log_q_N))
    known_N = ~log_p_N.isnan()
    found["kl"] = torch.where(known_N, kl_N, found["kl"])
    found["acceptance"] = torch.where(known_N, events.exp().sum(-1), found["acceptance"])


def _measures(targets: SoftTargets, logits_NV: Tensor) -> dict[str, Tensor]:
    student: StudentLogits = student_logits(logits_NV, targets)
    log_p_NE = teacher_events(targets.top_logprobs_NK, targets.log_tail_N)
    log_q_NE = student_events(student.top_NK, student.tail_lse_N)
    terms_NE = log_p_NE.exp() * (log_p_NE - log_q_NE)
    first_N = logits_NV.argmax(-1)
    best_N = targets.top_ids_NK.gather(1, targets.top_logprobs_NK.argmax(-1, keepdim=True))[:, 0]
    soft, hard = targets.has_soft_N, targets.has_target_N
    assert targets.target_logprobs_N is not None
    return {
        "kl": _where(soft, terms_NE.sum(-1)),
        "entropy": _where(soft, -(log_p_NE.exp() * log_p_NE.clamp(min=-80.0)).sum(-1)),
        "head": _where(soft, terms_NE[:, :-1].sum(-1)),
        "tail": _where(soft, terms_NE[:, -1]),
        "acceptance": _where(soft, torch.minimum(log_p_NE, log_q_NE).exp().sum(-1)),
        "agrees": _where(soft, (first_N == best_N).float()),
        "nll": _where(hard, hard_cross_entropy(student, targets)),
        "teacher_nll": _where(hard, -targets.target_logprobs_N),
        "confidence": logits_NV.softmax(-1).amax(-1),
        "hit": _where(hard, (first_N == targets.target_ids_N).float()),
    }


def _where(known_N: Tensor, values_N: Tensor) -> Tensor:
    return torch.where(known_N, values_N, torch.nan)


def summary(tokens: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Means over tokens, with 95 % intervals by resampling rows (tokens of a row are not independent)."""
    means = {name: _mean(tokens[name]) for name in NAMES}
    bounds = {shown: interval(tokens["row"], tokens[name]) for name, shown in NAMES.items()}
    return {
        "kl": means["kl"],
        "kl_low": bounds["kl"][0],
        "kl_high": bounds["kl"][1],
        "head_loss": means["head"],
        "tail_loss": means["tail"],
        "nll": means["nll"],
        "perplexity": float(np.exp(means["nll"])),
        "top1_agreement": means["agrees"],
        "acceptance": means["acceptance"],
        "calibration_error": calibration_error(tokens["confidence"], tokens["hit"]),
        "intervals": {
            **bounds,
            "calibration_error": calibration_interval(tokens["row"], tokens["confidence"], tokens["hit"]),
        },
    }


def part(tokens: Mapping[str, NDArray[np.float64]], rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """The tokens of some rows of the index alone."""
    inside = np.isin(tokens["row"], rows)
    return {name: values[inside] for name, values in tokens.items()}


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def interval(rows: NDArray[np.float64], values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over tokens, whole rows drawn with replacement."""
    known = ~np.isnan(values)
    _, number = np.unique(rows[known], return_inverse=True)
    if not number.size:
        return float("nan"), float("nan")
    sums, counts = np.bincount(number, values[known]), np.bincount(number)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(BOOTSTRAP, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def calibration_error(confidence: NDArray[np.float64], hit: NDArray[np.float64]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): |confidence − accuracy| over equal bins.

    The realised tokens are draws of the teacher, so a student with the teacher's distribution has an error of 0.
    """
    known = ~np.isnan(hit)
    confidence, hit = confidence[known], hit[known]
    if not hit.size:
        return float("nan")
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(bins, confidence - hit, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / hit.size)


def calibration_interval(
    rows: NDArray[np.float64], confidence: NDArray[np.float64], hit: NDArray[np.float64], seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the calibration error, whole rows drawn with replacement."""
    known = ~np.isnan(hit)
    _, number = np.unique(rows[known], return_inverse=True)
    if not number.size:
        return float("nan"), float("nan")
    bins = np.minimum((confidence[known] * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.zeros((int(number.max()) + 1, CALIBRATION_BINS))
    np.add.at(gaps, (number, bins), confidence[known] - hit[known])
    counts = np.bincount(number)
    drawn = np.random.default_rng(seed).integers(len(gaps), size=(BOOTSTRAP // 5, len(gaps)))
    errors = [np.abs(gaps[one].sum(axis=0)).sum() / counts[one].sum() for one in drawn]
    low, high = np.quantile(errors, [0.025, 0.975])
    return float(low), float(high)


def reliability(tokens: Mapping[str, NDArray[np.float64]]) -> list[dict[str, float]]:
    """For ten bins of equally many tokens by confidence: how sure the student was and how often it was right."""
    known = ~np.isnan(tokens["hit"])
    confidence, hit = tokens["confidence"][known], tokens["hit"][known]
    order = np.argsort(confidence, kind="stable")
    return [
        {"confidence": float(confidence[p].mean()), "accuracy": float(hit[p].mean()), "tokens": len(p)}
        for p in np.array_split(order, min(10, len(order)))
        if len(p)
    ]


def by_entropy(tokens: Mapping[str, NDArray[np.float64]]) -> list[dict[str, float]]:
    """For six bins of equally many tokens by the teacher's entropy: the student's mean KL."""
    known = ~np.isnan(tokens["kl"])
    entropy, kl = tokens["entropy"][known], tokens["kl"][known]
    order = np.argsort(entropy, kind="stable")
    return [
        {"entropy": float(entropy[p].mean()), "kl": float(kl[p].mean()), "tokens": len(p)}
        for p in np.array_split(order, min(6, len(order)))
        if len(p)
    ]
