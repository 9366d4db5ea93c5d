"""One Delta table of ours: which files it has at which version, and commits that add and remove files at once.

The table is opened again for each commit (a kept handle grows slow), and the commit's own log entry is synced, since
the library leaves that to the operating system. File lists come from the log, never from a listing of the folder.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction, Transaction

from storage import log_sums
from storage.data_files import Written, sync_folder
from storage.errors import TableDamaged, VersionNotFound, mapped

NOTE = "potstill"
"""The key of our note in a commit's own information."""
ADDED = "potstill.added"
"""Marks a column in the table's schema that files written before it lack."""
STATISTICS = ("key", "run_id", "prompt_id", "collected_at")
LONGEST_BOUND = 128
"""A longer string is no good bound in a log that every reader loads; the file's own statistics have it."""


@dataclass(frozen=True, slots=True)
class LoggedFile:
    """A data file as the log knows it; `relative` is its path under the table."""

    path: Path
    relative: str
    rows: int
    size: int
    partition: str | None
    first: datetime | None  # collected_at
    last: datetime | None


@dataclass(frozen=True, slots=True)
class NewFile:
    """A finished file to be registered, with the statistics that the log keeps of it."""

    written: Written
    partition: str | None
    statistics: dict[str, Any]


class DeltaLog:
    """The log of one Delta table under `root`, partitioned by `partition` or by nothing."""

    def __init__(self, root: Path, schema: pa.Schema, partition: str | None = None) -> None:
        self.root = root
        self.schema = schema
        self.partition = partition
        self._listed: tuple[DeltaTable, int, list[LoggedFile]] | None = None
        self._newest: tuple[DeltaTable, tuple[int, ...]] | None = None

    def create(self, configuration: Mapping[str, str]) -> None:
        """Create the table; one that is there already is left as it is."""
        DeltaTable.create(
            self.root,
            self.schema,
            mode="ignore",
            partition_by=[self.partition] if self.partition else None,
            configuration=dict(configuration) | {"delta.enableExpiredLogCleanup": "false"},
            raise_if_key_not_exists=False,
        )
        self._sync(0)
        for folder in (self.root, self.root.parent):
            sync_folder(folder)

    def exists(self) -> bool:
        """Whether the first log entry is there."""
        return (self.root / "_delta_log" / f"{0:020}.json").is_file()

    def open(self, version: int | None = None) -> DeltaTable:
        """The table at `version` or at its newest. Raises VersionNotFound or TableDamaged.

        The newest is read once, and again when there is another entry after it or its own is not the same file.
        """
        try:
            with mapped(self.root):
                if version is not None:
                    return DeltaTable(self.root, version=version)
                if self._newest is None or self._newest[1] != self._last_entry(self._newest[0].version()):
                    opened = DeltaTable(self.root)
                    entry = self._last_entry(opened.version())
                    self._newest = None if entry is None else (opened, entry)
                    return opened
                return self._newest[0]
        except TableDamaged as error:
            if version is None or not isinstance(error.__cause__, DeltaError):
                raise
            newest = DeltaTable(self.root).version()
            raise VersionNotFound(
                f"{self.root.parent} has no version {version}: its versions are 0 to {newest}."
            ) from error

    def _last_entry(self, version: int) -> tuple[int, ...] | None:
        """Which file the log's last entry is, if that of `version` is the last."""
        entry, after = (self.root / "_delta_log" / f"{number:020}.json" for number in (version, version + 1))
        if after.exists() or not entry.exists():
            return None
        found = entry.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def add_columns(self, table: DeltaTable) -> None:
        """Give an older table, just opened, the columns that were added since, in a commit of their own."""
        known = {field.name for field in table.schema().fields}
        added = [field.with_metadata({ADDED: "true"}) for field in self.schema if field.name not in known]
        if added:
            self._newest = None
            table.alter.add_columns(Schema.from_arrow(pa.schema(added)).fields)
            table.update_incremental()
            self._sync(table.version())

    def may_lack_columns(self, table: DeltaTable) -> bool:
        """Whether files of an opened table may lack columns of the schema: they or the whole table may be older."""
        fields = {field.name: field.metadata for field in table.schema().fields}
        return any(name not in fields or ADDED in fields[name] for name in self.schema.names)

    def files(self, table: DeltaTable) -> list[LoggedFile]:
        """The files of an opened table. Raises TableDamaged where the log names a path outside of it."""
        if self._listed is None or self._listed[0] is not table or self._listed[1] != table.version():
            self._listed = table, table.version(), self._list(table)
        files = self._listed[2]
        self._check_inside([file.relative for file in files])
        return list(files)

    def _list(self, table: DeltaTable) -> list[LoggedFile]:
        actions = pa.table(table.get_add_actions(flatten=True))
        empty = [None] * actions.num_rows
        columns = {name: actions.column(name).to_pylist() for name in actions.schema.names if _wanted(name)}
        partitions = columns.get(f"partition.{self.partition}", empty)
        firsts, lasts = columns.get("min.collected_at", empty), columns.get("max.collected_at", empty)
        return [
            LoggedFile(self.root / unquote(path), path, rows, size, partition, first, last)
            for path, rows, size, partition, first, last in zip(
                columns["path"],
                columns["num_records"],
                columns["size_bytes"],
                partitions,
                firsts,
                lasts,
                strict=True,
            )
        ]

    def added(self) -> dict[str, int]:
        """Relative path of each file that any version has named → the first version that did; the log is never cut."""
        first: dict[str, int] = {}
        for version, line in self._lines():
            if "add" in line:
                first.setdefault(unquote(line["add"]["path"]), version)
        return first

    def notes(self) -> dict[int, dict[str, Any]]:
        """Version → the note that its commit carries, of those that carry one."""
        found = {version: line["commitInfo"].get(NOTE) for version, line in self._lines() if "commitInfo" in line}
        return {version: note for version, note in found.items() if note is not None}

    def versions(self) -> Iterator[tuple[int, datetime, str]]:
        """Number, time and operation of each commit: our note's, or create or append."""
        for version, line in self._lines():
            if "commitInfo" in line:
                info = line["commitInfo"]
                operation = info.get(NOTE, {}).get("operation") or ("append" if version else "create")
                yield version, datetime.fromtimestamp(info["timestamp"] / 1000, UTC), operation

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for entry in sorted((self.root / "_delta_log").glob("[0-9]*[0-9].json")):
            for line in entry.read_text("utf-8").splitlines():
                yield int(entry.stem), json.loads(line)

    def _check_inside(self, relatives: Sequence[str]) -> None:
        """No path of the log may leave the table, neither by its words nor by a link, the file's or its folder's."""
        folders: set[str] = set()
        links = set()
        for relative in relatives:
            path = unquote(relative)
            folder, _, name = path.rpartition("/")
            if path.startswith("/") or "://" in path or ".." in path.split("/") or name in ("", "."):
                raise TableDamaged(f"The log of {self.root} names {relative!r}, outside of the table: do not use it.")
            folders.add(folder)
            if (self.root / path).is_symlink():
                links.add(path)
        root = self.root.resolve()
        for place in folders | links:
            if not (self.root / place).resolve().is_relative_to(root):
                raise TableDamaged(f"{self.root / place} is a link out of the table: do not use it.")

    def commit(
        self,
        table: DeltaTable,
        *,
        add: Sequence[NewFile] = (),
        remove: Sequence[LoggedFile] = (),
        transaction: tuple[str, int] | None = None,
        note: Mapping[str, Any] | None = None,
        same_rows: bool = False,
    ) -> int:
        """Add and remove files in one commit on top of `table`, just opened; → the new version, synced to disk.

        `transaction` is (writer, sequence); `note` is kept in the log entry as what was done and why;
        `same_rows` says that readers of changes need not look.
        """
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            RemoveAction(file.relative, not same_rows, now, file.size, self._values(file.partition)) for file in remove
        ]
        actions += [
            AddAction(
                path=file.written.path.relative_to(self.root).as_posix(),
                size=file.written.size,
                partition_values=self._values(file.partition),
                modification_time=now,
                data_change=not same_rows,
                stats=json.dumps(file.statistics),
            )
            for file in add
        ]
        before = table.version()
        self._newest = None  # a handle that commits grows slow: it is not kept
        table.create_write_transaction(
            actions,
            mode="append",
            schema=table.schema(),
            partition_by=[self.partition] if self.partition else None,
            commit_properties=CommitProperties(
                custom_metadata={NOTE: dict(note)} if note else None,
                app_transactions=[Transaction(*transaction)] if transaction else None,
            ),
        )
        table.update_incremental()
        for version in range(before + 1, table.version() + 1):
            self._sync(version)
        return table.version()

    def _values(self, partition: str | None) -> dict[str, str | None]:
        return {self.partition: partition} if self.partition else {}

    def _sync(self, version: int) -> None:
        folder = self.root / "_delta_log"
        descriptor = os.open(folder / f"{version:020}.json", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(folder)
        log_sums.record(self.root, version)


def _wanted(name: str) -> bool:
    return (
        name in ("path", "num_records", "size_bytes") or name.startswith("partition.") or name.endswith("collected_at")
    )


def statistics(table: pa.Table) -> dict[str, Any]:
    """What the log keeps of a file: number of rows and bounds of the columns that prune it."""
    low: dict[str, str] = {}
    high: dict[str, str] = {}
    for name in STATISTICS:
        if name in table.schema.names and table.num_rows:
            bounds = pc.min_max(table.column(name)).as_py()
            if all(len(str(value)) <= LONGEST_BOUND for value in bounds.values()):
                low[name], high[name] = (_bound(bounds[side]) for side in ("min", "max"))
    return {"numRecords": table.num_rows, "minValues": low, "maxValues": high, "nullCount": dict.fromkeys(low, 0)}


def _bound(value: Any) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else str(value)
