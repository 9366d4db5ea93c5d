"""DistillKit's coding of top-k log-probabilities, read only: bit-packed ids, exact values, a polynomial, residuals.

The layout follows DistillKit's own `DistributionQuantizationConfig` (Arcee AI); the code is ours. What it gives is an
approximation: callers sort it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import ForeignDataError

_WIDTH = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True)
class Coding:
    """What compression_config.yaml says, as far as reading needs it. `residual_bins`: (scale type, bits, elements)."""

    vocabulary: int
    k: int
    exact_k: int
    exact_dtype: str
    terms: tuple[int | str, ...]
    term_dtype: str
    residual_bins: tuple[tuple[str, int, int], ...]
    delta_encoding: bool
    normalize_t: bool

    @classmethod
    def read(cls, config: Any) -> Coding:
        """From the parsed file; raises ForeignDataError when it is not one of DistillKit's current format."""
        try:
            bins = tuple(
                (b["scale_dtype"], int(b["element_bits"]), int(b["num_elements"])) for b in config["residual_bins"]
            )
            terms = tuple(t if t in ("sqrt", "exp") else int(t) for t in config.get("polynomial_terms") or ())
            coding = cls(
                vocabulary=int(config["d"]),
                k=int(config["k"]),
                exact_k=int(config["exact_k"]),
                exact_dtype=config.get("exact_dtype", "float32"),
                terms=terms,
                term_dtype=config.get("term_dtype", "float32"),
                residual_bins=bins,
                delta_encoding=bool(config.get("delta_encoding", True)),
                normalize_t=bool(config.get("normalize_t", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ForeignDataError(
                f"compression_config.yaml is not DistillKit's current format ({error!r})."
            ) from error
        if any(dtype not in _WIDTH for dtype in (coding.exact_dtype, coding.term_dtype, *(b[0] for b in bins))):
            raise ForeignDataError("compression_config.yaml names a number type that DistillKit does not have.")
        return coding

    @property
    def id_bits(self) -> int:
        """Bits of one packed id."""
        return math.ceil(math.log2(self.vocabulary))

    @property
    def widths(self) -> tuple[int, int]:
        """Bytes of one position: log-probabilities, ids."""
        logprobs = self.exact_k * _WIDTH[self.exact_dtype] + len(self.terms) * _WIDTH[self.term_dtype]
        logprobs += sum(_WIDTH[dtype] + (bits * count + 7) // 8 for dtype, bits, count in self.residual_bins)
        return logprobs, (self.k * self.id_bits + 7) // 8


def decode(
    packed: NDArray[np.uint8], packed_ids: NDArray[np.uint8], coding: Coding
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(T, bytes) of log-probabilities and of ids → (T, k) float32 log-probabilities and (T, k) int32 ids."""
    if (packed.shape[-1], packed_ids.shape[-1]) != coding.widths:
        raise ForeignDataError(
            f"A position takes {packed.shape[-1]} + {packed_ids.shape[-1]} bytes, not {coding.widths[0]} + "
            f"{coding.widths[1]} as compression_config.yaml says: that file belongs to other data."
        )
    at = coding.exact_k * _WIDTH[coding.exact_dtype]
    exact = _floats(packed[:, :at], coding.exact_dtype)
    approximate = np.zeros((len(packed), coding.k - coding.exact_k))
    if coding.terms:
        end = at + len(coding.terms) * _WIDTH[coding.term_dtype]
        approximate += _floats(packed[:, at:end], coding.term_dtype) @ powers_of(coding).T
        at = end
    first = 0
    for dtype, bits, count in coding.residual_bins:
        scale = _floats(packed[:, at : at + _WIDTH[dtype]], dtype)
        at += _WIDTH[dtype]
        width = (bits * count + 7) // 8
        steps = _integers(packed[:, at : at + width], bits, count).astype(np.float64)
        approximate[:, first : first + count] += scale * (steps * 2 - 1 if bits == 1 else steps - 2 ** (bits - 1))
        at, first = at + width, first + count
    logprobs = np.concatenate([exact, approximate], axis=1)
    if coding.delta_encoding:
        logprobs = np.cumsum(logprobs, axis=1)
    return logprobs.astype(np.float32), _integers(packed_ids, coding.id_bits, coding.k).astype(np.int32)


def powers_of(coding: Coding) -> NDArray[np.float64]:
    """(k − exact_k, terms): the functions whose sum approximates the log-probabilities after the exact ones."""
    count = coding.k - coding.exact_k
    t = np.linspace(0, 1, count) if coding.normalize_t else np.arange(count, dtype=np.float64)
    return np.stack([getattr(np, term)(t) if isinstance(term, str) else t**term for term in coding.terms], axis=1)


def _floats(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float64]:
    raw = np.ascontiguousarray(raw)
    if dtype == "bfloat16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view(f"<f{_WIDTH[dtype]}").astype(np.float64)


def _integers(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """Most significant bit first, without padding between numbers."""
    stream = np.unpackbits(raw, axis=1)[:, : bits * count].reshape(len(raw), count, bits)
    return stream @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
