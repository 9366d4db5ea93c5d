"""Bytes a token, KL error and decoding speed of our coding beside others, on real labels of a teacher.

Speeds are thousand tokens per CPU second, single-threaded: from a Parquet file, opened as the stream opens it
(`pq.ParquetFile`), to a (tokens, k) array of ids and one of log-probabilities. Bytes are of these two alone (the file's
compressed column chunks). Hugging Face `datasets` reads its own file as a stream of Arrow rows and of plain rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.distillkit_coding import BUDGET, RECOMMENDED, decode_in_its_steps, encode, with_k
from storage.codec import list_values, log_tail, round_mantissa
from storage.data_files import write_data_file
from storage.distillkit import Coding, decode
from storage.rows import rows_to_arrow
from tests.storage.make_rows import Labels, make_row

SEQUENCE = 512
BATCH = 8
Arrays = tuple[NDArray[np.int32], NDArray[np.float32]]


@dataclass(frozen=True)
class Measured:
    """One line of the table of sizes."""

    name: str
    bytes_per_token: float
    kl: float
    thousand_tokens_per_cpu_second: float


def measure(ids: NDArray[np.int32], logprobs: NDArray[np.float32], folder: Path) -> list[Measured]:
    """All codings on (N, k) real labels."""
    k = ids.shape[1]
    codings: dict[str, Callable[[], tuple[Path, list[str], Callable[[], Arrays]]]] = {
        "list of structs, pyarrow defaults": lambda: _structs(ids, logprobs, folder),
        "float16, byte-stream-split": lambda: _float16(ids, logprobs, folder),
        "DistillKit recommended": lambda: _distillkit(ids, logprobs, with_k(RECOMMENDED, k), folder),
        "DistillKit recommended, in its own steps": lambda: _its_steps(ids, logprobs, with_k(RECOMMENDED, k), folder),
        "DistillKit budget": lambda: _distillkit(ids, logprobs, with_k(BUDGET, k), folder),
        "Hugging Face datasets, Arrow rows": lambda: _hugging_face(ids, logprobs, folder, "arrow"),
        "Hugging Face datasets, plain rows": lambda: _hugging_face(ids, logprobs, folder, None),
        "potstill, lossless": lambda: _ours(ids, logprobs, 23, folder),
        "potstill, 8 bits": lambda: _ours(ids, logprobs, 8, folder),
        "**potstill, 7 bits (default)**": lambda: _ours(ids, logprobs, 7, folder),
    }
    lines = []
    for name, make in codings.items():
        if name.startswith("Hugging Face") and find_spec("datasets") is None:
            continue
        path, columns, read = make()
        read_ids, read_logprobs = read()
        assert (read_ids == ids).all(), name
        size, kl = _size(path, columns) / len(ids), _kl(logprobs, read_logprobs)
        lines.append(Measured(name, size, kl, _speed(read, len(ids))))
    return lines


def all_numbers(ids: NDArray[np.int32], logprobs: NDArray[np.float32], folder: Path) -> float:
    """Bytes a token of all numbers of a row: candidates, tail, realised token, its log-probability and rank."""
    path = write_data_file(folder, _table(ids, logprobs, 7)).path
    names = ["top_ids", "top_logprobs", "log_tail", "token_ids", "token_logprobs", "token_ranks"]
    return _size(path, names) / len(ids)


def _table(ids: NDArray[np.int32], logprobs: NDArray[np.float32], bits: int) -> pa.Table:
    rows = []
    for number in range(len(ids) // SEQUENCE):
        part = slice(number * SEQUENCE, (number + 1) * SEQUENCE)
        rank = np.minimum(np.random.default_rng(number).geometric(0.66, SEQUENCE), ids.shape[1]).astype(np.int32)
        at = (np.arange(SEQUENCE), rank - 1)
        top, logs = np.ascontiguousarray(ids[part]), np.ascontiguousarray(logprobs[part])
        labels = Labels(top[at], logs[at], rank, top, logs, log_tail(logs.astype(np.float64)))
        rows.append(make_row(number, labels=labels))
    return rows_to_arrow(rows, mantissa_bits=bits)


def _ours(ids: NDArray[np.int32], logprobs: NDArray[np.float32], bits: int, folder: Path) -> Any:
    path = write_data_file(folder, _table(ids, logprobs, bits)).path
    k = ids.shape[1]

    def read() -> Arrays:
        table = _parquet(path, ["top_ids", "top_logprobs"])
        values = [list_values(table.column(name))[1].reshape(-1, k) for name in ("top_ids", "top_logprobs")]
        return values[0], values[1]

    return path, ["top_ids", "top_logprobs"], read


def _structs(ids: NDArray[np.int32], logprobs: NDArray[np.float32], folder: Path) -> Any:
    k, path = ids.shape[1], folder / "structs.parquet"
    pairs = pa.StructArray.from_arrays([pa.array(ids.ravel()), pa.array(logprobs.ravel())], ["id", "logprob"])
    offsets = np.arange(0, ids.size + 1, SEQUENCE * k, dtype=np.int32)
    pq.write_table(pa.table({"top": pa.ListArray.from_arrays(offsets, pairs)}), path, compression="zstd")

    def read() -> Arrays:
        values = _parquet(path).column("top").combine_chunks().values
        return values.field("id").to_numpy().reshape(-1, k), values.field("logprob").to_numpy().reshape(-1, k)

    return path, ["top"], read


def _float16(ids: NDArray[np.int32], logprobs: NDArray[np.float32], folder: Path) -> Any:
    k, path = ids.shape[1], folder / "float16.parquet"
    offsets = np.arange(0, ids.size + 1, SEQUENCE * k, dtype=np.int32)
    columns = {"ids": pa.array(ids.ravel()), "logprobs": pa.array(logprobs.ravel().astype(np.float16))}
    table = pa.table({name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()})
    encodings = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in columns}
    pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding=encodings)

    def read() -> Arrays:
        table = _parquet(path)
        found = [list_values(table.column(name))[1].reshape(-1, k) for name in columns]
        return found[0], found[1].astype(np.float32)

    return path, list(columns), read


def _distillkit(ids: NDArray[np.int32], logprobs: NDArray[np.float32], coding: Coding, folder: Path) -> Any:
    path = folder / f"distillkit-{coding.exact_k}.parquet"
    packed, packed_ids = encode(logprobs, ids, coding)
    columns = {"compressed_logprobs": packed, "bytepacked_indices": packed_ids}
    arrays = {}
    for name, values in columns.items():  # list<list<uint8>>, one inner list a position, as its writer makes them
        inner = pa.ListArray.from_arrays(np.arange(0, values.size + 1, values.shape[1], dtype=np.int32), values.ravel())
        arrays[name] = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, SEQUENCE, dtype=np.int32), inner)
    pq.write_table(pa.table(arrays), path, compression="zstd")

    def read() -> Arrays:
        table = _parquet(path)
        raw = [table.column(name).combine_chunks().values.values.to_numpy().reshape(len(ids), -1) for name in columns]
        found, found_ids = decode(raw[0], raw[1], coding)
        return found_ids, found

    return path, list(columns), read


def _its_steps(ids: NDArray[np.int32], logprobs: NDArray[np.float32], coding: Coding, folder: Path) -> Any:
    """The same file, decoded by the torch operations of DistillKit's package, batch by batch as a training does."""
    path, columns, _ = _distillkit(ids, logprobs, coding, folder)
    torch.set_num_threads(1)

    def read() -> Arrays:
        table = _parquet(path)
        raw = []
        for name, width in zip(columns, coding.widths, strict=True):
            values = table.column(name).combine_chunks().values.values.to_numpy()
            raw.append(torch.from_numpy(values.reshape(-1, SEQUENCE, width).copy()))
        parts = [
            decode_in_its_steps(*batch, coding) for batch in zip(*(part.split(BATCH) for part in raw), strict=True)
        ]
        found_ids, found = (torch.cat(part).flatten(0, 1) for part in zip(*parts, strict=True))
        return found_ids.int().numpy(), found.float().numpy()

    return path, columns, read


def _hugging_face(ids: NDArray[np.int32], logprobs: NDArray[np.float32], folder: Path, form: str | None) -> Any:
    """Its own Parquet file with its own settings; what is timed is a pass over the rows, not opening the data set."""
    import datasets  # type: ignore[import-untyped]

    datasets.disable_progress_bars()
    k, path = ids.shape[1], folder / "hugging_face.parquet"
    offsets = np.arange(0, ids.size + 1, SEQUENCE * k, dtype=np.int32)
    lists = {"ids": pa.array(ids.ravel()), "logprobs": pa.array(logprobs.ravel())}
    table = pa.table({name: pa.ListArray.from_arrays(offsets, values) for name, values in lists.items()})
    datasets.Dataset(table).to_parquet(str(path))
    rows = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", streaming=True, cache_dir=str(folder / "cache")
    ).with_format(form)

    def read() -> Arrays:
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in lists}
        for row in rows:
            for name in lists:
                value = row[name]
                flat = value.combine_chunks().values.to_numpy() if form == "arrow" else np.asarray(value)
                parts[name].append(flat.reshape(-1, k))
        return np.concatenate(parts["ids"]).astype(np.int32), np.concatenate(parts["logprobs"]).astype(np.float32)

    return path, list(lists), read


def _parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    with pq.ParquetFile(path) as source:
        return source.read(columns=columns, use_threads=False)


def _size(path: Path, columns: list[str]) -> int:
    metadata = pq.read_metadata(path)
    chunks = [
        metadata.row_group(g).column(c) for g in range(metadata.num_row_groups) for c in range(metadata.num_columns)
    ]
    return int(sum(c.total_compressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns))


def _kl(true: NDArray[np.float32], stored: NDArray[np.float32]) -> float:
    """Mean KL in nats of the top k and the tail as one bucket, the stored ones rescaled to the true tail's rest."""
    p, q = np.exp(true.astype(np.float64)), np.exp(stored.astype(np.float64))
    tail = 1 - p.sum(axis=1)
    q *= ((1 - tail) / q.sum(axis=1))[:, None]
    return float((p * np.log(p / q)).sum(axis=1).mean())


def _speed(read: Callable[[], Arrays], tokens: int) -> float:
    best = float("inf")
    for _ in range(7):
        started = time.process_time()
        read()
        best = min(best, time.process_time() - started)
    return tokens / best / 1000


def check_rounding(logprobs: NDArray[np.float32]) -> float:
    """Largest relative error of a stored log-probability at the default: to be at most 2^−8."""
    return float(np.abs(round_mantissa(logprobs, 7) / logprobs - 1).max())
