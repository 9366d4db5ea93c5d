"""The head's two passes over a chunk's logits as Triton kernels, for GPUs: one reading each, where torch needs several.

Only what is [C, V] large is done here; candidates are taken out and put back by torch, so every loss is the same
function with and without a GPU. Triton comes with torch's builds for GPUs, and is imported by this module alone.

Letters: C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from trainer.tails import MISSING

triton: Any = import_module("triton")
tl: Any = import_module("triton.language")
BLOCK = 4096
"""Logits that a program holds at once."""


def tail_sums(z_CV: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `head.tail_sums`, of contiguous float32 logits, which it leaves as they are."""
    most_C, sum_C, sum_T_C = (z_CV.new_empty(len(z_CV)) for _ in range(3))
    with torch.cuda.device_of(z_CV):  # type: ignore[no-untyped-call]  # torch ships it untyped
        _sums[(len(z_CV),)](
            z_CV, most_C, sum_C, sum_T_C, z_CV.shape[1], 1 / temperature, MISSING, temperature != 1, BLOCK
        )
    return most_C, sum_C, sum_T_C if temperature != 1 else sum_C


def tail_gradient(
    z_CV: Tensor, lse_C: Tensor, grad_C: Tensor, lse_T_C: Tensor, grad_T_C: Tensor, temperature: float
) -> Tensor:
    """As `head.tail_gradient`, in place of contiguous float32 logits."""
    factors = [number_C.contiguous() for number_C in (lse_C, grad_C, lse_T_C, grad_T_C)]
    vocabulary = z_CV.shape[1]
    with torch.cuda.device_of(z_CV):  # type: ignore[no-untyped-call]  # torch ships it untyped
        _gradient[(len(z_CV), triton.cdiv(vocabulary, BLOCK))](
            z_CV, *factors, vocabulary, 1 / temperature, temperature != 1, BLOCK
        )
    return z_CV


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def _sums(  # type: ignore[no-untyped-def]
    z, most, lse, lse_T, vocabulary, inverse_T, missing, WARM: tl.constexpr, BLOCK: tl.constexpr
):
    """One row a program: BLOCK running maxima and sums (Milakov and Gimelshein 2018, arXiv:1805.02867), then one."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    top = tl.zeros([BLOCK], tl.float32) + missing
    total = tl.zeros([BLOCK], tl.float32)
    warm = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        x = tl.load(z + row * vocabulary + start + at, mask=start + at < vocabulary, other=-float("inf"))
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        if WARM:
            warm = warm * tl.exp((top - higher) * inverse_T) + tl.exp((x - higher) * inverse_T)
        top = higher
    highest = tl.max(top, 0)
    tl.store(most + row, highest)
    tl.store(lse + row, tl.log(tl.sum(total * tl.exp(top - highest), 0)) + highest)
    if WARM:
        tl.store(lse_T + row, tl.log(tl.sum(warm * tl.exp((top - highest) * inverse_T), 0)) + highest * inverse_T)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(  # type: ignore[no-untyped-def]
    z, lse, grad, lse_T, grad_T, vocabulary, inverse_T, WARM: tl.constexpr, BLOCK: tl.constexpr
):
    """One block of one row a program."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocabulary
    x = tl.load(z + row * vocabulary + at, mask=inside, other=-float("inf"))
    found = tl.exp(x - tl.load(lse + row)) * tl.load(grad + row)
    if WARM:
        found += tl.exp(x * inverse_T - tl.load(lse_T + row)) * tl.load(grad_T + row) * inverse_T
    tl.store(z + row * vocabulary + at, found, mask=inside)
