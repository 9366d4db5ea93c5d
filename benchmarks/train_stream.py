"""Shuffled [tokens, k = 64] tensors from one table: this stream beside what others read the same labels with.

Each reader runs in a process of its own, in turn, several times; the best run counts, since the machine is shared. The
two of datasets read one epoch, the others EPOCHS.
Other libraries are taken from where BENCH_PACKAGES (folders, joined by ":") or the environment has them.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from storage.codec import Labels, list_values, log_tail
from storage.table import Table
from tests.storage.make_rows import make_row
from trainer.decode import COLUMNS
from trainer.stream import SoftLabelStream

K, LENGTH, PER_FILE = 64, 128, 4096
EPOCHS = 3
"""Of the quick readers, so that what is done once (opening, planning, fresh memory) counts as in a training."""
BUFFER = 1024
"""Rows that the others shuffle together; this stream's window is never smaller."""
LABELS = ["token_ids", "top_ids", "top_logprobs", "log_tail"]


def build(folder: Path, rows: int, sample: Path) -> Table:
    """A table of rows of 128 tokens × top 64, drawn from real positions."""
    with np.load(sample, allow_pickle=False) as data:
        ids, logprobs = data["ids"][:, :K].astype(np.int32), data["logprobs"][:, :K].astype(np.float32)
    random, table = np.random.default_rng(0), Table.create(folder)
    ones = np.ones(LENGTH, dtype=np.int32)
    for sequence, first in enumerate(range(0, rows, PER_FILE)):
        batch = []
        for number in range(first, min(first + PER_FILE, rows)):
            at = random.integers(0, len(ids), LENGTH)
            top = logprobs[at]
            labels = Labels(ids[at, 0], top[:, 0], ones, ids[at], top, log_tail(top.astype(np.float64)))
            batch.append(make_row(number, labels=labels, targets=1, k=1))
        table.append(batch, writer="bench", sequence=sequence)
    return Table.open(folder)


def _files(table: Table) -> list[str]:
    return [str(file.path) for file in table.files()]


def bare(table: Table) -> Iterator[int]:
    """The limit: pyarrow decodes the same columns, one row group after another; nothing is done with them."""
    for path in EPOCHS * _files(table):
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group, columns=COLUMNS)
                yield sum(len(list_values(rows.column(name))[1]) for name in COLUMNS if name == "token_ids")


def potstill(table: Table, epochs: int = EPOCHS) -> Iterator[int]:
    """Packed batches with inputs, positions, documents, shifts, weights and all labels."""
    options: dict[str, Any] = {"sequence_length": 4 * LENGTH + 12, "batch_size": 8, "pack": True, "seed": 0}
    stream = SoftLabelStream(table, **options, holdout=0.0, split="train", repeat=False)
    for _ in range(epochs):
        for batch in stream:
            yield int(batch["tokens"])


def _hugging_face(table: Table) -> Any:
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=_files(table), split="train", streaming=True, columns=LABELS)
    return rows.shuffle(seed=0, buffer_size=BUFFER)


def hugging_face_arrow(table: Table) -> Iterator[int]:
    """datasets, streaming, shuffled, in Arrow format; its tables made into tensors by their buffers."""
    for rows in _hugging_face(table).with_format("arrow").iter(batch_size=32):
        tensors = [torch.from_numpy(list_values(rows.column(name))[1]) for name in LABELS]
        yield len(tensors[1].reshape(-1, K))


def hugging_face_rows(table: Table) -> Iterator[int]:
    """datasets, streaming, shuffled, its default rows made into tensors."""
    for row in _hugging_face(table):
        tensors = [torch.tensor(row[name]) for name in LABELS]
        yield len(tensors[1].reshape(-1, K))


def mosaicml_streaming(table: Table) -> Iterator[int]:
    """StreamingDataset over the same labels as MDS shards of arrays (uncompressed, so larger on disk), shuffled."""
    from streaming import MDSWriter, StreamingDataset

    folder = table.path.parent / "mds"
    if not folder.exists():
        columns = {"token_ids": "ndarray:int32", "log_tail": "ndarray:float32"}
        columns |= {"top_ids": "ndarray:int32", "top_logprobs": "ndarray:float32"}
        with MDSWriter(out=str(folder), columns=columns) as out:
            for path in _files(table):
                rows = pq.read_table(path, columns=LABELS, partitioning=None)
                lists = {name: list_values(rows.column(name)) for name in LABELS}
                for i in range(rows.num_rows):
                    out.write({name: values[at[i] : at[i + 1]] for name, (at, values) in lists.items()})
    yield 0  # what comes after counts
    rows = StreamingDataset(local=str(folder), shuffle=True, batch_size=32, shuffle_block_size=BUFFER)
    for _ in range(EPOCHS):
        for row in rows:
            tensors = [torch.from_numpy(np.array(row[name])) for name in LABELS]
            yield len(tensors[1].reshape(-1, K))


READERS: dict[str, Callable[[Table], Iterator[int]]] = {
    "pyarrow, sequential, bare": bare,
    "potstill": potstill,
    "datasets, shuffled, Arrow format": hugging_face_arrow,
    "datasets, shuffled, default rows": hugging_face_rows,
    "mosaicml-streaming, shuffled": mosaicml_streaming,
}


def measure(name: str, folder: Path) -> dict[str, float]:
    """Tokens per second of wall and of CPU time; opening and the plan of the order included, imports not."""
    torch.set_num_threads(1)
    rows = READERS[name](Table.open(folder))
    tokens = 0
    if name.startswith("mosaicml"):
        next(rows)
    elif name.startswith("datasets"):
        importlib.import_module("datasets")
    started, cpu = time.perf_counter(), time.process_time()
    for count in rows:
        tokens += count
    return {"tokens": tokens, "wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def compare(folder: Path, repeats: int) -> dict[str, dict[str, float] | str]:
    """Reader → its best run, or why it could not run."""
    paths = [str(Path.cwd()), *os.environ.get("BENCH_PACKAGES", "").split(":")]
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    found: dict[str, dict[str, float] | str] = {}
    for name in [name for _ in range(repeats) for name in READERS]:
        if isinstance(found.get(name), str):
            continue
        command = [sys.executable, "-m", "benchmarks.train_stream", name, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            found[name] = "not installed" if "ModuleNotFoundError" in done.stderr else done.stderr.splitlines()[-1]
            continue
        run, best = json.loads(done.stdout.splitlines()[-1]), found.get(name)
        found[name] = {key: min(run[key], best[key]) for key in run} if isinstance(best, dict) else run
    return found


def _memory_over_epochs(folder: Path, epochs: int) -> Iterator[int]:
    libc, table = ctypes.CDLL("libc.so.6"), Table.open(folder)
    for _ in range(epochs):
        for _tokens in potstill(table, 1):
            pass
        libc.malloc_trim(0)
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        yield int(status.split("VmRSS:")[1].split()[0]) // 1024


def memory_over_epochs(folder: Path, epochs: int) -> list[int]:
    """Resident MB at the end of each epoch of a process of its own, what the allocator keeps for later given back."""
    command = [sys.executable, "-m", "benchmarks.train_stream", "memory", str(folder), str(epochs)]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


if __name__ == "__main__":
    what, where, *epochs_asked = sys.argv[1:]
    if what == "memory":
        print(json.dumps(list(_memory_over_epochs(Path(where), int(epochs_asked[0])))))
    else:
        print(json.dumps(measure(what, Path(where))))
