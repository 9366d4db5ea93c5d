"""Checksums of the files of a Delta log, which the format itself does without: one line each, as `sha256sum -c` reads.

A line follows its commit, so a kill in between leaves the newest entry without one; the next commit makes up for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from storage.data_files import sync_folder

SUMS = "_log.sha256"
_LOG = "_delta_log"
_HINT = "_last_checkpoint"
_LINE = re.compile(rf"([0-9a-f]{{64}})  (({_LOG}/)(?:(\d{{20}})\.(?:json|checkpoint\.parquet)|{_HINT}))")


def record(root: Path, version: int) -> None:
    """Add what is missing up to `version`: entries, and the checkpoints made with them; durable on return."""
    path = root / SUMS
    is_new = not path.exists()
    with path.open("a+b") as sums:
        sums.seek(max(sums.tell() - 4096, 0))
        recorded = _last(sums.read())
        lines = [line for number in range(recorded + 1, version + 1) for line in _lines(root, number)]
        sums.write("".join(lines).encode())
        sums.flush()
        os.fsync(sums.fileno())
    if is_new:
        sync_folder(root)


def _last(text: bytes) -> int:
    """The newest entry that has a line, −1 for none."""
    found = [int(match[4]) for match in _LINE.finditer(text.decode("ascii", "replace")) if match[4]]
    return max(found, default=-1)


def _lines(root: Path, version: int) -> Iterator[str]:
    checkpoint = f"{version:020}.checkpoint.parquet"
    names = [checkpoint, _HINT] if (root / _LOG / checkpoint).is_file() else []
    for name in [*names, f"{version:020}.json"]:
        yield f"{_sum(root / _LOG / name)}  {_LOG}/{name}\n"


def _sum(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def damaged(root: Path) -> Iterator[tuple[str, str]]:
    """Files of the log that are not what their line says, relative to `root`, and what is wrong with each."""
    path = root / SUMS
    expected: dict[str, str] = {}
    # a table of an earlier potstill has no sums before its next commit
    for line in path.read_bytes().decode("ascii", "replace").split("\n")[:-1] if path.is_file() else ():
        match = _LINE.fullmatch(line)
        if match is None:
            yield SUMS, f"it was altered: {line[:100]!r} is no line of it"
        else:
            expected[match[2]] = match[1]  # the hint is written again with each checkpoint
    for name, digest in expected.items():
        if not (root / name).is_file():
            yield name, f"it is missing, though {SUMS} lists it"
        elif _sum(root / name) != digest:
            yield name, f"its content has another checksum than {SUMS} says: one of the two was altered"
    yield from _unreadable(root, set(expected))


def _unreadable(root: Path, known: set[str]) -> Iterator[tuple[str, str]]:
    """Entries that have no line yet: each must be JSON and follow the one before."""
    entries = sorted(entry for entry in (root / _LOG).glob("*.json") if entry.stem.isdigit())
    for number, entry in enumerate(entries):
        name = f"{_LOG}/{entry.name}"
        if int(entry.stem) != number:
            yield name, f"it is entry {int(entry.stem)} of the log, but entry {number} is missing"
            return
        if name not in known:
            try:
                actions = [json.loads(line) for line in entry.read_bytes().splitlines()]
            except ValueError:
                actions = []
            if not actions:
                yield name, "it is no log entry: remove it if no version is missed, or restore it"
