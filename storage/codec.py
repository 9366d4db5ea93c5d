"""Labels as numpy arrays, and those arrays as Arrow list columns, without a Python list in between.

Log-probabilities stay plain float32, so that SQL reads them; rounding their mantissa makes them compress. That is a
relative error in the log-probability, finest where the probability is large, which keeps the tail mass right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LOSSLESS = 23
"""Explicit mantissa bits of a float32: rounding to this many changes nothing."""
MANTISSA_BITS = 7
"""The default: 150 bytes a token at k = 64 and 51 at k = 20 (ids and log-probabilities of a real teacher) for a mean KL
error of 5.5e-6 nats; a bit more costs 12 bytes at k = 64 and divides the error by four (benchmarks/RESULTS.md)."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Soft labels of one sequence, T targets with k candidates each: `top_*[i]` is the distribution of `token_ids[i]`.

    Shapes: T for the first three and `log_tail`, (T, k) for `top_*`. Natural logarithms.
    """

    token_ids: NDArray[np.int32]
    token_logprobs: NDArray[np.float32]  # NaN = unknown
    token_ranks: NDArray[np.int32]  # 1 = the most likely token, 0 = unknown
    top_ids: NDArray[np.int32]  # best first, −1 = missing
    top_logprobs: NDArray[np.float32]  # −inf exactly where the id is −1
    log_tail: NDArray[np.float32]  # log of the mass outside the top k, −inf when there is none

    @property
    def k(self) -> int:
        """Candidates per position."""
        return int(self.top_ids.shape[1])

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])


def log_tail(top_logprobs: NDArray[Any]) -> NDArray[np.float32]:
    """Log of the mass outside the top k: (T, k) log-probabilities in double → (T,). No mass left gives −inf.

    To be computed when the labels are collected: from rounded values a tail of 1e-4 may come back negative.
    """
    mass = np.exp(np.asarray(top_logprobs, dtype=np.float64)).sum(axis=-1)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log1p(-np.minimum(mass, 1.0)), dtype=np.float32)


def round_mantissa(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Round to `bits` explicit mantissa bits, half to even; infinities and NaN stay. Relative error ≤ 2^−(bits+1).

    Raises ValueError when bits is not within 1 … 23.
    """
    if not 1 <= bits <= LOSSLESS:
        raise ValueError(f"mantissa bits must be within 1 and {LOSSLESS}, not {bits}")
    if bits == LOSSLESS:
        return values
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    dropped = np.uint32(LOSSLESS - bits)
    half = np.uint32((1 << (LOSSLESS - bits - 1)) - 1)
    rounded = (raw + half + ((raw >> dropped) & np.uint32(1))) & ~np.uint32((1 << (LOSSLESS - bits)) - 1)
    return np.where(np.isfinite(values), rounded.view(np.float32), values).astype(np.float32, copy=False)


def entropy(top_logprobs: NDArray[np.float32], log_tail_: NDArray[np.float32]) -> NDArray[np.float64]:
    """Entropy in nats per position, (T, k) and (T,) → (T,); the tail counts as one bucket, so this is a lower bound."""
    logs = np.concatenate([top_logprobs, log_tail_[:, None]], axis=1).astype(np.float64)
    terms = np.where(np.isneginf(logs), 0.0, np.exp(logs) * np.where(np.isneginf(logs), 0.0, logs))
    return np.asarray(-terms.sum(axis=1))


def list_column(arrays: Sequence[NDArray[Any] | None], type_: pa.ListType) -> pa.ListArray:
    """One list per array (flattened, position-major); None becomes null. Values are copied once, into one buffer.

    Raises ValueError past 2^31 values, which is all that one Arrow list column holds.
    """
    lengths = np.fromiter((0 if a is None else a.size for a in arrays), dtype=np.int64, count=len(arrays))
    if int(lengths.sum()) >= 2**31:
        raise ValueError("more than 2^31 values in one column: write fewer rows at once")
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    filled = [a.reshape(-1) for a in arrays if a is not None and a.size]
    dtype = type_.value_type.to_pandas_dtype()
    values = np.concatenate(filled).astype(dtype, copy=False) if filled else np.empty(0, dtype=dtype)
    null = np.fromiter((a is None for a in arrays), dtype=bool, count=len(arrays))
    mask = pa.array(null) if null.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type_.value_type), type=type_, mask=mask)


def list_values(column: pa.ListArray | pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Offsets (n + 1) and flat values of a list column, the values without a copy where the column is one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks keeps several chunks only past 2^31 values
        raise ValueError("a list column of more than 2^31 values must be read in batches")
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets, array.values.to_numpy(zero_copy_only=False)


def labels_from_arrow(batch: pa.RecordBatch | pa.Table) -> list[Labels | None]:
    """The Labels of each row of soft_labels, as views of the columns; None where a row holds text without token ids."""
    names = ("token_ids", "token_logprobs", "token_ranks", "top_ids", "top_logprobs", "log_tail")
    columns = {name: list_values(batch.column(name)) for name in names}
    known = batch.column("token_ids").is_valid().to_numpy(zero_copy_only=False)
    ks = batch.column("k").to_numpy()
    return [_row(columns, i, int(ks[i])) if known[i] else None for i in range(batch.num_rows)]


def _row(columns: dict[str, tuple[NDArray[np.int64], NDArray[Any]]], i: int, k: int) -> Labels:
    part = {name: values[offsets[i] : offsets[i + 1]] for name, (offsets, values) in columns.items()}
    shape = (part["token_ids"].size, k)
    part["top_ids"] = part["top_ids"].reshape(shape)
    part["top_logprobs"] = part["top_logprobs"].reshape(shape)
    return Labels(**part)
