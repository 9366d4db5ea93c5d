"""The soft-label table: create, open at a version, append exactly once, and say what is in it from its log.

Appends of one machine take turns by a lock of the operating system: that costs little beside a commit, and it is what
lets two runs that ask the same question never store its answer twice. Readers never wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from policies.identity import Material, Teacher
from storage.archive import Archive
from storage.codec import MANTISSA_BITS, list_values
from storage.data_files import make_folder, write_data_file
from storage.delta_log import DeltaLog, LoggedFile, NewFile, statistics
from storage.errors import NotWritable, TableDamaged, TableNotFound, VersionNotFound, mapped
from storage.journal import Journal
from storage.keys import KeySet
from storage.ledgers import (
    Ledger,
    Reject,
    RunRecord,
    committed_sequence,
    groups_of,
    rejects_to_arrow,
    run_to_arrow,
    runs_from_arrow,
)
from storage.locks import exclusive
from storage.records import Records
from storage.rows import Row, rows_to_arrow
from storage.schema import GROUPS, REJECTS, RUNS, SOFT_LABELS, check_metadata, table_metadata


@dataclass(frozen=True, slots=True)
class Append:
    """What an append did: the version it left, rows written, rows dropped because their key was there."""

    version: int
    written: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class DataFile:
    """One data file of a table version. `tokens` counts targets; `first` and `last` bound collected_at."""

    path: Path
    rows: int
    tokens: int
    size: int
    audit_group: str
    sha256: str
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a table: when it was made, and by what (create, append, compact, takedown, purge)."""

    number: int
    at: datetime
    operation: str


class Table(Records):
    """A soft-label table on disk. Opened at a version it stays there and is not written."""

    def __init__(self, path: Path, version: int | None = None) -> None:
        """Use Table.create, Table.open or Table.open_or_create."""
        super().__init__(path)
        self.path = path
        self.groups = Ledger(path / "groups", GROUPS)
        self.rejects = Ledger(path / "rejects", REJECTS)
        self.run_ledger = Ledger(path / "runs", RUNS)
        self.archive = Archive(path / "archive")
        self.log = DeltaLog(path / "soft_labels", SOFT_LABELS, "audit_group")
        self._pinned = version
        self._pinned_log: DeltaTable | None = None
        self._keys = KeySet()
        self._indexed: set[str] = set()
        self._indexed_version = -1
        self._known_groups: set[str] = set()

    @classmethod
    def create(cls, path: Path | str, *, mantissa_bits: int = MANTISSA_BITS) -> Table:
        """Make an empty table; one that is there already is opened. With 23 `mantissa_bits` nothing is rounded.

        Raises NotWritable or DiskFull.
        """
        root = _local(path)
        table = cls(root)
        with mapped(root):
            make_folder(root)
            with exclusive(root / ".lock"):
                for ledger in (table.groups, table.rejects, table.run_ledger):
                    ledger.log.create(table_metadata(mantissa_bits))
                # last, because this one makes it a table: a kill before leaves nothing half made
                table.log.create(table_metadata(mantissa_bits))
        return cls.open(root)

    @classmethod
    def open(cls, path: Path | str, version: int | None = None) -> Table:
        """Open a table at its newest version, or pinned to `version`.

        Raises TableNotFound, VersionNotFound, SchemaTooNew or TableDamaged.
        """
        table = cls(_local(path), version)
        table._checked()
        return table

    @classmethod
    def open_pinned(cls, path: Path | str, version: int | None = None) -> Table:
        """Open a table at `version`, or at the newest there is now: it stays there, whoever writes meanwhile.

        Raises what `open` raises.
        """
        table = cls(_local(path), version)
        return table.at(table._checked())

    def at(self, opened: DeltaTable) -> Table:
        """The same table, pinned to what is opened of its log, for as long as nothing is committed on top of that."""
        table = Table(self.path, opened.version())
        table._pinned_log = opened
        return table

    def _checked(self) -> DeltaTable:
        _check_links(self.path)
        if not self.log.exists():
            raise TableNotFound(f"There is no soft-label table at {self.path}: `potstill collect` makes one.")
        opened = self._opened()
        check_metadata(opened.metadata().configuration, str(self.path))
        if self._pinned is not None:
            self.check_not_purged()
        return opened

    @classmethod
    def open_or_create(cls, path: Path | str) -> Table:
        """Open the table at `path`, made first when there is none."""
        root = _local(path)
        return cls.open(root) if cls(root).log.exists() else cls.create(root)

    def check_not_purged(self) -> None:
        """Raise VersionNotFound, with the reason, when files of this version were removed by `compact --purge`."""
        if all(file.path.is_file() for file in self.files()):
            return
        purges = {version: note for version, note in self.log.notes().items() if note["operation"] == "purge"}
        for version, note in sorted(purges.items()):
            if self.version < version:
                raise VersionNotFound(
                    f"Version {self.version} of {self.path} can no longer be read: the bytes of removed rows were "
                    f"purged on {note['at'][:10]}; version {version} and later ones can."
                )

    @property
    def version(self) -> int:
        """The version this table is pinned to, or the newest there is."""
        return self._opened().version()

    @property
    def mantissa_bits(self) -> int:
        """To how many mantissa bits log-probabilities are rounded."""
        return check_metadata(self._opened().metadata().configuration, str(self.path))

    def _opened(self) -> DeltaTable:
        if self._pinned is None:
            return self.log.open()
        if self._pinned_log is None:  # a version never changes
            self._pinned_log = self.log.open(self._pinned)
        return self._pinned_log

    # -- writing ----------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[Row], *, writer: str, sequence: int) -> Append:
        """Add rows in one commit, exactly once for each (writer, sequence); sequences of a writer must rise.

        Rows whose key the table has, or that repeat a key, are dropped and counted. They are durable on return.
        Raises InvalidRow, NotWritable, DiskFull; then nothing of this batch is in the table.
        """
        with self.writing():
            opened = self.log.open()
            if committed_sequence(opened, writer) >= sequence:
                return Append(opened.version(), 0, len(rows))
            self._index(opened)
            fresh = self._fresh(rows)
            bits = check_metadata(opened.metadata().configuration, str(self.path))
            self.log.add_columns(opened)
            files = self.new_files(fresh, bits)
            before = opened.version()
            version = self.log.commit(opened, add=files, transaction=(writer, sequence))
            self._keys.add(row.key for row in fresh)
            self._indexed.update(file.written.path.name for file in files)
            self._indexed_version = version if version == before + 1 else -1
            return Append(version, len(fresh), len(rows) - len(fresh))

    def _fresh(self, rows: Sequence[Row]) -> list[Row]:
        once: dict[str, Row] = {}
        for row in rows:
            once.setdefault(row.key, row)
        return [row for key, row in once.items() if key not in self._keys]

    def new_files(self, rows: Sequence[Row], mantissa_bits: int) -> list[NewFile]:
        """Rows as finished files, one for each audit group, to be registered while the table is held for writing."""
        if not rows:
            return []
        table = rows_to_arrow(rows, mantissa_bits=mantissa_bits)
        self._add_groups(rows)
        files = []
        for group in sorted(set(table.column("audit_group").to_pylist())):
            part = table.filter(pc.equal(table.column("audit_group"), group)).combine_chunks()
            folder = self.log.root / f"audit_group={group}"
            files.append(NewFile(write_data_file(folder, part, f"{count_tokens(part)}t-"), group, statistics(part)))
        return files

    def _add_groups(self, rows: Sequence[Row]) -> None:
        groups = groups_of(rows)
        names = set(groups.column("audit_group").to_pylist())
        if names <= self._known_groups:
            return
        self._known_groups = set(self.groups.read().column("audit_group").to_pylist())
        unknown = [name not in self._known_groups for name in groups.column("audit_group").to_pylist()]
        self.groups.append(groups.filter(pa.array(unknown)))
        self._known_groups |= names

    def append_rejects(self, rejects: Sequence[Reject], *, writer: str, sequence: int) -> int:
        """Keep rejects, exactly once for each (writer, sequence); → how many were written now."""
        with self.writing():
            return self.rejects.append(rejects_to_arrow(rejects), (writer, sequence))

    def archive_batch(self, journal: Journal, *, writer: str, sequence: int) -> int:
        """Keep the raw responses of a journal's batch, exactly once for each (writer, sequence); → how many are new."""
        with self.writing():
            return self.archive.append(journal.packed(sequence), writer, sequence)

    def save_run(self, run: RunRecord) -> None:
        """Keep a run's record in place of the one before."""
        with self.writing():
            self.run_ledger.replace(run_to_arrow(run), "run_id", run.run_id)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the table for writing, waiting for whoever has it; errors of the disk are mapped.

        Raises NotWritable for a pinned table.
        """
        if self._pinned is not None:
            raise NotWritable(f"{self.path} was opened at version {self._pinned}: open it without one to write.")
        with mapped(self.path), exclusive(self.path / ".lock"):
            yield

    # -- reading ----------------------------------------------------------------------------------------------------

    def committed_sequence(self, writer: str) -> int:
        """The last sequence of this writer whose rows are in the table, −1 when none."""
        return committed_sequence(self._opened(), writer)

    def runs(self) -> list[RunRecord]:
        """All runs that wrote here, in the order of their start."""
        return runs_from_arrow(self.run_ledger.read())

    def keys(self) -> KeySet:
        """The keys of all rows; kept between calls, so that only new files are read."""
        with mapped(self.path):
            self._index(self._opened())
        return self._keys

    def _index(self, opened: DeltaTable) -> None:
        if opened.version() == self._indexed_version:
            return
        files = {file.path.name: file for file in self.log.files(opened)}
        if not self._indexed <= files.keys():  # rows were taken down or files compacted: what is gone must go here too
            self._keys, self._indexed = KeySet(), set()
        new = [file for name, file in files.items() if name not in self._indexed]
        self._keys.add_columns(_key_column(file) for file in new)
        self._indexed.update(file.path.name for file in new)
        self._indexed_version = opened.version()

    def files(self) -> list[DataFile]:
        """The data files of this version by the log, in order of path."""
        with mapped(self.path):
            logged = self.log.files(self._opened())
        return [_data_file(file) for file in sorted(logged, key=lambda file: file.relative)]

    def files_to_query(self) -> tuple[list[LoggedFile], bool]:
        """The data files of this version; and whether some may be older than a column of the schema."""
        with mapped(self.path):
            opened = self._opened()
            return self.log.files(opened), self.log.may_lack_columns(opened)

    def versions(self) -> list[Version]:
        """All versions so far, oldest first."""
        with mapped(self.path):
            return [Version(number, at, what) for number, at, what in self.log.versions()]

    def sql(self, query: str, *, seconds: float = 600.0, memory_mb: int = 2048) -> pa.Table:
        """Run one SELECT over this version; see storage.query.sql."""
        from storage.query import sql  # it stands on this module

        return sql(self, query, seconds=seconds, memory_mb=memory_mb)

    def materials(self) -> list[Material]:
        """What an audit has to judge: one Material per audit group of this version, from groups/ and the log alone."""
        by_group: dict[str, list[DataFile]] = {}
        for file in self.files():
            by_group.setdefault(file.audit_group, []).append(file)
        groups = {line["audit_group"]: line for line in self.groups.read().to_pylist()}
        return [_material(groups[group], files) for group, files in sorted(by_group.items())]


def _local(path: Path | str) -> Path:
    if "://" in str(path):
        raise NotWritable(f"{path}: object storage is not supported: give a local folder.")
    root = Path(path).absolute()
    with mapped(root):
        if root.exists() and not root.is_dir():
            raise NotWritable(f"{root} is a file: choose a folder for the table, or a path that does not exist.")
    return root


def _check_links(root: Path) -> None:
    """No part of a table may be a link out of it: what is written there would leave it."""
    with mapped(root):
        for part in root.iterdir() if root.is_dir() else ():
            if part.is_symlink() and not part.resolve().is_relative_to(root.resolve()):
                raise TableDamaged(f"{part} is a link out of the table: do not use it.")


def count_tokens(table: pa.Table) -> int:
    """Targets of all rows together."""
    offsets, _ = list_values(table.column("token_ids"))
    return int(offsets[-1] - offsets[0])


def _key_column(file: LoggedFile) -> pa.ChunkedArray:
    with mapped(file.path), pq.ParquetFile(file.path, page_checksum_verification=True) as source:
        return source.read(columns=["key"], use_threads=False).column("key")


def _data_file(file: LoggedFile) -> DataFile:
    tokens, sha256 = file.path.stem.split("t-")
    assert file.partition is not None and file.first is not None and file.last is not None
    return DataFile(file.path, file.rows, int(tokens), file.size, file.partition, sha256, file.first, file.last)


def _material(group: dict[str, Any], files: list[DataFile]) -> Material:
    return Material(
        teacher=Teacher(
            model=group["model"],
            revision=group["revision"],
            access_path=group["access_path"],
            served_by=group["served_by"],
        ),
        signal=group["signal"],
        prompt_licence=group["prompt_licence"],
        terms=tuple(group["terms"]),
        rows=sum(file.rows for file in files),
        tokens=sum(file.tokens for file in files),
        collected_from=min(file.first for file in files).date(),
        collected_to=max(file.last for file in files).date(),
    )
