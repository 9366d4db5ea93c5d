"""Rows that may not be kept: gone from the current version, with a record of what went and why, and how far it got.

By terms or teacher whole audit groups go, without a look at the labels; by run or SQL the files that hold the rows are
written again without them, in the same commit. Journals, rejects and the archive lose what belongs to the same runs or
keys.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from deltalake import DeltaTable

from storage.compact import new_data_file, read_rows
from storage.delta_log import LoggedFile, NewFile
from storage.journal import Journal, journal_keys
from storage.selection import Found, Selection, find, selected, selected_rejects
from storage.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Takedown:
    """What a takedown removed, or would remove, and what the removed rows had reached.

    `versions` are the first and last table version that held such rows; `trainings` (digests) read one of these and
    made `students`, with `checkpoints` on the way that are still there. `record` is the digest in takedowns/, None for
    a dry run and when there was nothing to remove.
    """

    version: int
    rows: int
    groups: tuple[str, ...]
    runs: tuple[str, ...]
    rejects: int
    responses: int
    archived: int
    versions: tuple[int, int] | None
    trainings: tuple[str, ...]
    students: tuple[str, ...]
    checkpoints: tuple[str, ...]
    record: str | None


def takedown(path: Path | str, selection: Selection, *, reason: str, dry_run: bool = False) -> Takedown:
    """Remove the selected rows; with `dry_run` only say what would go and what it reached.

    It may be repeated when it was cut short: rows go last. Raises RunHeld when a run that must lose its journal is at
    work, QueryRefused or QueryFailed for a condition that is none.
    """
    table = Table.open(path)
    with ExitStack() as held:
        held.enter_context(table.writing())
        opened = table.log.open()
        found = find(table, opened, selection)
        note = {"operation": "takedown", "selection": asdict(selection), "reason": reason}
        note["at"] = datetime.now(UTC).isoformat()
        responses = _journals(held, table, selection, found, dry_run)
        rejects = table.rejects.remove(selected_rejects(selection, found), note, dry_run)
        archived = table.archive.remove(selected_rejects(selection, found), note, dry_run)
        versions, version, record = _versions(table, opened, found), opened.version(), None
        if not dry_run and (found.rows or rejects or responses or archived):
            if found.rows:
                rest = [_without(table, file, found.keys) for file in found.files]
                add = [file for file in rest if file is not None]
                version = table.log.commit(opened, add=add, remove=found.files, note=note)
            counts = {"rows": found.rows, "rejects": rejects, "responses": responses, "archived": archived}
            counts["version"] = version
            rows = {"groups": _groups(found), "keys": sorted(found.keys or ())}
            record = table.save_takedown(note | counts | rows)
        trainings, students = _reached(table, versions)
        checkpoints = tuple(name for student in students for name in _checkpoints(Path(student), versions))
    return Takedown(
        version=version,
        rows=found.rows,
        groups=tuple(_groups(found)),
        runs=tuple(found.runs),
        rejects=rejects,
        responses=responses,
        archived=archived,
        versions=versions,
        trainings=trainings,
        students=students,
        checkpoints=checkpoints,
        record=record,
    )


def _reached(table: Table, versions: tuple[int, int] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Digests of the trainings that read one of these versions, and where their students lie."""
    trainings = {digest: table.training(digest) for digest in table.listed("trainings")}
    reached = {digest: t for digest, t in trainings.items() if versions and _within(t.get("table_version"), versions)}
    return tuple(sorted(reached)), tuple(sorted({_student(training) for training in reached.values()}))


def _groups(found: Found) -> list[str]:
    return sorted({str(file.partition) for file in found.files})


def _without(table: Table, file: LoggedFile, keys: set[str] | None) -> NewFile | None:
    if keys is None:
        return None
    rows = read_rows(file, table.log)
    kept = rows.filter(pc.invert(selected(rows, keys)))
    return new_data_file(table, kept, file.partition) if kept.num_rows else None


def _journals(held: ExitStack, table: Table, selection: Selection, found: Found, dry_run: bool) -> int:
    """Hold the journals that must lose responses, and remove those; → how many."""
    folder = table.path / "journal"
    keys = found.keys if selection.where is not None else None
    names = [p.stem for p in sorted(folder.glob("*.sqlite")) if selection.where is not None or p.stem in found.runs]
    if dry_run:
        there = [journal_keys(folder / f"{name}.sqlite") for name in names]
        return sum(len(here if keys is None else here & keys) for here in there)
    journals = [held.enter_context(Journal.open(folder, name)) for name in names]
    return sum(journal.discard(keys) for journal in journals)


def _versions(table: Table, opened: DeltaTable, found: Found) -> tuple[int, int] | None:
    """From the first version that named a file of the same groups: a row may have been in another file before."""
    folders = tuple(f"audit_group={group}/" for group in _groups(found))
    first = [version for name, version in table.log.added().items() if folders and name.startswith(folders)]
    return (min(first), opened.version()) if first else None


def _within(version: object, versions: tuple[int, int]) -> bool:
    return isinstance(version, int) and versions[0] <= version <= versions[1]


def _student(training: dict[str, Any]) -> str:
    config = training.get("config")
    return str(config.get("out", "unnamed")) if isinstance(config, dict) else "unnamed"


def _checkpoints(student: Path, versions: tuple[int, int] | None) -> list[str]:
    """Checkpoints beside a student that name a table version within these; one that cannot be read counts too."""
    found = []
    for file in sorted(student.glob("checkpoint-*/potstill.json")):
        with suppress(OSError, ValueError):
            version = json.loads(file.read_text("utf-8")).get("table_version")
            if versions is None or not _within(version, versions):
                continue
        found.append(str(file.parent))
    return found
