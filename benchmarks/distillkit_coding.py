"""DistillKit's coding written again from its description, for measurement and tests only: the way in.

The way out is storage/distillkit.py; `decode_in_its_steps` takes the steps of DistillKit's own torch code instead.
Their two published settings are here; residual bins and deltas are left out, as both settings do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.distillkit import Coding, powers_of

RECOMMENDED = Coding(262144, 128, 16, "bfloat16", (0, 1, 2, 3, 4, "sqrt"), "float32", (), False, False)
BUDGET = Coding(262144, 50, 1, "bfloat16", (0, 1, "sqrt"), "float32", (), False, False)


def with_k(coding: Coding, k: int) -> Coding:
    """The same setting for another number of candidates."""
    return replace(coding, k=k, exact_k=min(coding.exact_k, k))


def encode(logprobs: NDArray[Any], ids: NDArray[Any], coding: Coding) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(T, k) log-probabilities and ids → (T, bytes) of each."""
    exact = _bytes(logprobs[:, : coding.exact_k], coding.exact_dtype)
    powers = powers_of(coding)
    solved, *_ = np.linalg.lstsq(powers, logprobs[:, coding.exact_k :].T.astype(np.float64), rcond=None)
    return np.concatenate([exact, _bytes(solved.T, coding.term_dtype)], axis=1), pack(ids, coding.id_bits)


def decode_in_its_steps(packed: Any, packed_ids: Any, coding: Coding) -> tuple[Any, Any]:
    """(B, T, bytes) of each → (B, T, k) ids and log-probabilities in the type of the exact ones, as DistillKit does it.

    Its package (compression/bitpack.py, monotonic_logprobs.py) shifts every byte by eight 64-bit positions, weighs the
    bits of a number and sums them, and gives the polynomial as a sum of products.
    """
    import torch  # the coding alone does without

    shifts = torch.arange(7, -1, -1)
    bits = ((packed_ids.unsqueeze(-1) >> shifts) & 1).to(torch.uint8).flatten(-2)[..., : coding.k * coding.id_bits]
    weights = 2 ** torch.arange(coding.id_bits - 1, -1, -1)
    ids = (bits.contiguous().unflatten(-1, (coding.k, coding.id_bits)) * weights).sum(dim=-1).long()
    end = coding.exact_k * 2
    exact = packed[..., :end].contiguous().view(torch.bfloat16)
    factors = packed[..., end:].contiguous().view(torch.float32)
    powers = torch.from_numpy(powers_of(coding)).float()
    rest = torch.sum(powers * factors.unsqueeze(-2), dim=-1)
    return ids, torch.cat([exact, rest.bfloat16()], dim=-1)


def pack(numbers: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Whole numbers most significant bit first, without padding between them."""
    stream = (numbers[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(stream.reshape(len(numbers), -1).astype(np.uint8), axis=1)


def _bytes(values: NDArray[Any], dtype: str) -> NDArray[np.uint8]:
    if dtype == "bfloat16":
        raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)
        return rounded.view(np.uint8).reshape(len(values), -1)
    return np.ascontiguousarray(values, dtype=dtype).view(np.uint8).reshape(len(values), -1)
