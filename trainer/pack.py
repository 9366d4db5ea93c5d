"""Rows to sequences of a given length, and the plan of all sequences of a training: pure functions, nothing is read.

Rows are never split: best fit in shuffled order wastes a few percent of the slots and keeps every label's context. No
sequence spans two windows. Sequence i of the plan is the same on every rank, which makes the cursor one integer.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer import order


def best_fit(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Put items into bins of `capacity`, in order, each into the fullest open bin that has room; bins in opening order.

    Every length has to be within 1 … capacity. O(n log n).
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free slots, bin), sorted
    for item, length in enumerate(lengths.tolist()):
        at = bisect_left(room, (length, -1))
        if at == len(room):
            free, number = capacity, len(bins)
            bins.append([])
        else:
            free, number = room.pop(at)
        bins[number].append(item)
        if free > length:
            insort(room, (free - length, number))
    return bins


@dataclass(frozen=True, slots=True)
class Window:
    """Row groups that are read together, and the sequences made of their rows."""

    blocks: NDArray[np.int64]
    packs: list[tuple[int, ...]]
    """The rows of each sequence, which lie in it one after another."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All sequences of a training, in order.

    Args:
        slots: input positions that each usable row takes, [R], within 1 … sequence_length.
        first_row: [G + 1]: block (row group) g holds the usable rows first_row[g] … first_row[g + 1] − 1.
        pack: several rows a sequence; otherwise one.
        repeat: endless, one epoch after another; otherwise one epoch.
    """

    slots: NDArray[np.int64]
    first_row: NDArray[np.int64]
    sequence_length: int
    pack: bool
    seed: int
    window: int
    repeat: bool

    def windows(self, cursor: int) -> Iterator[Window]:
        """What is left from sequence number `cursor` on. Earlier windows are packed again (some µs a row), not read."""
        epoch = passed = 0
        while len(self.slots) and (self.repeat or epoch == 0):
            for window in self.epoch(epoch):
                skipped = min(max(cursor - passed, 0), len(window.packs))
                passed += len(window.packs)
                if skipped < len(window.packs):
                    yield Window(window.blocks, window.packs[skipped:])
            epoch += 1

    def epoch(self, epoch: int) -> Iterator[Window]:
        """The windows of one epoch: each usable row once."""
        rows_of_block = np.diff(self.first_row)
        for number, blocks in enumerate(order.windows(rows_of_block, self.seed, epoch, self.window)):
            rows = order.rows_of_window(self.first_row, blocks, self.seed, epoch, number)
            if self.pack:
                members = best_fit(self.slots[rows], self.sequence_length)
                yield Window(blocks, [tuple(rows[pack].tolist()) for pack in members])
            else:
                yield Window(blocks, [(row,) for row in rows.tolist()])
