"""The teacher against right answers, where prompts bring them: how right it is, how likely it holds what is right, and
whether its confidence can be believed. A student that learns from it gets no better: the student's ceiling.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.profile_text import words
from storage.rows import Row

BINS = 10
BOOTSTRAP = 1000
SHORT = 6
"""A reference of at most so many words counts as found where the answer's first line holds it."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Answered:
    """One row beside its reference. `nll` is −log p of the reference, nats (per token where it was scored); None where
    the labels cannot tell. `confidence` is the probability of the answer that was given."""

    domain: str
    right: bool
    overlap: float
    nll: float | None
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval over rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What is known of the rows with a reference, of one domain or (None) of all."""

    domain: str | None
    rows: int
    accuracy: Estimate
    overlap: Estimate
    nll: Estimate | None
    calibration_error: Estimate | None


def compare(row: Row) -> Answered | None:
    """A row beside its reference; None where it has none."""
    if row.reference is None or not row.reference.strip():
        return None
    domain = row.domain or ""
    if row.mode == "classify" and row.label_set is not None and row.labels is not None:
        return _classified(row, domain)
    if row.mode == "score":
        if row.completion is None or _plain(row.completion) != _plain(row.reference):
            return None
        labels = row.labels
        ranks = labels.token_ranks if labels is not None else np.empty(0)
        right = bool(ranks.size and (ranks == 1).all())
        return Answered(domain, right, float(right), _mean_nll(row), None)
    answer = row.completion or ""
    return Answered(
        domain, matches(answer, row.reference), _overlap(answer, row.reference), None, _sequence_probability(row)
    )


def matches(answer: str, reference: str) -> bool:
    """Whether an answer says what the reference says.

    Equal without case, punctuation and articles; or a short reference stands as words in the answer's first line; or
    the reference is a number and the answer's last number is it.
    """
    wanted, given = _plain(reference), _plain(answer)
    if not wanted:
        return False
    if given == wanted:
        return True
    if _NUMBER.fullmatch(reference.strip()):
        numbers = _NUMBER.findall(answer.replace(",", ""))
        return bool(numbers) and math.isclose(float(numbers[-1]), float(reference))
    lines = answer.strip().splitlines()
    first = f" {_plain(lines[0]) if lines else ''} "
    return len(wanted.split()) <= SHORT and f" {wanted} " in first


def _plain(text: str) -> str:
    return " ".join(w for w in words(text) if w[0].isalnum() and w not in ("a", "an", "the"))


def _overlap(answer: str, reference: str) -> float:
    """F1 of the words in common, as for SQuAD (Rajpurkar et al. 2016)."""
    given, wanted = Counter(_plain(answer).split()), Counter(_plain(reference).split())
    common = sum((given & wanted).values())
    return 2 * common / (sum(given.values()) + sum(wanted.values())) if common else 0.0


def _classified(row: Row, domain: str) -> Answered | None:
    labels, names = row.labels, row.label_set
    assert labels is not None and names is not None
    wanted = _plain(row.reference or "")
    place = next((i for i, name in enumerate(names) if _plain(name) == wanted), None)
    if place is None or not len(labels):
        return None
    ids, logs = labels.top_ids[0], labels.top_logprobs[0]
    given = np.flatnonzero(ids == place)
    nll = float(-logs[given[0]]) if given.size else float(-labels.log_tail[0])
    right = bool(ids[0] == place)
    return Answered(domain, right, float(right), min(nll, 30.0), float(np.exp(logs[0])))


def _mean_nll(row: Row) -> float | None:
    if row.labels is None:
        return None
    known = row.labels.token_logprobs[~np.isnan(row.labels.token_logprobs)]
    return float(-known.mean()) if known.size else None


def _sequence_probability(row: Row) -> float | None:
    """The chance that the teacher gives exactly this answer; None where a token's log-probability is not known."""
    if row.labels is None or not len(row.labels) or bool(np.isnan(row.labels.token_logprobs).any()):
        return None
    return float(np.exp(row.labels.token_logprobs.astype(np.float64).sum()))


def ceilings(answered: Sequence[Answered]) -> list[Ceiling]:
    """All rows together, then each domain that has at least five."""
    if not answered:
        return []
    domains = Counter(one.domain for one in answered)
    found = [_ceiling(None, answered)]
    if len(domains) > 1:
        for domain, count in sorted(domains.items()):
            if count >= 5:
                found.append(_ceiling(domain or "(none)", [one for one in answered if one.domain == domain]))
    return found


def _ceiling(domain: str | None, answered: Sequence[Answered]) -> Ceiling:
    right = np.array([one.right for one in answered], dtype=float)
    nll = np.array([one.nll for one in answered if one.nll is not None])
    sure = [(one.confidence, one.right) for one in answered if one.confidence is not None]
    confidence, hit = np.array([c for c, _ in sure]), np.array([float(r) for _, r in sure])
    calibration = None
    if len(sure) >= 2 * BINS:
        calibration = _resampled(lambda rows: calibration_error(confidence[rows], hit[rows]), len(sure))
    return Ceiling(
        domain=domain,
        rows=len(answered),
        accuracy=wilson(int(right.sum()), len(right)),
        overlap=_mean(np.array([one.overlap for one in answered])),
        nll=_mean(nll) if nll.size else None,
        calibration_error=calibration,
    )


def wilson(successes: int, of: int) -> Estimate:
    """A share with its 95 % interval after Wilson (1927), which also holds near 0 and 1 and for few rows."""
    share, z2 = successes / of, 1.96**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = 1.96 * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return Estimate(share, max(middle - half, 0.0), min(middle + half, 1.0))


def _mean(values: NDArray[np.float64]) -> Estimate:
    return _resampled(lambda rows: float(values[rows].mean()), len(values))


def _resampled(statistic: Callable[[Any], float], rows: int) -> Estimate:
    random = np.random.default_rng(0)
    drawn = [statistic(random.integers(rows, size=rows)) for _ in range(BOOTSTRAP)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(statistic(np.arange(rows)), float(low), float(high))


def calibration_error(confidence: NDArray[np.float64], hit: NDArray[np.float64]) -> float:
    """Expected calibration error over ten bins of equally many rows: mean |confidence − accuracy|."""
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    return float(sum(abs(confidence[p].sum() - hit[p].sum()) for p in parts) / len(order))
