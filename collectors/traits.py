"""What the numbers of a few answers show of the endpoint that sent them: pure functions, for the probe."""

import numpy as np
from numpy.typing import NDArray

from collectors.card import LogprobSpace
from collectors.normalise import SENTINEL, Received

_SAME_NATS = 1e-2  # batching and caching move log-probabilities by less


def _values(received: Received) -> NDArray[np.float64]:
    return np.array(received.candidate_logprobs, dtype=np.float64)


def finite(received: Received) -> int:
    """Candidates that have a probability."""
    return int((_values(received) > SENTINEL).sum())


def first_position(received: Received) -> dict[int, float]:
    """Candidates of the first position that have a probability: id → log-probability."""
    count = received.counts[0] if received.counts else 0
    pairs = zip(received.candidate_ids[:count], _values(received)[:count].tolist(), strict=True)
    return {token_id: logprob for token_id, logprob in pairs if token_id >= 0 and logprob > SENTINEL}


def space_of(warm: dict[int, float], cold: dict[int, float]) -> LogprobSpace:
    """Raw when halving the temperature changes nothing, scaled when it doubles all differences."""
    both = sorted(set(warm) & set(cold))
    if len(both) < 3:
        return "unknown"
    x = np.array([warm[token_id] for token_id in both])
    y = np.array([cold[token_id] for token_id in both])
    x, y = x - x.mean(), y - y.mean()
    slope = float((x * y).sum() / max((x * x).sum(), 1e-12))
    return "raw" if abs(slope - 1) < 0.25 else "scaled" if abs(slope - 2) < 0.25 else "unknown"


def best_first(received: Received) -> bool:
    """Whether each list came in falling order."""
    values, at = np.nan_to_num(_values(received), nan=-np.inf), 0
    for count in received.counts:
        if (np.diff(values[at : at + count]) > 0).any():
            return False
        at += count
    return True


def sentinels(seen: list[Received]) -> tuple[str, ...]:
    """What stood for «no probability», as it came."""
    found = set()
    for received in seen:
        for value in (*received.candidate_logprobs, *received.token_logprobs):
            if value is None:
                found.add("null")
            elif value != value:
                found.add("NaN")
            elif value <= SENTINEL:
                found.add(f"{value:.8g}")
    return tuple(sorted(found))


def has_empty_lists(received: Received) -> bool:
    """Whether a token came with log-probability 0.0 and no candidates, as speculative decoding leaves it."""
    return any(
        count == 0 and logprob == 0.0 for count, logprob in zip(received.counts, received.token_logprobs, strict=False)
    )


def same(one: Received, other: Received) -> bool:
    """Whether two answers have the same tokens and, within the noise of batching, the same numbers."""
    if list(one.token_ids) != list(other.token_ids):
        return False
    a, b = _values(one), _values(other)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=_SAME_NATS, equal_nan=True))
