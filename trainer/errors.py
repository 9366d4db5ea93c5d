"""Errors of the trainer room. Each docstring says when it is raised; each message says what to do next.

TrainError
 ├── LossRefused      a loss that the stored labels cannot support
 ├── StreamRefused    a stream that would not be the one asked for
 └── RowGroupLost     more of the table is unreadable than was allowed
"""

from __future__ import annotations


class TrainError(Exception):
    """Training cannot go on."""

    exit_code: int = 1


class LossRefused(TrainError):
    """The stored labels cannot support this divergence, tail or temperature."""

    exit_code = 2


class StreamRefused(TrainError):
    """A setting or a saved state does not fit the table, or the table does not fit the student."""

    exit_code = 2


class RowGroupLost(TrainError):
    """A larger share of the table is unreadable than the caller allowed."""
