"""What must hold of every row, checked on the way in and again by verify.

A row that breaks an invariant is refused here by name, so that a training run need not find it.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.codec import LOSSLESS, list_values
from storage.errors import InvalidRow

if TYPE_CHECKING:
    from storage.rows import Row

KEY = re.compile(r"[0-9a-f]{64}")
MODES = ("generate", "score", "classify", "mask")
SPACES = ("raw", "scaled", "processed", "unknown")
ESTIMATORS = ("top_k", "sampled", "full")
ABOVE_ZERO = 1e-3
"""Engines that compute in bfloat16 return sums slightly above 1; more than this is no log-probability."""


def check_row(row: "Row") -> None:
    """Raise InvalidRow, naming the row and the invariant, when a row may not enter the table."""
    problem = (
        _identity_problem(row) or _licence_problem(row) or (_labels_problem(row) if row.labels is not None else None)
    )
    if problem:
        raise InvalidRow(f"Row {row.key[:12]!r} of prompt {row.prompt_id!r} was not written: {problem}.")


def _identity_problem(row: "Row") -> str | None:
    if not KEY.fullmatch(row.key):
        return "its key is no lower-case hex sha256"
    if row.mode not in MODES or row.logprob_space not in SPACES or row.estimator not in ESTIMATORS:
        return (
            f"mode {row.mode!r}, logprob_space {row.logprob_space!r} or estimator {row.estimator!r} is not a known one"
        )
    if row.collected_at.tzinfo is None:
        return "collected_at has no time zone"
    return None


def _licence_problem(row: "Row") -> str | None:
    if not row.terms:
        return "it names no terms that bind the teacher's output"
    if not row.policy_bundle or not row.decision:
        return "it names no policy bundle and decision that allowed collecting it"
    if row.collect_verdict not in ("allow", "conditional"):
        return f"the verdict on collecting it is {row.collect_verdict!r}"
    return None


def _labels_problem(row: "Row") -> str | None:
    labels = row.labels
    assert labels is not None
    problem = _shape_problem(row) or values_problem(
        labels.token_ids, labels.token_logprobs, labels.top_ids, labels.top_logprobs, labels.log_tail
    )
    if problem is None and labels.k and row.estimator != "sampled":
        return mass_problem(labels.top_logprobs, labels.log_tail, LOSSLESS)
    return problem


def _shape_problem(row: "Row") -> str | None:
    labels = row.labels
    assert labels is not None
    targets, k = len(labels), labels.k
    if row.token_bytes is not None and len(row.token_bytes) != targets:
        return f"token_bytes has {len(row.token_bytes)} entries for {targets} targets"
    if row.label_set is not None and labels.top_ids.size and labels.top_ids.max() >= len(row.label_set):
        return f"top_ids holds {labels.top_ids.max()} for a label_set of {len(row.label_set)}"
    if any(tail.log_sums.shape != (targets,) for tail in row.tail_sums or ()):
        return f"tail_sums are not one number for each of {targets} targets"
    if (row.top_weights is None) != (row.estimator != "sampled"):
        return "top_weights belong to the estimator 'sampled' and to no other"
    shapes = [
        ("token_logprobs", labels.token_logprobs, (targets,)),
        ("token_ranks", labels.token_ranks, (targets,)),
        ("log_tail", labels.log_tail, (targets,)),
        ("target_positions", row.target_positions, (targets,)),
        ("top_ids", labels.top_ids, (targets, k)),
        ("top_logprobs", labels.top_logprobs, (targets, k)),
        ("top_weights", row.top_weights, (targets, k)),
    ]
    for name, array, shape in shapes:
        if array is not None and array.shape != shape:
            return f"{name} has shape {array.shape}, not {shape}"
    return None


def values_problem(
    token_ids: NDArray[Any],
    token_logprobs: NDArray[Any],
    top_ids: NDArray[Any],
    top_logprobs: NDArray[Any],
    log_tail: NDArray[Any],
) -> str | None:
    """The first broken invariant of label values, (T,), (T,), (T, k), (T, k), (T,); None when all hold."""
    for name, ids in {"token_ids": token_ids, "top_ids": top_ids}.items():
        if ids.dtype != np.int32:
            return f"{name} is {ids.dtype}, not int32"
        if ids.size and ids.min() < -1:
            return f"{name} holds an id below −1"
    if np.isnan(top_logprobs).any() or np.isnan(log_tail).any():
        return "top_logprobs or log_tail holds NaN"
    if (np.isneginf(top_logprobs) != (top_ids == -1)).any():
        return "top_logprobs is not −inf exactly where top_ids is −1"
    if (top_logprobs[:, 1:] > top_logprobs[:, :-1]).any():
        return "top_logprobs is not ordered best first"
    if (
        max((float(a.max()) for a in (top_logprobs, log_tail) if a.size), default=0.0) > ABOVE_ZERO
        or (token_logprobs > ABOVE_ZERO).any()
    ):
        return "a log-probability is above 0"
    return None


def mass_problem(top_logprobs: NDArray[Any], log_tail: NDArray[Any], mantissa_bits: int) -> str | None:
    """The first position whose probabilities and tail do not sum to 1 within their rounding; None when all do.

    A log-probability rounded to b mantissa bits has a relative error of 2^−(b+1), so a probability moves by at most
    p·|log p|·2^−(b+1); the tail is a float32. ABOVE_ZERO is what engines of low precision are off by themselves.
    """
    logs = np.where(np.isneginf(top_logprobs), 0.0, top_logprobs).astype(np.float64)
    mass = np.where(np.isneginf(top_logprobs), 0.0, np.exp(logs))
    tail = np.exp(log_tail.astype(np.float64))
    bound = 2.0 ** -(mantissa_bits + 1) * (mass * np.abs(logs)).sum(axis=1) + 2.0**-20 + ABOVE_ZERO
    off = np.abs(mass.sum(axis=1) + tail - 1.0)
    if (off <= bound).all():
        return None
    position = int(np.argmax(off - bound))
    return f"probabilities and tail of position {position} sum to {mass[position].sum() + tail[position]:.4f}, not 1"


def column_problem(part: pa.Table, mantissa_bits: int, vocabulary: Callable[[str], int | None]) -> str | None:
    """The first broken invariant of stored rows, read as whole columns; None when all hold.

    `vocabulary` gives the number of ids that a tokenizer knows by its sha256, None where that is not known.
    """
    if not part.num_rows:
        return None
    ks = part.column("k").to_numpy()
    names = ("token_ids", "token_logprobs", "token_ranks", "log_tail", "top_ids", "top_logprobs")
    columns = {name: list_values(part.column(name)) for name in names}
    lengths = {name: np.diff(offsets) for name, (offsets, _) in columns.items()}
    for name in names[1:]:
        expected = lengths["token_ids"] * (ks if name.startswith("top_") else 1)
        if (lengths[name] != expected).any():
            return (
                f"the length of {name} does not fit in row {int(np.argmax(lengths[name] != expected))} of a row group"
            )
    sampled = np.array([estimator == "sampled" for estimator in part.column("estimator").to_pylist()])
    largest = _largest_ids(part, vocabulary)
    for row in range(part.num_rows):
        one = {name: values[offsets[row] : offsets[row + 1]] for name, (offsets, values) in columns.items()}
        shape = (len(one["token_ids"]), int(ks[row]))
        top_ids, top_logprobs = one["top_ids"].reshape(shape), one["top_logprobs"].reshape(shape)
        problem = values_problem(one["token_ids"], one["token_logprobs"], top_ids, top_logprobs, one["log_tail"])
        if problem is None and ks[row] and not sampled[row]:
            problem = mass_problem(top_logprobs, one["log_tail"], mantissa_bits)
        if problem is None and top_ids.size and top_ids.max() >= largest[row]:
            problem = f"top_ids holds {top_ids.max()}, beyond the vocabulary of {largest[row]}"
        if problem is not None:
            return f"row {part.column('key')[row].as_py()[:12]}: {problem}"
    return None


def _largest_ids(part: pa.Table, vocabulary: Callable[[str], int | None]) -> list[float]:
    limits = []
    for tokenizer, labels in zip(
        part.column("tokenizer_sha256").to_pylist(), part.column("label_set").to_pylist(), strict=True
    ):
        known = len(labels) if labels is not None else vocabulary(tokenizer) if tokenizer is not None else None
        limits.append(float("inf") if known is None else known)
    return limits
