"""The rows of a table version that a student can learn from: one line of numbers each.

Read once from the small columns and the token ids, never from the labels; about 70 bytes a row are kept. Rows that
cannot be used are counted by reason, and row groups that cannot be read are named, so that nothing is left out unsaid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.schema import is_soft_labels
from trainer.errors import RowGroupLost, StreamRefused
from trainer.order import in_holdout
from trainer.rewriting import Rewriter

SMALL_COLUMNS = ["prompt_id", "mode", "k", "logprob_space", "estimator", "prompt_source", "sampling", "label_set"]
READ_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)
INDEX_TYPES: dict[str, Any] = {
    "row_in_block": np.int64,
    "prompt_length": np.int64,
    "slots": np.int64,
    "first_target": np.int64,
    "loss_tokens": np.int64,
    "k": np.int64,
    "masked": bool,
    "from_teacher": bool,
    "sampled": bool,
    "source": object,
}
MODES = ("generate", "score", "mask")
"""Modes of rows whose labels are over the vocabulary; those of `classify` are over its label set."""
LENGTH_COLUMNS = ["prompt_token_ids", "token_ids", "target_positions"]


class DataFile(Protocol):
    """What the index needs of a data file: `storage.table.DataFile` is one."""

    @property
    def path(self) -> Path: ...
    @property
    def rows(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Block:
    """A row group."""

    path: Path
    group: int

    def __str__(self) -> str:
        return f"row group {self.group} of {self.path.name}"


@dataclass(frozen=True, slots=True)
class RowIndex:
    """One entry per usable row, in table order; R rows in G blocks."""

    blocks: tuple[Block, ...]
    first_row: NDArray[np.int64]
    """[G + 1]: block g holds rows first_row[g] … first_row[g + 1] − 1."""
    row_in_block: NDArray[np.int64]
    prompt_length: NDArray[np.int64]
    slots: NDArray[np.int64]
    """Input positions that the row takes."""
    first_target: NDArray[np.int64]
    """1 where the first token has nothing before it to be read from, else 0."""
    loss_tokens: NDArray[np.int64]
    k: NDArray[np.int64]
    masked: NDArray[np.bool_]
    """The row has target positions: its targets are read where they stand, not one before."""
    from_teacher: NDArray[np.bool_]
    """Its tokens were drawn from the labelled distribution itself: generated at T = 1, nothing cut off."""
    sampled: NDArray[np.bool_]
    """Its candidates were drawn with replacement, and have weights."""
    source: NDArray[np.int64]
    """Which of `sources`."""
    sources: tuple[str, ...]
    left_out: dict[str, int]
    """Rows that cannot be used, by reason."""
    damage: Damage
    """Row groups that could not be read, also those found only when their labels are."""

    def __len__(self) -> int:
        return len(self.k)


def build_index(
    files: Sequence[DataFile],
    *,
    sequence_length: int,
    holdout: float,
    held_out: bool,
    left_out_keys: Set[str] = frozenset(),
    temperature: float = 1.0,
    quarantine: float = 0.0,
    modes: Sequence[str] = MODES,
    rewriter: Rewriter | None = None,
) -> RowIndex:
    """Index the usable rows of `files` on one side of the holdout.

    A row longer than `sequence_length` keeps what fits of its completion; one whose prompt alone is longer is left out.
    At a `temperature` other than 1, rows with candidates need tail sums stored for it.
    Raises RowGroupLost when more than the share `quarantine` of all rows is unreadable, and StreamRefused when the rows
    are of several label sets.
    """
    blocks: list[Block] = []
    parts: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    damage = Damage(sum(file.rows for file in files), quarantine)
    columns = SMALL_COLUMNS + LENGTH_COLUMNS + (["key"] if left_out_keys else [])
    columns += ["tail_sums.list.element.temperature"] if temperature != 1 else []
    columns += [name for name in (rewriter.columns if rewriter else ()) if name not in columns]
    label_sets: set[tuple[str, ...] | None] = set()
    for file in files:
        for block, table in row_groups(file, columns, damage):
            values, changed = _row_values(table, sequence_length, rewriter)
            reason = _reasons(table, values, sequence_length, left_out_keys, temperature, modes)
            reason = np.where(reason == "", changed, reason)
            left_out.update(text for text in reason.tolist() if text)
            _one_label_set(table, reason == "", label_sets)
            usable = (reason == "") & (in_holdout(table.column("prompt_id").to_pylist(), holdout) == held_out)
            parts.append({name: column[usable] for name, column in values.items()})
            blocks.append(block)
    return _joined(blocks, parts, left_out, damage)


class Damage:
    """Row groups that could not be read; past the allowed share of all rows they stop the run."""

    def __init__(self, rows: int, allowed: float) -> None:
        self.rows = rows
        self.allowed = allowed
        self.lost = 0
        self.names: list[str] = []

    def add(self, name: str, rows: int, error: Exception) -> None:
        """Count one loss, once; raises RowGroupLost when it is one too many."""
        if name in self.names:
            return
        self.names.append(name)
        self.lost += rows
        if self.lost > self.allowed * self.rows:
            text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise RowGroupLost(
                f"{name} cannot be read ({text}); {self.lost} of {self.rows} rows are lost, more than the share "
                f"{self.allowed} that was allowed: `potstill verify` names what is damaged."
            ) from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """A data file whose pages are checked against their checksums as they are read. Raises READ_ERRORS."""
    parquet = pq.ParquetFile(path, page_checksum_verification=True)
    if not is_soft_labels(parquet.schema_arrow):
        parquet.close()
        raise pa.ArrowInvalid("its columns are not those of a soft-label table")
    return parquet


def row_groups(file: DataFile, columns: list[str], damage: Damage) -> Iterator[tuple[Block, pa.Table]]:
    """Some columns of each row group of a file; what cannot be read is counted as damage."""
    try:
        parquet = open_parquet(file.path)
    except READ_ERRORS as error:
        damage.add(file.path.name, file.rows, error)
        return
    with parquet:
        for group in range(parquet.num_row_groups):
            block = Block(file.path, group)
            try:
                table = parquet.read_row_group(group, columns=columns)
            except READ_ERRORS as error:
                damage.add(str(block), parquet.metadata.row_group(group).num_rows, error)
            else:
                yield block, table


def _one_label_set(table: pa.Table, usable: NDArray[np.bool_], seen: set[tuple[str, ...] | None]) -> None:
    """Labels of a classification are places in their row's label set, so one stream has one set."""
    found = table.column("label_set").filter(pa.array(usable)).to_pylist()
    seen.update(None if labels is None else tuple(labels) for labels in found)
    if len(seen) > 1:
        raise StreamRefused("The rows are of several label sets; choose those of one by `where`.")


def _row_values(
    table: pa.Table, sequence_length: int, rewriter: Rewriter | None
) -> tuple[dict[str, Any], NDArray[np.str_]]:
    """The number columns of RowIndex for every row of a row group, usable or not, and why a rewriter cannot use it."""
    prompt, targets = _lengths(table, "prompt_token_ids"), _lengths(table, "token_ids")
    masked = table.column("target_positions").is_valid().to_numpy(zero_copy_only=False)
    # the last token predicts nothing, so it is no input
    slots = np.where(masked, prompt, np.minimum(prompt + targets - 1, sequence_length))
    first_target = ((prompt == 0) & ~masked).astype(np.int64)
    mode = table.column("mode")
    loss_tokens = np.where(masked, targets, slots - prompt + 1 - first_target)
    changed = np.full(table.num_rows, "", dtype="U64")
    if rewriter is not None:
        sizes = rewriter.sizes(table, sequence_length)
        slots, loss_tokens, changed = sizes.slots, sizes.loss_tokens, sizes.reason
    values = {
        "row_in_block": np.arange(table.num_rows),
        "prompt_length": prompt,
        "slots": slots,
        "first_target": first_target,
        "loss_tokens": loss_tokens,
        "k": table.column("k").to_numpy().astype(np.int64),
        "masked": masked,
        "from_teacher": _at_temperature_one(table) & pc.equal(mode, "generate").to_numpy(),
        "sampled": pc.equal(table.column("estimator"), "sampled").to_numpy(),
        "source": np.asarray(table.column("prompt_source").fill_null("").to_pylist(), dtype=object),
    }
    return values, changed


def _lengths(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(pc.list_value_length(table.column(name)).fill_null(0).to_numpy(), dtype=np.int64)


def _at_temperature_one(table: pa.Table) -> NDArray[np.bool_]:
    """Whether sampling left the distribution as it is: T = 1 was sent, and nothing that cuts it off."""
    sampling = table.column("sampling")
    temperature, top_p = pc.struct_field(sampling, "temperature"), pc.struct_field(sampling, "top_p")
    top_k, min_p = pc.struct_field(sampling, "top_k"), pc.struct_field(sampling, "min_p")
    whole = pc.equal(temperature.fill_null(-1.0), 1.0)
    whole = pc.and_(whole, pc.equal(top_p.fill_null(1.0), 1.0))
    whole = pc.and_(whole, pc.and_(pc.less_equal(top_k.fill_null(0), 0), pc.less_equal(min_p.fill_null(0.0), 0.0)))
    return np.asarray(whole.to_numpy(), dtype=bool)


def _reasons(
    table: pa.Table,
    values: dict[str, Any],
    sequence_length: int,
    left_out_keys: Set[str],
    temperature: float,
    modes: Sequence[str],
) -> NDArray[np.str_]:
    """Why each row cannot be used; empty where it can."""
    space = np.asarray(table.column("logprob_space").to_pylist(), dtype=object)
    unscaled = (space == "raw") | _at_temperature_one(table) | (values["k"] == 0)
    no_ids = table.column("token_ids").is_null().to_numpy(zero_copy_only=False)
    mode = np.asarray(table.column("mode").to_pylist(), dtype=object)
    other_mode = ~np.isin(mode.astype(str), modes)
    keys = table.column("key").to_pylist() if left_out_keys else [""] * table.num_rows
    excluded = np.fromiter((key in left_out_keys for key in keys), dtype=bool, count=len(keys))
    no_tail_sum = np.zeros(len(keys), dtype=bool)
    if temperature != 1:
        stored = table.column("tail_sums").to_pylist()
        wanted = np.float32(temperature)
        no_tail_sum = np.array([all(t["temperature"] != wanted for t in row or ()) for row in stored]) & (
            values["k"] > 0
        )
    too_long = (values["loss_tokens"] < 1) | (values["slots"] < 1) | (values["slots"] > sequence_length)
    return np.select(
        [excluded, other_mode, no_ids, ~unscaled, no_tail_sum, too_long],
        [
            "left out by the caller",
            "rows of another mode",
            "no token ids",
            "temperature of the labels is not 1",
            "no tail sums at the loss's temperature",
            "no target fits",
        ],
        default="",
    )


def _joined(blocks: list[Block], parts: list[dict[str, Any]], left_out: Counter[str], damage: Damage) -> RowIndex:
    first_row = np.zeros(len(blocks) + 1, dtype=np.int64)
    np.cumsum([len(part["k"]) for part in parts], out=first_row[1:])
    empty = {name: np.empty(0, dtype=dtype) for name, dtype in INDEX_TYPES.items()}
    columns = {name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in INDEX_TYPES}
    sources, columns["source"] = np.unique(columns["source"].astype(str), return_inverse=True)
    return RowIndex(
        blocks=tuple(blocks),
        first_row=first_row,
        sources=tuple(sources.tolist()),
        left_out=dict(left_out),
        damage=damage,
        **columns,
    )
