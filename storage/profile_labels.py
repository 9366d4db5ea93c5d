"""What the labels of a table are like: entropy, the mass that k candidates capture, and what another k would cost.

One pass over the rows keeps a few sums a row and a sample of tokens; a smaller k is measured on that sample, a larger
one is extrapolated by a power law and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.codec import Labels, entropy, list_column, round_mantissa
from storage.data_files import writer_options
from storage.schema import SOFT_LABELS

STEPS = (1, 2, 3, 5, 10, 20, 50, 64, 100, 200)
BINS = np.linspace(0.5, 5.0, 19)
"""Edges of entropy, nats, within which tokens are compared: how a teacher spreads its mass at a given uncertainty. A
surer token tells nothing of it: its tail may be of any size."""
SAMPLE_CANDIDATES = 2**21
SHAPES = ("tail", "slope")
CONSIDERED = 10
"""Candidates a token whose ids are kept: what the teacher thought of, many times the words that it wrote."""


@dataclass(frozen=True, slots=True)
class RowMeasures:
    """Of one row with labels: sums over its T targets that have candidates.

    `surprise` is −log p of what was realised, `spread` its variance under the labels, so that for a sample of the
    teacher (surprise − entropy) / √spread is a standard normal. `shapes` is [2, bins + 1, 2]: for log tail mass and for
    the slope of the candidates, by entropy, the sum and the number of tokens.
    """

    number: int
    targets: int
    entropy: float
    surprise: float
    spread: float
    tail: float
    best: float
    hits: float
    shapes: NDArray[np.float64]
    ids: NDArray[np.int32]


def measure(number: int, labels: Labels) -> RowMeasures | None:
    """The sums of one row; None where it has no candidates or no realised tokens."""
    if labels.k < 2 or not len(labels) or bool((labels.top_ids[:, 0] < 0).all()):
        return None
    logs = np.concatenate([labels.top_logprobs, labels.log_tail[:, None]], axis=1).astype(np.float64)
    chance = np.exp(logs)
    finite = np.where(np.isneginf(logs), 0.0, logs)
    bits = entropy(labels.top_logprobs, labels.log_tail)
    hit = labels.top_ids == labels.token_ids[:, None]
    realised = np.where(hit.any(axis=1), finite[np.arange(len(labels)), hit.argmax(axis=1)], finite[:, -1])
    return RowMeasures(
        number=number,
        targets=len(labels),
        entropy=float(bits.sum()),
        surprise=float(-realised.sum()),
        spread=float(((chance * finite**2).sum(axis=1) - bits**2).clip(0).sum()),
        tail=float(chance[:, -1].sum()),
        best=float(chance[:, 0].sum()),
        hits=float(hit[:, 0].sum()),
        shapes=_shapes(labels, bits),
        ids=np.unique(labels.top_ids[:, :CONSIDERED]),
    )


def _shapes(labels: Labels, bits: NDArray[np.float64]) -> NDArray[np.float64]:
    place = np.digitize(bits, BINS)
    last = min(labels.k, 20) - 1
    slope = (labels.top_logprobs[:, 1] - labels.top_logprobs[:, last]).astype(np.float64) / max(np.log(last), 1.0)
    found = np.zeros((len(SHAPES), len(BINS) + 1, 2))
    for shape, values in enumerate((labels.log_tail.astype(np.float64), slope)):
        known = np.isfinite(values) & (place > 0)
        found[shape, :, 0] = np.bincount(place[known], values[known], minlength=len(BINS) + 1)
        found[shape, :, 1] = np.bincount(place[known], minlength=len(BINS) + 1)
    return found


@dataclass(slots=True)
class TokenSample:
    """Candidates of the first rows that were read, up to two million of them."""

    top_ids: list[NDArray[np.int32]]
    top_logprobs: list[NDArray[np.float32]]
    log_tail: list[NDArray[np.float32]]
    size: int = 0

    def add(self, labels: Labels) -> None:
        """Keep the row's candidates while there is room. Rows of another k than the first are left out."""
        if self.size >= SAMPLE_CANDIDATES or not labels.k or (self.top_ids and self.top_ids[0].shape[1] != labels.k):
            return
        self.top_ids.append(labels.top_ids.copy())
        self.top_logprobs.append(labels.top_logprobs.copy())
        self.log_tail.append(labels.log_tail.copy())
        self.size += labels.top_ids.size


@dataclass(frozen=True, slots=True)
class Choice:
    """What one k gives. `captured` is the mean mass of the k best; `entropy` what they and one tail bucket tell, nats.

    `lost` is how much of the stored entropy that leaves unsaid; `overconfident` the mean −log captured: how far from
    the teacher (KL) a student ends that is told the tail is impossible. `bytes` are those of ids and log-probabilities
    of a token on disk. `measured` is False where a larger k was extrapolated.
    """

    k: int
    captured: float
    overconfident: float
    bytes: float
    entropy: float | None
    lost: float | None
    measured: bool


def choices(sample: TokenSample, mantissa_bits: int) -> list[Choice]:
    """The stored k, smaller ones measured on the sample, and two larger ones by extrapolation; smallest first."""
    if not sample.size:
        return []
    logs = np.concatenate(sample.top_logprobs)
    tail = np.concatenate(sample.log_tail)
    k = logs.shape[1]
    whole = float(entropy(logs, tail).mean())
    found = [_choice(sample, logs, tail, size, whole, mantissa_bits) for size in sorted({*STEPS, k}) if size <= k]
    return found + [_extrapolated(found, logs, tail, size) for size in (2 * k, 4 * k) if k >= 5]


def _choice(
    sample: TokenSample,
    logs: NDArray[np.float32],
    tail: NDArray[np.float32],
    k: int,
    whole: float,
    mantissa_bits: int,
) -> Choice:
    rest = np.exp(logs[:, k:].astype(np.float64)).sum(axis=1) + np.exp(tail.astype(np.float64))
    with np.errstate(divide="ignore"):
        told = entropy(logs[:, :k], np.log(rest).astype(np.float32))
    captured = np.exp(logs[:, :k].astype(np.float64)).sum(axis=1)
    return Choice(
        k=k,
        captured=float(captured.mean()),
        overconfident=float(-np.log(captured.clip(1e-9, 1.0)).mean()),
        bytes=_stored_bytes(sample, k, mantissa_bits) / len(logs),
        entropy=float(told.mean()),
        lost=max(whole - float(told.mean()), 0.0),
        measured=True,
    )


def _stored_bytes(sample: TokenSample, k: int, mantissa_bits: int) -> int:
    """Bytes of the sample's ids and log-probabilities at this k, written as the table writes them."""
    schema = pa.schema([SOFT_LABELS.field("top_ids"), SOFT_LABELS.field("top_logprobs")])
    ids = list_column([part[:, :k] for part in sample.top_ids], schema.field(0).type)
    logs = list_column([round_mantissa(p[:, :k], mantissa_bits) for p in sample.top_logprobs], schema.field(1).type)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays([ids, logs], schema=schema), sink, **writer_options(schema))
    return int(sink.getvalue().size)


def _extrapolated(found: Sequence[Choice], logs: NDArray[np.float32], tail: NDArray[np.float32], k: int) -> Choice:
    """A larger k: the mean mass by rank goes on as a power law, fitted on the outer half of the stored ranks.

    Bounded by the mass that is in the tail. Bytes grow by what the last candidates of the stored k cost each.
    """
    stored = logs.shape[1]
    mass = np.exp(logs.astype(np.float64)).mean(axis=0)
    ranks = np.arange(1, stored + 1)
    outer = slice(stored // 2, None)
    slope, height = np.polyfit(np.log(ranks[outer]), np.log(mass[outer].clip(1e-12)), 1)
    more = float(np.exp(height + slope * np.log(np.arange(stored + 1, k + 1))).sum())
    more = min(more, float(np.exp(tail.astype(np.float64)).mean()))
    last, before = found[-1], found[-2]
    each = (last.bytes - before.bytes) / (last.k - before.k)
    captured = last.captured + more
    share = more / max(1 - last.captured, 1e-9)
    return Choice(k, captured, last.overconfident * (1 - share), last.bytes + each * (k - stored), None, None, False)


def as_numbers(measures: Sequence[RowMeasures], name: str) -> NDArray[Any]:
    """One field of all rows as an array."""
    return np.array([getattr(row, name) for row in measures])
