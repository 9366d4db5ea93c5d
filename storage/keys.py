"""A set of request keys that takes 16 bytes a key: the first half of each sha256, sorted, searched by bisection.

128 bits tell a trillion keys apart; a Python set of the same strings would take ten times the memory.
"""

from bisect import bisect_left
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Halves = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""The first and the second 64 bits of n keys."""

_RECENT = 1 << 16
_DIGIT = np.zeros(256, dtype=np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16, dtype=np.uint8)


class KeySet:
    """Keys of a table: `key in keys`, `len(keys)`, `keys.contains(column)` for many at once."""

    def __init__(self) -> None:
        self._recent: set[tuple[int, int]] = set()
        self._keep(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64))

    def _keep(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> None:
        self._first, self._second = first, second
        self._bisected = first.data  # a bisection over it makes plain integers, ten times as fast as numpy's

    def __len__(self) -> int:
        return len(self._first) + len(self._recent)

    def __contains__(self, key: str) -> bool:
        first, second = half = _half(key)
        if half in self._recent:
            return True
        at = bisect_left(self._bisected, first)
        while at < len(self._first) and self._bisected[at] == first:
            if self._second[at] == second:
                return True
            at += 1
        return False

    def add(self, keys: Iterable[str]) -> None:
        """Add keys that are not in the set yet."""
        self._recent.update(_half(key) for key in keys)
        if len(self._recent) > _RECENT:
            self._settle([])

    def add_columns(self, columns: Iterable[pa.ChunkedArray]) -> None:
        """Add the keys of whole columns of 64-digit hex strings, which may repeat."""
        self._settle([halves(chunk) for column in columns for chunk in column.chunks])

    def contains(self, column: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Which keys of a column are there, (n,)."""
        self._settle([])
        found = [self._find(halves(chunk)) for chunk in column.chunks]
        return np.concatenate(found) if found else np.empty(0, dtype=bool)

    def _settle(self, more: list[Halves]) -> None:
        if not more and not self._recent:
            return
        recent = np.array(sorted(self._recent), dtype=np.uint64).reshape(-1, 2)
        self._recent.clear()
        first = np.concatenate([self._first, recent[:, 0], *(part[0] for part in more)])
        second = np.concatenate([self._second, recent[:, 1], *(part[1] for part in more)])
        order = np.argsort(first)
        first, second = first[order], second[order]
        if (first[1:] == first[:-1]).any():
            order = np.lexsort((second, first))
            first, second = first[order], second[order]
        new = np.ones(len(first), dtype=bool)
        new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        self._keep(np.ascontiguousarray(first[new]), np.ascontiguousarray(second[new]))

    def _find(self, wanted: Halves) -> NDArray[np.bool_]:
        found = np.zeros(len(wanted[0]), dtype=bool)
        order = np.argsort(wanted[0])  # in order, the search walks through memory once
        first, second = wanted[0][order], wanted[1][order]
        at = np.searchsorted(self._first, first)
        # keys that share their first 64 bits lie side by side: step until none does
        left = np.flatnonzero(at < len(self._first))
        while len(left):
            left = left[self._first[at[left]] == first[left]]
            found[order[left[self._second[at[left]] == second[left]]]] = True
            at[left] += 1
            left = left[at[left] < len(self._first)]
        return found


def _half(key: str) -> tuple[int, int]:
    number = int.from_bytes(bytes.fromhex(key[:32]))
    return number >> 64, number & 0xFFFFFFFFFFFFFFFF


def halves(keys: pa.StringArray) -> Halves:
    """The first 128 bits of each 64-digit hex key, as two numbers (n,) each. Raises ValueError for other strings."""
    if len(keys) == 0:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)
    offsets = np.frombuffer(keys.buffers()[1], dtype=np.int32)[keys.offset : keys.offset + len(keys) + 1]
    if keys.null_count or (np.diff(offsets) != 64).any():
        raise ValueError("a key is not 64 hexadecimal digits")
    text = np.frombuffer(keys.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 64)
    digits = _DIGIT[text[:, :32]]
    packed = np.ascontiguousarray((digits[:, ::2] << 4) | digits[:, 1::2])
    numbers = packed.view(">u8").astype(np.uint64)
    return numbers[:, 0].copy(), numbers[:, 1].copy()
