"""How well the windowed permutation shuffles: pure functions of the order, no table is read."""

from __future__ import annotations

import numpy as np

from trainer import order

GROUPS, ROWS, EPOCHS, NEAR = 64, 256, 100, 1024


def quality(windows: tuple[int, ...] = (1, 4, 16, 64)) -> dict[int, tuple[float, float]]:
    """Window → how far an epoch's order still follows the table's.

    The rank correlation of a row's place in the table and in the epoch (mean of its absolute value), and the share of
    neighbours in the table that are read within NEAR rows of each other (a full shuffle: 2 · NEAR / all rows).
    """
    count = np.full(GROUPS, ROWS)
    first_row = np.concatenate([[0], np.cumsum(count)])
    found = {}
    for window in windows:
        correlations, near = [], []
        for epoch in range(EPOCHS):
            groups = order.windows(count, 0, epoch, window)
            rows = np.concatenate(
                [order.rows_of_window(first_row, blocks, 0, epoch, number) for number, blocks in enumerate(groups)]
            )
            place = np.empty(len(rows))
            place[rows] = np.arange(len(rows))
            correlations.append(abs(np.corrcoef(place, np.arange(len(rows)))[0, 1]))
            near.append(np.mean(np.abs(np.diff(place)) < NEAR))
        found[window] = float(np.mean(correlations)), float(np.mean(near))
    return found
