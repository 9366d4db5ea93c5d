"""Row groups to tensors, by Arrow buffers: no Python object per number.

Reads whole row groups, then copies the labels of the rows that a batch needs, once; the price is that every rank
decodes the labels of all ranks. The one place where targets are shifted: a causal student's position n − 1 predicts
token n.

Letters: N loss tokens, K candidates, B sequences, S positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.columns import ListColumn, Pages, list_column, tail_sums_at
from trainer.errors import StreamRefused
from trainer.index import READ_ERRORS, RowIndex, open_parquet
from trainer.rewriting import Rewriter

COLUMNS = ["prompt_token_ids", "token_ids", "token_logprobs", "top_ids", "top_logprobs", "log_tail"]

WIDE_COLUMNS = ("top_ids", "top_logprobs")


class Labels(dict[int, dict[str, ListColumn]]):
    """Decoded row groups of a window, by block number; a damaged block is absent.

    The candidates lie in `memory`, which gets its pages back when the window is no longer used.
    """

    def __init__(self, memory: Pages) -> None:
        super().__init__()
        self._memory = memory
        self._taken: list[NDArray[np.uint8]] = []

    def keep(self, column: ListColumn) -> ListColumn:
        """The same column in memory of the window."""
        page, values = self._memory.copy(column.values)
        self._taken.append(page)
        return replace(column, values=values)

    def __del__(self) -> None:
        self._memory.free += self._taken


def read_blocks(
    index: RowIndex, blocks: Sequence[int], columns: Sequence[str], memory: Pages, temperature: float = 1.0
) -> Labels:
    """Decode some columns of some row groups; of `tail_sums` those at `temperature`.

    Raises RowGroupLost when more of the table is unreadable than was allowed.
    """
    labels, path = Labels(memory), None
    with ExitStack() as opened:
        for number in sorted(blocks):  # so that those of one file follow one another
            block = index.blocks[number]
            try:
                if block.path != path:
                    opened.close()
                    parquet, path = opened.enter_context(open_parquet(block.path)), block.path
                table = parquet.read_row_group(block.group, columns=list(columns))
            except READ_ERRORS as error:
                path = None
                index.damage.add(str(block), int(index.first_row[number + 1] - index.first_row[number]), error)
                continue
            found = {
                name: tail_sums_at(table.column(name), temperature)
                if name == "tail_sums"
                else list_column(table.column(name))
                for name in columns
            }
            labels[number] = found | {name: labels.keep(found[name]) for name in WIDE_COLUMNS}
    return labels


@dataclass(frozen=True, slots=True)
class Assembler:
    """Makes batches of decoded rows.

    Args:
        id_map: teacher id → student id, −1 = not in the student's vocabulary: such a candidate falls into the tail,
            such a realised token is no target.
        unknown_id: the student's id for an input token that it does not have; without one such a token is refused.
        source_weights: what a loss token counts for by its row's prompt_source; 1 for sources not named.
        rewriter: makes rows again in a student's own tokens; such rows are not mapped by `id_map`.
        temperature: other than 1, batches have `tail_sum`, and candidates that fall into the tail are added to it.
        width: positions of every sequence; None: as many as the longest of the global batch takes.
    """

    index: RowIndex
    id_map: NDArray[np.int64] | None
    unknown_id: int | None
    source_weights: Mapping[str, float]
    width: int | None
    temperature: float = 1.0
    rewriter: Rewriter | None = None
    memory: Pages = field(default_factory=Pages)

    def read(self, blocks: Sequence[int]) -> Labels:
        """Decode what batches need of some row groups."""
        index, warm = self.index, self.temperature != 1
        optional = {"target_positions": index.masked.any(), "top_weights": index.sampled.any(), "tail_sums": warm}
        columns = COLUMNS + [name for name, needed in optional.items() if needed]
        columns += [name for name in (self.rewriter.columns if self.rewriter else ()) if name not in columns]
        return read_blocks(index, blocks, columns, self.memory, self.temperature)

    def batch(self, packs: Sequence[tuple[tuple[int, ...], Labels]], share: slice) -> dict[str, Tensor]:
        """The tensors of one rank's share of a global batch; their width and K depend on the global batch alone.

        Raises StreamRefused when an input token is not in the student's vocabulary and there is no `unknown_id`.
        """
        index = self.index
        everything = np.concatenate([rows for rows, _ in packs])
        width = self.width or int(index.slots[everything].max())
        k = max(int(index.k[everything].max()), 1) + (1 if self.rewriter and self.rewriter.chunks else 0)
        mine = packs[share]
        placed = [place for place in _places(index, mine) if place.columns is not None]
        out = _empty_batch(len(mine), width, sum(place.loss_tokens for place in placed), k)
        if self.rewriter is not None or any(place.k != k for place in placed):
            out["top_ids"].fill(-1)
            out["top_logprobs"].fill(-np.inf)
        first = 0
        if index.sampled.any():
            out["top_weights"] = np.zeros_like(out["top_logprobs"])
        if self.temperature != 1:
            out["tail_sum"] = np.zeros_like(out["log_tail"])
        if self.rewriter is not None and self.rewriter.chunks:
            out["chunk_ids"] = np.full_like(out["target_ids"], -1)
            out["chunk_logprobs"] = np.full_like(out["target_logprobs"], np.nan)
        for place in placed:
            if self.rewriter is None:
                first = _fill(out, index, place, first)
            else:
                first = _fill_rewritten(out, index, place, first, self.rewriter)
        weight_of = np.array([self.source_weights.get(source, 1.0) for source in index.sources], dtype=np.float32)
        rows = np.array([place.row for place in placed], dtype=np.int64)
        out["weight"] = np.repeat(weight_of[index.source[rows]], index.loss_tokens[rows])
        out["index_row"] = np.repeat(rows, index.loss_tokens[rows])
        if self.rewriter is None:
            self._to_student_ids(out)
        no_target = np.flatnonzero(out["target_ids"] < 0)
        out["weight"][no_target[(out["top_ids"][no_target] < 0).all(1)]] = 0
        out["rows"], out["tokens"] = np.array(len(rows)), np.array(first)
        return {name: torch.from_numpy(array) for name, array in out.items()}

    def _to_student_ids(self, out: dict[str, NDArray[Any]]) -> None:
        if self.id_map is not None:
            lost_NK = out["top_ids"] >= 0
            student_id = np.append(self.id_map, -1)  # what −1 and ids past the map's end are read from
            for name in ("input_ids", "target_ids", "top_ids"):
                out[name] = student_id[np.minimum(out[name], len(self.id_map))].astype(out[name].dtype)
            lost_NK &= out["top_ids"] < 0
            out["log_tail"] = _with_lost(out["log_tail"], out["top_logprobs"], lost_NK)
            if self.temperature != 1:
                out["tail_sum"] = _with_lost(out["tail_sum"], out["top_logprobs"] / self.temperature, lost_NK)
            out["top_logprobs"][lost_NK] = -np.inf
        out["input_ids"][out["document_ids"] == 0] = 0  # the teacher's token 0 may be none of the student's
        unknown_BS = out["input_ids"] < 0
        if unknown_BS.any():
            if self.unknown_id is None:
                raise StreamRefused(
                    f"{int(unknown_BS.sum())} input tokens of a batch are not in the student's vocabulary: give the "
                    "student an unknown token, or keep all ids that occur when its vocabulary is trimmed"
                )
            out["input_ids"][unknown_BS] = self.unknown_id


class _Place(NamedTuple):
    """A row, where it lies in the batch, and its decoded row group (None where that is damaged)."""

    columns: Any
    row: int
    sequence: int
    slot: int
    document: int
    i: int
    """Which of its row group."""
    prompt: int
    slots: int
    skipped: int
    loss_tokens: int
    k: int


def _places(index: RowIndex, packs: Sequence[tuple[tuple[int, ...], Labels]]) -> Iterator[_Place]:
    rows_R = np.array([row for rows, _ in packs for row in rows], dtype=np.int64)
    blocks = iter((np.searchsorted(index.first_row, rows_R, side="right") - 1).tolist())
    numbers = (index.row_in_block, index.prompt_length, index.slots, index.first_target, index.loss_tokens, index.k)
    facts = zip(*(column[rows_R].tolist() for column in numbers), strict=True)
    for sequence, (rows, labels) in enumerate(packs):
        slot = 0
        for document, row in enumerate(rows, 1):
            fact = next(facts)
            yield _Place(labels.get(next(blocks)), row, sequence, slot, document, *fact)
            slot += fact[2]


def _with_lost(log_sum_N: NDArray[Any], log_terms_NK: NDArray[Any], lost_NK: NDArray[np.bool_]) -> NDArray[np.float32]:
    """log(exp(log_sum) + Σ exp of the terms that are lost), in double."""
    lost_N = np.where(lost_NK, np.exp(log_terms_NK, dtype=np.float64), 0).sum(1)
    with np.errstate(divide="ignore"):
        return np.asarray(np.logaddexp(log_sum_N, np.log(lost_N)), dtype=np.float32)


def _empty_batch(sequences: int, width: int, count: int, k: int) -> dict[str, NDArray[Any]]:
    return {
        "input_ids": np.zeros((sequences, width), dtype=np.int64),
        "position_ids": np.zeros((sequences, width), dtype=np.int64),
        "document_ids": np.zeros((sequences, width), dtype=np.int64),
        "loss_index": np.empty(count, dtype=np.int64),
        "target_ids": np.empty(count, dtype=np.int64),
        "target_logprobs": np.empty(count, dtype=np.float32),
        "top_ids": np.empty((count, k), dtype=np.int32),
        "top_logprobs": np.empty((count, k), dtype=np.float32),
        "log_tail": np.empty(count, dtype=np.float32),
        "from_teacher": np.empty(count, dtype=bool),
    }


def _fill_rewritten(
    out: dict[str, NDArray[Any]], index: RowIndex, place: _Place, first: int, rewriter: Rewriter
) -> int:
    """As `_fill`, for a row that is made again in the student's tokens."""
    slots, count = place.slots, place.loss_tokens
    made = rewriter.row(place.columns, place.i, place.k, slots)
    here = (place.sequence, slice(place.slot, place.slot + slots))
    out["input_ids"][here], out["position_ids"][here] = made.input_ids, np.arange(slots)
    out["document_ids"][here] = place.document
    targets = slice(first, first + count)
    out["loss_index"][targets] = place.sequence * out["input_ids"].shape[1] + place.slot + made.read_from
    for name, values in made.labels.items():
        if values.ndim == 2:
            out[name][targets, : values.shape[1]] = values
        else:
            out[name][targets] = values
    chunk_ids = made.labels.get("chunk_ids")
    if chunk_ids is not None:  # a number in the batch: that of the row's first loss token, and on
        out["chunk_ids"][targets] = np.where(chunk_ids >= 0, chunk_ids + first, -1)
    out["from_teacher"][targets] = index.from_teacher[place.row]
    return first + count


def _fill(out: dict[str, NDArray[Any]], index: RowIndex, place: _Place, first: int) -> int:
    """Copy one row into the batch, its loss tokens from number `first` on; → the number after them."""
    columns, row, sequence, slot, document, i, prompt, slots, skipped, count, k = place
    width = out["input_ids"].shape[1]
    tokens, end = columns["token_ids"].row(i), slot + slots
    out["input_ids"][sequence, slot : slot + prompt] = columns["prompt_token_ids"].row(i)[:slots]
    out["input_ids"][sequence, slot + prompt : end] = tokens[: slots - prompt]
    out["position_ids"][sequence, slot:end] = np.arange(slots)
    out["document_ids"][sequence, slot:end] = document

    start = sequence * width + slot
    targets, labels = slice(first, first + count), slice(skipped, skipped + count)
    if index.masked[row]:
        out["loss_index"][targets] = columns["target_positions"].row(i) + start
    else:  # the shift: token n is read at n − 1
        start += prompt + skipped - 1
        out["loss_index"][targets] = np.arange(start, start + count)
    out["target_ids"][targets] = tokens[labels]
    out["target_logprobs"][targets] = columns["token_logprobs"].row(i)[labels]
    out["log_tail"][targets] = columns["log_tail"].row(i)[labels] if k else 0.0
    out["from_teacher"][targets] = index.from_teacher[row]
    if k:
        for name in ("top_ids", "top_logprobs"):
            out[name][targets, :k] = columns[name].row(i).reshape(-1, k)[labels]
        if index.sampled[row]:
            out["top_weights"][targets, :k] = columns["top_weights"].row(i).reshape(-1, k)[labels]
        if "tail_sum" in out:
            out["tail_sum"][targets] = columns["tail_sums"].row(i)[labels]
    return first + count
