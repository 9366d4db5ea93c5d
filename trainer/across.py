"""Labels of one tokenizer for a student of another: chunks of text whose borders both tokenizations share.

Approximate likelihood matching (Minixhofer et al. 2025, arXiv:2503.20083) offline: it needs the log-probabilities of
the realised tokens and byte offsets, no teacher. Where a chunk is one token on both sides, candidates that stand for
the same bytes keep their probabilities and the others fall into the tail; elsewhere the label is the likelihood of the
whole chunk. What is approximate: both ask for the tokens that happened, not for all ways to spell the same text.

Letters: T teacher tokens of a completion, S student tokens of a row, K candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.columns import ListColumn, list_column
from trainer.rewriting import RewrittenRow, Sizes
from trainer.token_bytes import ids_by_bytes, token_bytes
from trainer.tokenizer import TokenizerDefinition

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where two tokenizations of a completion agree: chunk c is teacher tokens teacher[c] … teacher[c + 1] − 1 between
    its `*_start` and `*_end`, and the student's likewise."""

    teacher_start: Ids
    teacher_end: Ids
    student_start: Ids
    student_end: Ids


@dataclass(frozen=True, slots=True)
class Layout:
    """A row in the student's tokens. `chunks` count the student's tokens from the row's first one."""

    ids: Ids
    first_target: int
    """The first student token that belongs to the completion alone and has a token before it."""
    chunks: Chunks


class AcrossRows:
    """A `Rewriter` between the tokenizers of the labels and of a student.

    Raises TokenizerError when one of them does not keep the bytes of a text.
    """

    columns: ClassVar[tuple[str, ...]] = ("prompt_token_ids", "token_ids")
    label_columns: ClassVar[tuple[str, ...]] = ("token_logprobs", "k", "top_ids", "top_logprobs")
    chunks: ClassVar[bool] = True

    def __init__(self, teacher: TokenizerDefinition, student: TokenizerDefinition) -> None:
        self._pieces, self._own_pieces = token_bytes(teacher), token_bytes(student)
        self._tokenizer = student.build()
        self._tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
        own = ids_by_bytes(student, self._own_pieces)
        taken = set(ids_by_bytes(teacher, self._pieces).values())
        self.id_map = np.full(len(self._pieces), -1, dtype=np.int64)
        for index, piece in enumerate(self._pieces):
            if piece is not None and index in taken:
                self.id_map[index] = own.get(piece, -1)
        self._map_special(teacher, student)
        starts = student.bos is not None and student.bos in student.template_tokens()
        self._bos = [student.vocabulary()[student.bos or ""]] if starts else []
        self._teacher_bos = teacher.vocabulary().get(teacher.bos or "", -1)
        first = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._prefix = b"".join(self._own_pieces[i] or b"" for i in first) == b" a"
        text = json.dumps([teacher.content, student.content], sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    def _map_special(self, teacher: TokenizerDefinition, student: TokenizerDefinition) -> None:
        """Special tokens by their role or their name; those that the student lacks stand for nothing."""
        theirs, ours = teacher.vocabulary(), student.vocabulary()
        special = {added["content"] for added in student.content["added_tokens"] if added["special"]}
        for added in teacher.content["added_tokens"]:
            if added["special"] and added["content"] in special:
                self.id_map[added["id"]] = ours[added["content"]]
        for name, own_name in ((teacher.eos, student.eos), (teacher.bos, student.bos)):
            if name is not None and own_name is not None and self._pieces[theirs[name]] is None:
                self.id_map[theirs[name]] = ours[own_name]

    def sizes(self, table: pa.Table, sequence_length: int) -> Sizes:
        """Every row is laid out once to be counted."""
        prompts, targets = (list_column(table.column(name)) for name in self.columns)
        estimators = table.column("estimator").to_pylist()
        slots, loss_tokens = np.zeros((2, table.num_rows), dtype=np.int64)
        reason = np.full(table.num_rows, "", dtype="U64")
        for i in range(table.num_rows):
            layout = self.layout(prompts.row(i), targets.row(i))
            if layout is None:
                reason[i] = "the student's tokenizer changes the text"
            elif estimators[i] == "sampled":
                reason[i] = "sampled candidates, and another tokenizer"
            else:
                slots[i] = min(len(layout.ids) - 1, sequence_length)
                loss_tokens[i] = slots[i] + 1 - layout.first_target
        return Sizes(slots, loss_tokens, reason)

    def row(self, columns: Mapping[str, ListColumn], i: int, k: int, slots: int) -> RewrittenRow:
        """The row's tokens and labels; a chunk that is cut off at `slots` has no label."""
        layout = self.layout(columns["prompt_token_ids"].row(i), columns["token_ids"].row(i))
        assert layout is not None, "the index leaves such rows out"
        ids, first = layout.ids, layout.first_target
        count = slots + 1 - first
        labels = _empty_labels(ids[first : slots + 1], k)
        label = {name: columns[name].row(i) for name in ("token_ids", "token_logprobs", "log_tail")}
        label |= {name: columns[name].row(i).reshape(-1, k) for name in ("top_ids", "top_logprobs")} if k else {}
        chunks = layout.chunks
        for a, b, c, d in zip(
            chunks.teacher_start,
            chunks.teacher_end,
            chunks.student_start - first,
            chunks.student_end - first,
            strict=True,
        ):
            if c < 0 or d > count:
                continue
            if b - a == 1 and d - c == 1:
                self._one_to_one(labels, label, int(a), int(c), k)
            else:
                logprob = label["token_logprobs"][a:b].sum(dtype=np.float64)
                if not np.isnan(logprob):
                    labels["chunk_ids"][c:d] = c
                    labels["chunk_logprobs"][d - 1] = min(logprob, 0.0)
        return RewrittenRow(ids[:slots], np.arange(first - 1, slots), labels)

    def _one_to_one(self, labels: dict[str, Any], label: Mapping[str, NDArray[Any]], t: int, n: int, k: int) -> None:
        """The distribution of teacher token t for loss token n: candidates of the same bytes, the rest in the tail."""
        realised, logprob = label["token_ids"][t], float(label["token_logprobs"][t])
        target = labels["target_ids"][n]
        labels["target_logprobs"][n] = logprob
        tail = float(np.exp(label["log_tail"][t], dtype=np.float64)) if k else 1.0
        has_target = False
        if k:
            top = label["top_ids"][t]
            mapped = np.where(top >= 0, self.id_map[top], -1)
            mapped[top == realised] = target
            kept = mapped >= 0
            kept[np.flatnonzero(mapped == target)[1:]] = False
            lost = (top >= 0) & ~kept
            tail += float(np.exp(label["top_logprobs"][t][lost], dtype=np.float64).sum())
            labels["top_ids"][n, :k] = np.where(kept, mapped, -1)
            labels["top_logprobs"][n, :k] = np.where(kept, label["top_logprobs"][t], -np.inf)
            has_target = bool((mapped[kept] == target).any())
        if not has_target and not np.isnan(logprob):
            labels["top_ids"][n, k], labels["top_logprobs"][n, k] = target, min(logprob, 0.0)
            tail -= float(np.exp(min(logprob, 0.0)))
        with np.errstate(divide="ignore"):
            labels["log_tail"][n] = np.log(max(tail, 0.0)) if (labels["top_ids"][n] >= 0).any() else 0.0

    def layout(self, prompt: NDArray[Any], targets: NDArray[Any]) -> Layout | None:
        """A row's text in the student's tokens; None when its tokenizer does not give the text back byte by byte.

        Prompt and completion are encoded apart, as they are when the student is used, but for tokenizers that put a
        space before a text. Bytes count from the completion's start; a special token counts as one.
        """
        before = self._items(prompt[1:] if len(prompt) and prompt[0] == self._teacher_bos else prompt)
        after = self._items(targets)
        spans = _Spans(list(self._bos))
        joined = b""
        if self._prefix and before and after:
            end, start = before[-1], after[0]
            if isinstance(end, bytes) and isinstance(start, bytes):
                joined, after[0] = end, end + start
                before.pop()
        if not self._lay(before, spans, whole=True):
            return None
        spans.at_completion(-len(joined))
        if not self._lay(after, spans, whole=False):
            return None
        starts, ends = np.array(spans.start, dtype=np.int64), np.array(spans.end, dtype=np.int64)
        first = max(int(np.searchsorted(starts >= 0, True)), 1)
        return Layout(np.array(spans.ids, dtype=np.int64), first, shared_chunks(self._ends(targets), starts, ends))

    def _items(self, ids: NDArray[Any]) -> list[bytes | int]:
        """Runs of text, and special tokens as the student's ids (−1: it has none)."""
        items: list[bytes | int] = []
        run: list[bytes] = []
        for index in ids.tolist():
            piece = self._pieces[index] if 0 <= index < len(self._pieces) else None
            if piece is not None:
                run.append(piece)
                continue
            if run:
                items.append(b"".join(run))
                run = []
            items.append(int(self.id_map[index]) if 0 <= index < len(self._pieces) else -1)
        return [*items, b"".join(run)] if run else items

    def _lay(self, items: Sequence[bytes | int], spans: _Spans, *, whole: bool) -> bool:
        """Append items to `spans`; False when a text comes back changed. Without `whole`, what is no UTF-8 ends it."""
        for item in items:
            if isinstance(item, int):
                spans.special(item)
                continue
            text = _valid_utf8(item)
            if whole and len(text) < len(item):
                return False
            ids = self._tokenizer.encode(text.decode(), add_special_tokens=False).ids
            pieces = [self._own_pieces[index] for index in ids]
            if any(piece is None for piece in pieces):
                return False
            found = b"".join(piece for piece in pieces if piece is not None)
            added = 1 if self._prefix and found == b" " + text else 0
            if found[added:] != text:
                return False
            spans.text(ids, [len(piece) for piece in pieces if piece is not None], added)
            if len(text) < len(item):
                break
        return True

    def _ends(self, targets: NDArray[Any]) -> Ids:
        """Where each teacher token ends."""
        pieces = (self._pieces[i] if 0 <= i < len(self._pieces) else None for i in targets.tolist())
        return np.cumsum([1 if piece is None else len(piece) for piece in pieces], dtype=np.int64)


class _Spans:
    """The student's tokens of a row and the bytes of the completion that each covers, as they are appended."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.start = [-1] * len(ids)
        self.end = [-1] * len(ids)
        self._at: int | None = None  # None: still in the prompt

    def at_completion(self, offset: int) -> None:
        self._at = offset

    def special(self, index: int) -> None:
        if index >= 0:
            self._append(index, 1)
        elif self._at is not None:
            self._at += 1

    def text(self, ids: Sequence[int], lengths: Sequence[int], added: int) -> None:
        for number, (index, length) in enumerate(zip(ids, lengths, strict=True)):
            self._append(index, length - (added if number == 0 else 0))

    def _append(self, index: int, length: int) -> None:
        self.ids.append(index)
        self.start.append(-1 if self._at is None else self._at)
        if self._at is not None:
            self._at += length
        self.end.append(-1 if self._at is None else self._at)


def shared_chunks(teacher_ends: Ids, start: Ids, end: Ids) -> Chunks:
    """The smallest chunks between borders that both share; those that have tokens on both sides.

    Args:
        teacher_ends: [T]: where each teacher token ends, from 0.
        start, end: [S]: the bytes that each student token covers, negative before the completion. What no student
            token covers (a special token that it lacks) is no part of a chunk.
    """
    borders = np.intersect1d(np.append(0, teacher_ends), np.concatenate([start, end]))
    low, high = borders[:-1], borders[1:]
    teacher_start, teacher_end = (np.searchsorted(teacher_ends, at, side="right") for at in (low, high))
    student_start, student_end = (np.searchsorted(end, at, side="right") for at in (low, high))
    covered = np.bincount(
        np.repeat(np.arange(len(low)), student_end - student_start),
        (end - start)[_ranges(student_start, student_end)],
        minlength=len(low),
    )
    both = (covered == high - low) & (teacher_end > teacher_start)
    return Chunks(teacher_start[both], teacher_end[both], student_start[both], student_end[both])


def _ranges(start: Ids, end: Ids) -> Ids:
    return np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(a, b) for a, b in zip(start, end, strict=True))])


def _valid_utf8(data: bytes) -> bytes:
    """What comes before the first byte that is no UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start]
    return data


def _empty_labels(target_ids: Ids, k: int) -> dict[str, Any]:
    count = len(target_ids)
    return {
        "target_ids": target_ids,
        "target_logprobs": np.full(count, np.nan, dtype=np.float32),
        "top_ids": np.full((count, k + 1), -1, dtype=np.int64),
        "top_logprobs": np.full((count, k + 1), -np.inf, dtype=np.float32),
        "log_tail": np.zeros(count, dtype=np.float32),
        "chunk_ids": np.full(count, -1, dtype=np.int64),
        "chunk_logprobs": np.full(count, np.nan, dtype=np.float32),
    }
