"""Wire → labels: what an endpoint sent for one sequence, checked and put in the table's order.

A wrong row looks like a good one, so whatever is not understood is refused with a reason code and kept as a reject.
All positions are checked at once in numpy, in double; rounding to float32 comes last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.errors import Rejected
from storage.codec import Labels, log_tail

MASS_TOLERANCE = 1e-3
"""Engines that compute in bfloat16 send sums slightly above 1: vLLM and llama.cpp stay below 1 + 3e-4."""

SENTINEL = -9999.0
"""vLLM and OpenAI send this for −inf, llama.cpp the lowest float32: at or below it there is no log-probability."""

_DISAGREEMENT = 1e-2  # of the realised token's two log-probabilities; beyond it the lists belong to other positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One sequence as it was sent: T positions, and of each its candidates one after the other, in the order received.

    token_ids, token_logprobs: (T), of the realised tokens; None = not sent. counts: (T), candidates per position.
    candidate_ids, candidate_logprobs: (Σ counts). An id of −1 is a candidate whose id could not be told.
    token_ranks: (T), 1 = the most likely, where the endpoint says so. last_uncertain: the realised token may stand in
    the place of the k-th candidate (vLLM's chat shape).
    """

    token_ids: Sequence[int]
    token_logprobs: Sequence[float | None]
    counts: Sequence[int]
    candidate_ids: Sequence[int]
    candidate_logprobs: Sequence[float | None]
    token_ranks: Sequence[int] | None = None
    last_uncertain: bool = False


@dataclass(frozen=True, slots=True)
class Normalised:
    """Labels, and how many candidates and realised log-probabilities were masked because they were no numbers."""

    labels: Labels
    masked: int


def normalise(received: Received, *, k: int, vocabulary: int | None, truncated: bool = False) -> Normalised:
    """The labels of a sequence, best first, with the k best candidates of each position.

    vocabulary: ids at or above it are refused; None leaves that check out. truncated: the endpoint cuts its candidates
    by the sampling parameters, so fewer than k are no fault. Raises Rejected with one of the codes: length_mismatch,
    id_out_of_vocabulary, repeated_ids, mass_above_one, empty_candidates, too_few_candidates, realised_disagrees.
    """
    token_ids, token_logprobs = _realised(received, vocabulary)
    ids, logprobs = _candidates(received, vocabulary)
    ids, logprobs, masked = _mask(ids, logprobs, counts := np.asarray(received.counts, dtype=np.int64))
    ids, logprobs = _best_first(ids, logprobs)
    _check_repeats(ids)
    _check_mass(logprobs, token_logprobs)
    if k:
        _check_counts(counts, token_logprobs, min(k, vocabulary or k), truncated)
    _check_agreement(token_ids, token_logprobs, ids, logprobs)
    ids, logprobs = _without_extra(ids, logprobs, (counts > k)[:, None] & (ids == token_ids[:, None]))
    top_ids, top_logprobs = _fit(ids, logprobs, k)
    known = ~np.isnan(token_logprobs)
    return Normalised(
        labels=Labels(
            token_ids=token_ids.astype(np.int32),
            token_logprobs=token_logprobs.astype(np.float32),
            token_ranks=_ranks(received, token_ids, top_ids),
            top_ids=top_ids.astype(np.int32),
            top_logprobs=top_logprobs.astype(np.float32),
            log_tail=log_tail(top_logprobs),
        ),
        masked=masked + int(len(known) - known.sum()),
    )


def _realised(received: Received, vocabulary: int | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    columns = [received.token_ids, received.token_logprobs, received.counts, received.token_ranks]
    lengths = [len(column) for column in columns if column is not None]
    if len(set(lengths)) > 1 or len(received.candidate_ids) != len(received.candidate_logprobs):
        seen = " / ".join(map(str, lengths))
        raise Rejected("length_mismatch", f"token ids, log-probabilities and candidate lists differ in count: {seen}")
    token_ids = _ids(received.token_ids, vocabulary, lowest=0)
    token_logprobs = np.array(received.token_logprobs, dtype=np.float64)
    token_logprobs[~(token_logprobs > SENTINEL)] = np.nan
    return token_ids, token_logprobs


def _ids(values: Sequence[int], vocabulary: int | None, lowest: int) -> NDArray[np.int64]:
    end = 2**31 if vocabulary is None else vocabulary
    try:
        ids = np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise Rejected("id_out_of_vocabulary", "an id does not fit into 64 bits") from error
    if ids.size and not (ids.min() >= lowest and ids.max() < end):
        raise Rejected("id_out_of_vocabulary", f"an id lies outside 0 … {end - 1} (seen: {ids.min()} … {ids.max()})")
    return ids


def _candidates(received: Received, vocabulary: int | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Candidates as (T, M), M the longest list; places without one have id −1 and log-probability −inf."""
    counts = np.asarray(received.counts, dtype=np.int64)
    if int(counts.sum()) != len(received.candidate_ids):
        raise Rejected("length_mismatch", "the candidate lists do not add up to the candidates received")
    flat = _ids(received.candidate_ids, vocabulary, lowest=-1)
    flat_logprobs = np.array(received.candidate_logprobs, dtype=np.float64)
    if len(counts) and (counts == counts[0]).all():  # as almost always
        return flat.reshape(len(counts), -1), flat_logprobs.reshape(len(counts), -1)
    there = np.arange(counts.max(initial=0)) < counts[:, None]
    ids = np.full(there.shape, -1, dtype=np.int64)
    logprobs = np.full(there.shape, -np.inf)
    ids[there] = flat
    logprobs[there] = flat_logprobs
    return ids, logprobs


def _mask(
    ids: NDArray[np.int64], logprobs: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Take out what is no log-probability (null, NaN, −inf and its stand-ins) or has no id; and how many that were."""
    with np.errstate(invalid="ignore"):
        good = (logprobs > SENTINEL) & (ids >= 0)
    if good.all():
        return ids, logprobs, 0
    return np.where(good, ids, -1), np.where(good, logprobs, -np.inf), int(counts.sum() - good.sum())


def _best_first(ids: NDArray[np.int64], logprobs: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ties keep the order in which they were received."""
    if (logprobs[:, 1:] <= logprobs[:, :-1]).all():
        return ids, logprobs
    order = np.argsort(-logprobs, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(logprobs, order, axis=1)


def _check_repeats(ids: NDArray[np.int64]) -> None:
    ordered = np.sort(ids, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        raise Rejected("repeated_ids", f"position {int(twice.argmax())} names the same id more than once")


def _check_mass(logprobs: NDArray[np.float64], token_logprobs: NDArray[np.float64]) -> None:
    with np.errstate(over="ignore"):
        mass = np.fmax(np.exp(logprobs).sum(axis=1), np.exp(token_logprobs))
    above = mass > 1 + MASS_TOLERANCE
    if above.any():
        position = int(above.argmax())
        raise Rejected("mass_above_one", f"the probabilities of position {position} add up to {mass[position]:.6g}")


def _check_counts(counts: NDArray[np.int64], token_logprobs: NDArray[np.float64], k: int, truncated: bool) -> None:
    empty = (counts == 0) & (token_logprobs == 0.0)
    if empty.any():
        position = int(empty.argmax())
        raise Rejected(
            "empty_candidates",
            f"position {position} has log-probability 0 and no candidates, as speculative decoding leaves it",
        )
    short = (counts == 0) if truncated else (counts < k)
    if short.any():
        position = int(short.argmax())
        raise Rejected("too_few_candidates", f"position {position} came with {counts[position]} candidates, not {k}")


def _check_agreement(
    token_ids: NDArray[np.int64],
    token_logprobs: NDArray[np.float64],
    ids: NDArray[np.int64],
    logprobs: NDArray[np.float64],
) -> None:
    """The realised token's own log-probability and the one among the candidates must be the same."""
    same = ids == token_ids[:, None]
    listed = np.where(same, logprobs, -np.inf).max(axis=1, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        apart = same.any(axis=1) & (np.abs(listed - token_logprobs) > _DISAGREEMENT)
    if apart.any():
        position = int(apart.argmax())
        raise Rejected(
            "realised_disagrees",
            f"position {position}: the realised token has log-probability {token_logprobs[position]:.6g}, but "
            f"{listed[position]:.6g} among its candidates",
        )


def _without_extra(
    ids: NDArray[np.int64], logprobs: NDArray[np.float64], realised: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Take the realised token out where it came besides the top k: it is in a list longer than k, behind all others.

    It would be cut off anyway but for masked candidates, whose place it would take.
    """
    if not realised.any():
        return ids, logprobs
    last = (ids >= 0).sum(axis=1, keepdims=True) - 1
    extra = realised & (np.arange(ids.shape[1]) == last)
    return np.where(extra, -1, ids), np.where(extra, -np.inf, logprobs)


def _fit(
    ids: NDArray[np.int64], logprobs: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k best as exactly k columns."""
    if ids.shape[1] >= k:
        return ids[:, :k], logprobs[:, :k]
    shape = (len(ids), k - ids.shape[1])
    return np.hstack([ids, np.full(shape, -1)]), np.hstack([logprobs, np.full(shape, -np.inf)])


def _ranks(received: Received, token_ids: NDArray[np.int64], top_ids: NDArray[np.int64]) -> NDArray[np.int32]:
    """The endpoint's word where it gives one, else the place among the top k; 0 = unknown."""
    if received.token_ranks is not None:
        if any(not 0 <= rank < 2**31 for rank in received.token_ranks):
            raise Rejected("wrong_shape", "the rank of a token does not fit into 31 bits")
        return np.array(received.token_ranks, dtype=np.int32)
    same = top_ids == token_ids[:, None]
    if received.last_uncertain and same.shape[1]:
        same[:, -1] = False
    return np.where(same.any(axis=1), same.argmax(axis=1) + 1 if same.shape[1] else 0, 0).astype(np.int32)
