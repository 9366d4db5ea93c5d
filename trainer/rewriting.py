"""Rows in a student's own tokens, for students whose tokenizer is not the one that the labels were made with.

A stream asks twice: for the sizes when it plans its sequences, and for the row itself when it makes a batch. So the
tokens are made again each time, and memory stays flat whatever the table's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.columns import ListColumn


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of R rows; `reason` says why a row cannot be used, "" where it can."""

    slots: NDArray[np.int64]
    """Input positions that the row takes."""
    loss_tokens: NDArray[np.int64]
    reason: NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class RewrittenRow:
    """One row as a student reads it."""

    input_ids: NDArray[np.int64]
    read_from: NDArray[np.int64]
    """[N]: from which input position each loss token is read."""
    labels: dict[str, NDArray[Any]]
    """[N] or [N, K] by the names that a batch has."""


class Rewriter(Protocol):
    """Makes rows again in a student's tokens: a pure function of the row."""

    chunks: ClassVar[bool]
    """Its labels have `chunk_ids` and `chunk_logprobs` (see `chunks.py`), and may have one candidate more than k."""
    digest: str
    """Of what its results depend on."""

    @property
    def columns(self) -> Sequence[str]:
        """What it reads of a row, beside the labels."""

    def sizes(self, table: pa.Table, sequence_length: int) -> Sizes:
        """Of the rows of a row group, which has `columns`."""

    def row(self, columns: Mapping[str, ListColumn], i: int, k: int, slots: int) -> RewrittenRow:
        """Row i of decoded columns, its first `slots` input positions; as many loss tokens as `sizes` told."""
