"""Rows of `classify` as inputs of a classifier: one text, one distribution over the label set.

The label belongs to the whole text, so any tokenizer will do: the student's own makes the input, as it will when the
student is used. A row is read at its last position, which is a place to count it by; models pool as they do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from trainer.columns import ListColumn, list_column
from trainer.rewriting import RewrittenRow, Sizes

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""Texts → the student's token ids, special tokens included."""


class TextRows:
    """A `Rewriter`: the text of a prompt, or where a row has none the text of its messages, encoded by the student.

    name: what distinguishes this encoding from another, for the resume's comparison.
    """

    columns: ClassVar[tuple[str, ...]] = ("prompt", "messages")
    chunks: ClassVar[bool] = False

    def __init__(self, encode: Encode, *, name: str) -> None:
        self._encode = encode
        self.digest = hashlib.sha256(name.encode()).hexdigest()

    def sizes(self, table: pa.Table, sequence_length: int) -> Sizes:
        """One loss token a row; a text that does not fit whole is no text of that label, so it is left out."""
        slots = np.array([len(ids) for ids in self._encode(_texts(table))], dtype=np.int64)
        reason = np.where(slots == 0, "no text", np.where(slots > sequence_length, "longer than sequence_length", ""))
        return Sizes(slots, np.ones(len(slots), dtype=np.int64), reason)

    def row(self, columns: Mapping[str, ListColumn], i: int, k: int, slots: int) -> RewrittenRow:
        """The text's tokens and the row's one distribution."""
        text = columns["prompt"].row(i) if columns["prompt"].row(i).size else columns["messages"].row(i)
        (ids,) = self._encode([text.tobytes().decode()])
        labels = {
            "target_ids": columns["token_ids"].row(i)[:1],
            "target_logprobs": columns["token_logprobs"].row(i)[:1],
            "log_tail": columns["log_tail"].row(i)[:1],
            "top_ids": columns["top_ids"].row(i)[None, :k],
            "top_logprobs": columns["top_logprobs"].row(i)[None, :k],
        }
        return RewrittenRow(np.asarray(ids, dtype=np.int64), np.array([slots - 1]), labels)


def _texts(table: pa.Table) -> list[str]:
    prompts, messages = (list_column(table.column(name)) for name in ("prompt", "messages"))
    chosen = (prompts.row(i) if prompts.row(i).size else messages.row(i) for i in range(table.num_rows))
    return [text.tobytes().decode() for text in chosen]
