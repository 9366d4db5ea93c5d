"""Soft labels as an endless stream of ready batches, the same on every machine and resumed by one integer.

A thread reads the next window while a second one makes batches of the present one: two windows of labels are in memory,
whatever the table's size. Each rank decodes the labels of all ranks and keeps its share, which is what lets the number
of ranks change at any step.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from storage.query import sql
from storage.table import Table
from trainer.decode import Assembler, Labels
from trainer.errors import StreamRefused
from trainer.index import MODES, build_index
from trainer.order import share_of
from trainer.pack import Plan, Window
from trainer.rewriting import Rewriter

Batch = dict[str, Tensor]
WINDOW = 16
"""Row groups shuffled together: of about 2^21 candidates each, so 256 MB of ids and log-probabilities."""
READY_BATCHES = 2


class SoftLabelStream(IterableDataset[Batch]):
    """Batches of a table version; iterating goes on from the cursor, `state_dict()` is where the last batch ended.

    A batch is a dict of tensors, of rank's share of the global batch (B sequences of S positions, N loss tokens,
    K candidates; numbers float32, integers int64 but for `top_ids`, which stay int32 as they are stored):
    `input_ids`, `position_ids`, `document_ids` [B, S] (document 0 is padding; no attention across documents);
    `loss_index` [N], the flat index into B·S of the position to read from (shifted already);
    `target_ids` [N] (−1: none), `target_logprobs` [N] (NaN: unknown), `top_ids` [N, K] (−1: missing),
    `top_logprobs` [N, K], `log_tail` [N], `from_teacher` [N] (bool), `weight` [N]; where the table has such labels
    `top_weights` [N, K], and at a temperature `tail_sum` [N];
    `rows`, `tokens` (of this share) and `cursor` (sequences up to and with this global batch), scalars.

    Args:
        table: its version is pinned now; later appends do not change the stream.
        batch_size: sequences of a global batch, over all ranks. May change on resume, as `rank` and `world` may.
        pack: several rows a sequence of `sequence_length`; otherwise one, padded to the longest of the global batch.
        holdout: share of prompts that only the split "holdout" has.
        window: row groups (and at least 1,024 rows) that are shuffled together: memory for randomness.
        id_map, unknown_id: see `decode.Assembler`; `id_map` must not map two ids to one.
        repeat: endless; otherwise one epoch, whose last batch may be smaller (and empty on some ranks); iterating again
            after its end starts anew.
        source_weights: what a loss token counts for, by its row's prompt_source.
        left_out: keys of rows that are not to be used.
        where: an SQL condition on the columns of soft_labels; rows for which it is not true are not used
            ("prompt_licence = 'CC0-1.0' AND 'refused' NOT IN flags").
        temperature: of the loss, where its tail is the bucket: rows without tail sums for it are not used.
        modes: of the rows that are used; rows of `classify` need a `rewriter` (classify.py), and do not pack.
        rewriter: makes the rows again in a student's own tokens; then `id_map` is not used.
        quarantine: share of all rows that may be unreadable; what is, is named in `index.damage`.
    Raises StreamRefused or RowGroupLost.
    """

    def __init__(
        self,
        table: Table,
        *,
        sequence_length: int,
        batch_size: int,
        pack: bool,
        seed: int,
        holdout: float,
        split: Literal["train", "holdout"],
        window: int = WINDOW,
        id_map: NDArray[np.integer[Any]] | None = None,
        unknown_id: int | None = None,
        rank: int = 0,
        world: int = 1,
        repeat: bool = True,
        source_weights: Mapping[str, float] | None = None,
        left_out: Set[str] = frozenset(),
        where: str | None = None,
        temperature: float = 1.0,
        quarantine: float = 0.0,
        modes: Sequence[str] = MODES,
        rewriter: Rewriter | None = None,
    ) -> None:
        super().__init__()
        _check(sequence_length, batch_size, holdout, split, rank, world, id_map)
        _check_modes(modes, rewriter, pack)
        table = Table.open(table.path, table.version)
        if where is not None:
            left_out = left_out | _keys_outside(table, where)
        self.index = build_index(
            table.files(),
            sequence_length=sequence_length,
            holdout=holdout,
            held_out=split == "holdout",
            left_out_keys=left_out,
            temperature=temperature,
            quarantine=quarantine,
            modes=modes,
            rewriter=rewriter,
        )
        if not len(self.index):
            raise StreamRefused(
                f"No row of {table.path} version {table.version} is usable in split {split!r} "
                f"(left out: {self.index.left_out or 'none'}): collect more, or change holdout or sequence_length."
            )
        self.wait_seconds = 0.0
        """How long the consumer has waited for batches."""
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._plan = Plan(self.index.slots, self.index.first_row, sequence_length, pack, seed, window, repeat)
        student_ids = None if id_map is None else np.asarray(id_map, dtype=np.int64)
        self._assembler = Assembler(
            self.index,
            student_ids,
            unknown_id,
            source_weights or {},
            sequence_length if pack else None,
            temperature,
            rewriter,
        )
        self._order = {
            "table_version": table.version,
            "files": _digest(*(file.sha256.encode() for file in table.files())),
            "rows": len(self.index),
            "left_out": _digest(*(key.encode() for key in sorted(left_out))),
            "split": split,
            "holdout": holdout,
            "seed": seed,
            "window": window,
            "sequence_length": sequence_length,
            "pack": pack,
            "temperature": temperature,
            "modes": list(modes),
            "rewriter": rewriter.digest if rewriter else None,
            "id_map": None if student_ids is None else _digest(student_ids.tobytes()),
        }
        self._cursor = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the last batch that was handed out ended, and what the order depends on; plain values for JSON."""
        return {"cursor": self._cursor, "order": dict(self._order)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, whatever batch size, rank and world size were then.

        Raises StreamRefused, naming what differs, when the order would not be the same.
        """
        saved = state["order"]
        changed = [name for name in self._order if saved.get(name) != self._order[name]]
        if changed:
            told = "; ".join(f"{name} was {saved.get(name)} and is {self._order[name]}" for name in changed)
            raise StreamRefused(f"The stream cannot go on where it was: {told}. Use the saved settings, or start anew.")
        self._cursor = int(state["cursor"])

    def sequences(self) -> int:
        """Sequences of one epoch."""
        return sum(len(window.packs) for window in self._plan.epoch(0))

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise StreamRefused("The stream reads ahead in threads of its own: give the DataLoader num_workers=0.")
        return self._handed_out()

    def _handed_out(self) -> Iterator[Batch]:
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(READY_BATCHES)
        stop = threading.Event()
        thread = threading.Thread(target=self._produce, args=(ready, stop), name="soft-label-stream", daemon=True)
        thread.start()
        try:
            while True:
                asked = time.perf_counter()
                item = ready.get()
                self.wait_seconds += time.perf_counter() - asked
                if item is None:
                    self._cursor = 0
                    return
                if isinstance(item, BaseException):
                    raise item
                self._cursor = int(item["cursor"])
                yield item
        finally:
            stop.set()
            thread.join()

    def _produce(self, ready: queue.Queue[Batch | BaseException | None], stop: threading.Event) -> None:
        last: BaseException | None = None
        try:
            with closing(self._batches(self._cursor)) as batches:
                for batch in batches:
                    if not _put(ready, batch, stop):
                        return
        except BaseException as error:  # raised again where the batches are consumed
            last = error
        _put(ready, last, stop)

    def _batches(self, cursor: int) -> Generator[Batch, None, None]:
        """This rank's share of each global batch; a global batch may take from several windows."""
        waiting: list[tuple[tuple[int, ...], Future[Labels]]] = []
        with ThreadPoolExecutor(1, "soft-label-reader") as reader:
            for window, labels in self._read_ahead(reader, cursor):
                for rows in window.packs:
                    waiting.append((rows, labels))
                    if len(waiting) == self._batch_size:
                        cursor += len(waiting)
                        yield self._assembled(waiting, cursor)
                        waiting = []
            if waiting:
                yield self._assembled(waiting, cursor + len(waiting))

    def _read_ahead(self, reader: ThreadPoolExecutor, cursor: int) -> Iterator[tuple[Window, Future[Labels]]]:
        """Each window as the next one begins to be read."""
        present: tuple[Window, Future[Labels]] | None = None
        for window in self._plan.windows(cursor):
            coming = window, reader.submit(self._assembler.read, window.blocks.tolist())
            if present is not None:
                yield present
            present = coming
        if present is not None:
            yield present

    def _assembled(self, packs: list[tuple[tuple[int, ...], Future[Labels]]], cursor: int) -> Batch:
        read = [(rows, labels.result()) for rows, labels in packs]
        batch = self._assembler.batch(read, share_of(len(read), self._rank, self._world))
        batch["cursor"] = torch.tensor(cursor)
        return batch


def _keys_outside(table: Table, where: str) -> frozenset[str]:
    query = f"SELECT key FROM soft_labels WHERE NOT coalesce(({where}), false)"
    return frozenset(sql(table, query).column("key").to_pylist())


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Wait for room; False when the consumer is gone."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _check_modes(modes: Sequence[str], rewriter: Rewriter | None, pack: bool) -> None:
    if "classify" in modes and (rewriter is None or pack or len(modes) > 1):
        raise StreamRefused(
            "Rows of classify need a rewriter that makes inputs of their texts, pack = False and a stream of their own."
        )


def _check(
    sequence_length: int,
    batch_size: int,
    holdout: float,
    split: str,
    rank: int,
    world: int,
    id_map: NDArray[np.integer[Any]] | None,
) -> None:
    if sequence_length < 1 or batch_size < 1:
        raise StreamRefused(f"sequence_length {sequence_length} and batch_size {batch_size} have to be at least 1")
    if not 0 <= holdout < 1 or split not in ("train", "holdout"):
        raise StreamRefused(f"holdout {holdout} has to be in [0, 1), and split {split!r} train or holdout")
    if not 0 <= rank < world <= batch_size:
        raise StreamRefused(
            f"rank {rank} of {world} cannot take its share of a batch of {batch_size}: "
            "batch_size counts the sequences of all ranks, at least one each"
        )
    if id_map is not None:
        mapped = id_map[id_map >= 0]
        if len(np.unique(mapped)) != len(mapped):
            raise StreamRefused("id_map maps two teacher ids to one student id: their labels would count twice")
