"""Does the table still hold what was written? Every byte against the checksum in its name, every row against its rules.

Reads everything once, a row group at a time. Beside it `repair`, which removes what killed writers left behind.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage import log_sums
from storage.delta_log import LoggedFile
from storage.errors import InvalidRecord, StorageError, mapped
from storage.invariants import KEY, column_problem
from storage.keys import KeySet
from storage.ledgers import Ledger
from storage.locks import exclusive
from storage.schema import check_metadata, is_soft_labels
from storage.table import DataFile, Table
from storage.vocabulary import vocabulary_size


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it was written; `path` is relative to the table."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What verify read, and what it found."""

    version: int
    """−1 where the log is too damaged to be read."""
    files: int
    rows: int
    problems: tuple[Problem, ...]
    leftovers: tuple[str, ...]
    """Files that no version names, of writers that were killed: harmless, `repair` removes them."""


def verify(path: Path | str, version: int | None = None) -> Verification:
    """Check every file and row of a table version, its logs, and the ledgers and records beside it.

    Raises only what opening the table raises while its logs are whole; all else is reported by name.
    """
    damaged = tuple(_logs(Table(Path(path).absolute())))
    try:
        found = _verify(path, version)
    except Exception as error:
        if not damaged:
            raise
        # what a damaged log says may fail anywhere
        rest = Problem("soft_labels", f"nothing else could be checked: {error}")
        return Verification(-1, 0, 0, (*damaged, rest), ())
    return replace(found, problems=(*damaged, *found.problems))


def _verify(path: Path | str, version: int | None) -> Verification:
    table = Table.open_pinned(path, version)
    files = table.files()
    groups = _ledgers(table, table.groups)
    others = _ledgers(table, table.rejects, table.run_ledger)
    checker = _RowChecker(table, None if groups else table.groups.read().to_pylist())
    problems = [problem for file in files for problem in checker.file(file)] + groups + others
    problems += [problem for file in table.archive.files() for problem in _archived(table, file)]
    problems += _records(table)
    leftovers = tuple(sorted(file.relative_to(table.path).as_posix() for file in _leftovers(table)))
    return Verification(table.version, len(files), sum(f.rows for f in files), tuple(problems), leftovers)


def _ledgers(table: Table, *ledgers: Ledger) -> list[Problem]:
    files = [file for ledger in ledgers for file in ledger.log.files(ledger.log.open())]
    return [problem for file in files for problem in _bytes(table.path, file)]


def _logs(table: Table) -> Iterator[Problem]:
    for log in (table.log, table.groups.log, table.rejects.log, table.run_ledger.log):
        for name, what in log_sums.damaged(log.root):
            yield Problem(f"{log.root.name}/{name}", what)


def repair(path: Path | str) -> list[str]:
    """Remove files that no version of the table names, while no writer is at work; → their paths under the table."""
    table = Table.open(path)
    with mapped(table.path), exclusive(table.path / ".lock"):
        found = sorted(_leftovers(table))
        for file in found:
            file.unlink()
    return [file.relative_to(table.path).as_posix() for file in found]


def _leftovers(table: Table) -> Iterator[Path]:
    archive = [table.archive.log] if table.archive.exists() else []
    for log in (table.log, table.groups.log, table.rejects.log, table.run_ledger.log, *archive):
        named = {log.root / name for name in log.added()}
        yield from (
            file for file in log.root.rglob("*.parquet") if "_delta_log" not in file.parts and file not in named
        )
    yield from table.path.rglob(".*.partial")


def _records(table: Table) -> Iterator[Problem]:
    for digest in table.listed("decisions"):
        yield from _readable(f"decisions/{digest}", lambda digest=digest: table.decision(digest))
    for digest in table.listed("bundles"):
        yield from _readable(f"bundles/{digest}", lambda digest=digest: table.bundle(digest))
    for digest in table.listed("tokenizers"):
        yield from _readable(f"tokenizers/{digest}", lambda digest=digest: table.tokenizer(digest))
    for digest in table.listed("trainings"):
        yield from _readable(f"trainings/{digest}", lambda digest=digest: table.training(digest))
    for digest in table.listed("doubts"):
        yield from _readable(f"doubts/{digest}", lambda digest=digest: table.doubt(digest))
    for digest in table.listed("takedowns"):
        yield from _readable(f"takedowns/{digest}", lambda digest=digest: table.takedown(digest))


def _readable(name: str, read: Any) -> Iterator[Problem]:
    try:
        read()
    except StorageError as error:
        yield Problem(name, str(error))


def _bytes(root: Path, file: LoggedFile | DataFile) -> list[Problem]:
    name = file.path.relative_to(root).as_posix()
    if not file.path.is_file():
        return [Problem(name, "the file is missing")]
    with file.path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    if digest != file.path.stem.split("t-")[-1]:
        return [Problem(name, f"its content has another checksum than its name says ({digest[:12]}…)")]
    return []


def _archived(table: Table, file: LoggedFile) -> list[Problem]:
    """What is wrong with a file of the archive: its bytes, or a body that is not the one that its row names."""
    damaged = _bytes(table.path, file)
    if damaged:
        return damaged
    try:
        deque(table.archive.responses(file), maxlen=0)
    except (StorageError, pa.ArrowException, OSError) as error:
        return [Problem(file.path.relative_to(table.path).as_posix(), str(error))]
    return []


def _readable_takedowns(table: Table) -> list[dict[str, Any]]:
    found = []
    for digest in table.listed("takedowns"):
        with suppress(InvalidRecord):  # reported with the other records
            found.append(table.takedown(digest))
    return found


def _time(record: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(record["at"])


class _RowChecker:
    """Checks data files, and keys across them; against the lines of groups/ where these can be read."""

    def __init__(self, table: Table, groups: list[dict[str, Any]] | None) -> None:
        self._table = table
        self._keys = KeySet()
        self._groups = None if groups is None else {line["audit_group"]: line for line in groups}
        self._vocabularies: dict[str, int | None] = {}
        takedowns = _readable_takedowns(table)
        self._gone = {key: _time(record) for record in takedowns for key in record["keys"]}
        whole = [record for record in takedowns if not record["keys"]]
        self._gone_groups = {group: _time(record) for record in whole for group in record["groups"]}

    def file(self, file: DataFile) -> list[Problem]:
        """What is wrong with one file; its rows are looked at only when its bytes are right."""
        damaged = _bytes(self._table.path, file)
        if damaged:
            return damaged
        name = file.path.relative_to(self._table.path).as_posix()
        try:
            return [Problem(name, what) for what in self._content(file)]
        except (StorageError, pa.ArrowException, OSError, ValueError) as error:
            return [Problem(name, f"it cannot be read: {error}")]

    def _content(self, file: DataFile) -> Iterator[str]:
        with pq.ParquetFile(file.path) as source:
            metadata = {k.decode(): v.decode() for k, v in (source.schema_arrow.metadata or {}).items()}
            bits = check_metadata(metadata, file.path.name)
            if not is_soft_labels(source.schema_arrow):
                yield "its columns are not those of the schema"
                return
            rows = tokens = 0
            for number in range(source.num_row_groups):
                part = source.read_row_group(number)
                rows += part.num_rows
                tokens += int(np.sum([len(c.values) for c in part.column("token_ids").chunks]))
                what = self._rows(part, file.audit_group, bits)
                if what is not None:
                    yield what
        if (rows, tokens) != (file.rows, file.tokens):
            yield f"it holds {rows} rows and {tokens} tokens, not the {file.rows} and {file.tokens} that the log says"

    def _rows(self, part: pa.Table, group: str, bits: int) -> str | None:
        keys = part.column("key")
        if not all(KEY.fullmatch(key) for key in keys.to_pylist()):
            return "a key is no sha256"
        before = len(self._keys)
        self._keys.add_columns([keys])
        if len(self._keys) - before != part.num_rows:
            return "a key occurs twice in the table"
        times = part.column("collected_at").to_pylist()
        for key, time in zip(keys.to_pylist(), times, strict=True) if self._gone or group in self._gone_groups else ():
            gone = self._gone.get(key) or self._gone_groups.get(group)
            if gone is not None and time < gone:
                return f"row {key[:12]} was taken down on {gone:%Y-%m-%d} and is here again"
        return self._group(part, group) or column_problem(part, bits, self._vocabulary)

    def _group(self, part: pa.Table, group: str) -> str | None:
        if self._groups is None:
            return None
        facts = self._groups.get(group)
        if facts is None:
            return f"its audit group {group} is not in groups/"
        if set(part.column("audit_group").to_pylist()) != {group}:
            return "a row belongs to another audit group than its partition"
        teachers = part.column("teacher").combine_chunks()
        for name in ("model", "revision", "access_path", "served_by"):
            if set(teachers.field(name).to_pylist()) != {facts[name]}:
                return f"the {name} of a teacher is not that of its audit group"
        if set(part.column("prompt_licence").to_pylist()) != {facts["prompt_licence"]}:
            return "a prompt_licence is not that of its audit group"
        if {tuple(sorted(terms)) for terms in part.column("terms").to_pylist()} != {tuple(facts["terms"])}:
            return "the terms of a row are not those of its audit group"
        return None

    def _vocabulary(self, tokenizer: str) -> int | None:
        if tokenizer not in self._vocabularies:
            there = tokenizer in self._table.listed("tokenizers")
            self._vocabularies[tokenizer] = vocabulary_size(self._table.tokenizer(tokenizer)) if there else None
        return self._vocabularies[tokenizer]
