"""A set of request keys that takes 16 bytes a key: the first half of each sha256, sorted, searched by bisection.

128 bits tell a trillion keys apart; a Python set of the same strings would take ten times the memory.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_HALF = 16
_RECENT = 1 << 16
_DIGIT = np.zeros(256, dtype=np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16, dtype=np.uint8)


class KeySet:
    """Keys of a table: `key in keys`, `len(keys)`, `keys.contains(column)` for many at once."""

    def __init__(self) -> None:
        self._sorted: NDArray[np.uint64] = np.empty((0, 2), dtype=np.uint64)  # (n, high and low), by high then low
        self._recent: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __contains__(self, key: str) -> bool:
        half = bytes.fromhex(key)[:_HALF]
        if half in self._recent:
            return True
        return bool(self._find(np.frombuffer(half, dtype=">u8").astype(np.uint64).reshape(1, 2))[0])

    def add(self, keys: Iterable[str]) -> None:
        """Add keys that are not in the set yet."""
        self._recent.update(bytes.fromhex(key)[:_HALF] for key in keys)
        if len(self._recent) > _RECENT:
            self._settle(np.empty((0, 2), dtype=np.uint64))

    def add_columns(self, columns: Iterable[pa.ChunkedArray]) -> None:
        """Add the keys of whole columns of 64-digit hex strings, which may repeat."""
        parts = [halves(chunk) for column in columns for chunk in column.chunks]
        self._settle(np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.uint64))

    def contains(self, column: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Which keys of a column are there, (n,)."""
        self._settle(np.empty((0, 2), dtype=np.uint64))
        found = [self._find(halves(chunk)) for chunk in column.chunks]
        return np.concatenate(found) if found else np.empty(0, dtype=bool)

    def _settle(self, more: NDArray[np.uint64]) -> None:
        recent = np.frombuffer(b"".join(self._recent), dtype=">u8").astype(np.uint64).reshape(-1, 2)
        together = np.concatenate([self._sorted, recent, more])
        self._recent.clear()
        order = np.lexsort((together[:, 1], together[:, 0]))
        together = together[order]
        new = np.ones(len(together), dtype=bool)
        new[1:] = (together[1:] != together[:-1]).any(axis=1)
        self._sorted = together[new]

    def _find(self, wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
        found = np.zeros(len(wanted), dtype=bool)
        at = np.searchsorted(self._sorted[:, 0], wanted[:, 0])
        # keys that share their first 64 bits lie side by side: step until none does
        while True:
            inside = at < len(self._sorted)
            here = np.zeros(len(wanted), dtype=bool)
            here[inside] = self._sorted[at[inside], 0] == wanted[inside, 0]
            if not here.any():
                return found
            found[here] |= self._sorted[at[here], 1] == wanted[here, 1]
            at = np.where(here, at + 1, len(self._sorted))


def halves(keys: pa.StringArray) -> NDArray[np.uint64]:
    """(n, 2): the first 128 bits of each 64-digit hex key as two numbers. Raises ValueError for other strings."""
    offsets = np.frombuffer(keys.buffers()[1], dtype=np.int32)[keys.offset : keys.offset + len(keys) + 1]
    if len(keys) == 0:
        return np.empty((0, 2), dtype=np.uint64)
    if keys.null_count or (np.diff(offsets) != 64).any():
        raise ValueError("a key is not 64 hexadecimal digits")
    text = np.frombuffer(keys.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 64)
    digits = _DIGIT[text[:, : 2 * _HALF]]
    packed = (digits[:, ::2] << 4) | digits[:, 1::2]
    return np.ascontiguousarray(packed).view(">u8").astype(np.uint64)
