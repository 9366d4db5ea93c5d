"""Which rows, and in which order: pure functions of (table version, row filter, holdout, seed, epoch, window).

Every order is an argsort of keyed 64-bit hashes, so it is the same on every machine and under every version of numpy.
Row groups are permuted over the whole table and rows within a window of row groups: reads stay whole row groups, which
object storage and Parquet want. The price: two rows of one row group always fall into the same window, so the shuffle
is coarser than a full one unless the window covers the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

HOLDOUT_KEY = b"potstill holdout 1"
"""Fixed, not the seed: a prompt stays on its side whatever the seed, and when the table grows."""
LEAST_ROWS = 1024
"""A window of small row groups takes more of them, until it has this many rows."""


def derived_key(seed: int, *parts: int | str) -> np.uint64:
    """64 bits that depend on the seed and on what is to be ordered."""
    text = ":".join([str(seed), *map(str, parts)])
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def permutation(count: int, key: np.uint64) -> NDArray[np.int64]:
    """A permutation of range(count): the argsort of splitmix64(index + key) (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        x = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) + key
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable").astype(np.int64)


def in_holdout(prompt_ids: Iterable[str], share: float) -> NDArray[np.bool_]:
    """Whether each prompt is held out: its keyed hash, as a fraction of 2^64, lies below `share`.

    All samples of a prompt are on one side, and a larger share holds out a superset.
    """
    limit = int(share * 2**64)
    digests = (hashlib.blake2b(text.encode(), digest_size=8, key=HOLDOUT_KEY).digest() for text in prompt_ids)
    return np.fromiter((int.from_bytes(digest, "little") < limit for digest in digests), dtype=bool)


def windows(rows_of_block: NDArray[np.int64], seed: int, epoch: int, window: int) -> list[NDArray[np.int64]]:
    """The blocks (row groups) of each window of an epoch, in order.

    Args:
        rows_of_block: usable rows in each block, [G]; empty blocks are skipped.
        window: least number of blocks in a window (the last one may have fewer).
    """
    order = permutation(len(rows_of_block), derived_key(seed, epoch, "blocks"))
    order = order[rows_of_block[order] > 0]
    result, start, rows = [], 0, 0
    for position, block in enumerate(order):
        rows += int(rows_of_block[block])
        if position + 1 - start >= window and rows >= LEAST_ROWS:
            result.append(order[start : position + 1])
            start, rows = position + 1, 0
    if start < len(order):
        result.append(order[start:])
    return result


def rows_of_window(
    first_row: NDArray[np.int64], blocks: NDArray[np.int64], seed: int, epoch: int, number: int
) -> NDArray[np.int64]:
    """The rows of a window, shuffled.

    Args:
        first_row: [G + 1]: block g holds the rows first_row[g] … first_row[g + 1] − 1.
        number: which window of the epoch.
    """
    rows = np.concatenate([np.arange(first_row[block], first_row[block + 1]) for block in blocks])
    return rows[permutation(len(rows), derived_key(seed, epoch, "rows", number))]


def share_of(count: int, rank: int, world: int) -> slice:
    """Which of the `count` sequences of a global batch are rank's: contiguous, sizes differ by at most one.

    Joined in the order of the ranks, the shares are the global batch, whatever the world size.
    """
    return slice(count * rank // world, count * (rank + 1) // world)
