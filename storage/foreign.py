"""Data sets of soft labels that others made, as sequences in our terms: DistillKit captures, Axolotl sets.

A distribution that is stored at the position that predicts the next token moves to that token, its target. A shift
by one is their users' most frequent bug, so the alignment is tried against its neighbours before anything is believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.codec import Labels, log_tail
from storage.distillkit import Coding, decode
from storage.errors import ForeignDataError, mapped

CONFIG = "compression_config.yaml"


@dataclass(frozen=True, slots=True, eq=False)
class ForeignSequence:
    """One sequence: prompt ids, then the targets with their labels. `problem` says why it can be no row."""

    number: int
    prompt_ids: NDArray[np.int32]
    labels: Labels | None
    problem: str | None = None


def read_foreign(path: Path, tokenizer: Path | None = None) -> tuple[str, Iterator[ForeignSequence]]:
    """The format of a data set, "distillkit" or "axolotl", and its sequences. Raises ForeignDataError for others.

    `tokenizer` is the teacher's tokenizer.json, which a set of chats without token ids needs.
    """
    from storage.axolotl import axolotl  # it stands on this module
    from storage.chat_tokens import ChatTokens

    if (path / CONFIG).is_file():
        return "distillkit", _distillkit(path, _coding(path / CONFIG))
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if files and files[0].suffix in (".parquet", ".jsonl"):
        return "axolotl", axolotl(files, ChatTokens(tokenizer) if tokenizer is not None and _has_chats(files) else None)
    raise ForeignDataError(
        f"{path} is neither a DistillKit capture (a folder with {CONFIG}) nor an Axolotl set (.parquet or .jsonl)."
    )


def _coding(path: Path) -> Coding:
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise ForeignDataError("Reading a DistillKit capture needs PyYAML: pip install pyyaml.") from None
    with mapped(path):
        text = path.read_text("utf-8")
    try:
        return Coding.read(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ForeignDataError(f"{path} is no YAML: {error}") from error


def _distillkit(folder: Path, coding: Coding) -> Iterator[ForeignSequence]:
    files = sorted(folder.rglob("*.parquet"))
    for number, line in enumerate(lines(files, ["input_ids", "compressed_logprobs", "bytepacked_indices"])):
        ids = np.asarray(line["input_ids"], dtype=np.int32)
        packed = np.asarray(line["compressed_logprobs"], dtype=np.uint8)
        packed_ids = np.asarray(line["bytepacked_indices"], dtype=np.uint8)
        if packed.ndim != 2 or len(packed) not in (len(ids), len(ids) - 1) or len(packed) != len(packed_ids):
            yield ForeignSequence(number, ids[:1], None, f"{len(packed)} positions for {len(ids)} tokens")
            continue
        # a capture has no distribution of the first token; one for the token after the last has no target
        logprobs, top_ids = decode(packed[: len(ids) - 1], packed_ids[: len(ids) - 1], coding)
        yield labelled(number, ids, 1, top_ids, logprobs)


def _has_chats(files: list[Path]) -> bool:
    return "input_ids" not in next(lines(files, None), {"input_ids": None})


def labelled(
    number: int, ids: NDArray[np.int32], first: int, top_ids: NDArray[np.int32], logprobs: NDArray[np.float32]
) -> ForeignSequence:
    """Labels of the targets ids[first:], candidates sorted again because an approximation may have crossed them."""
    order = np.argsort(-logprobs, axis=1, kind="stable")
    logprobs = np.minimum(np.take_along_axis(logprobs, order, axis=1), np.float32(0))
    top_ids = np.where(np.isneginf(logprobs), -1, np.take_along_axis(top_ids, order, axis=1)).astype(np.int32)
    targets = ids[first : first + len(top_ids)]
    hit = top_ids == targets[:, None]
    rank = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0).astype(np.int32)
    realised = np.where(rank > 0, logprobs[np.arange(len(targets)), np.maximum(rank - 1, 0)], np.float32(np.nan))
    labels = Labels(targets, realised, rank, top_ids, logprobs, log_tail(logprobs.astype(np.float64)))
    return ForeignSequence(number, ids[:first], labels)


def check_alignment(sequences: list[ForeignSequence]) -> None:
    """Raise ForeignDataError unless the best candidates hit their own targets more often than tokens one or two off."""
    shifts = (-2, -1, 0, 1, 2)
    hits = dict.fromkeys(shifts, 0)
    labelled = [sequence.labels for sequence in sequences if sequence.labels is not None and len(sequence.labels) > 4]
    for labels in labelled:
        best = labels.top_ids[2:-2, : max(labels.k // 4, 1)]
        for shift in shifts:
            tokens = labels.token_ids[2 + shift : len(labels) - 2 + shift]
            hits[shift] += int((best == tokens[:, None]).any(axis=1).sum())
    if labelled and hits[0] <= max(hits[shift] for shift in shifts if shift):
        counts = ", ".join(f"{shift:+}: {count}" for shift, count in hits.items())
        raise ForeignDataError(
            "The distributions do not fit their own tokens best, so the set is shifted, or its ids are of another "
            f"tokenizer (hits of the best candidates by shift: {counts})."
        )


def lines(files: list[Path], columns: list[str] | None) -> Iterator[dict[str, Any]]:
    """The records of .jsonl and .parquet files, with these columns or all. Raises ForeignDataError."""
    for file in files:
        with mapped(file):
            if file.suffix == ".jsonl":
                with file.open("rb") as source:
                    yield from (_record(file, number, line) for number, line in enumerate(source, 1) if line.strip())
                continue
            with pq.ParquetFile(file) as parquet:
                missing = set(columns or ()) - set(parquet.schema_arrow.names)
                if missing:
                    raise ForeignDataError(f"{file} has no column {sorted(missing)[0]}: it is of an older format.")
                for batch in parquet.iter_batches(batch_size=16, columns=columns):
                    yield from batch.to_pylist()


def _record(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ForeignDataError(f"Line {number} of {file} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise ForeignDataError(f"Line {number} of {file} is no JSON object.")
    return record
