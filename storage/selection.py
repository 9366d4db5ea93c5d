"""Which rows a takedown means, and where they lie: whole audit groups, or keys within files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from policies.errors import PolicyError
from policies.identity import Teacher
from storage.compact import read_rows
from storage.delta_log import LoggedFile
from storage.errors import QueryRefused
from storage.query import sql
from storage.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Exactly one of: terms ("id", or "id@version"), teacher ("MODEL[@REVISION][#PATH]"), run id, an SQL condition."""

    terms: str | None = None
    teacher: str | None = None
    run: str | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        """Raises QueryRefused unless exactly one is given."""
        if sum(value is not None for value in (self.terms, self.teacher, self.run, self.where)) != 1:
            raise QueryRefused("Say which rows by exactly one of --terms, --teacher, --run and --where.")

    @property
    def by_group(self) -> bool:
        """Whether audit groups decide, so that no row need be read."""
        return self.terms is not None or self.teacher is not None

    def matches(self, group: dict[str, Any]) -> bool:
        """Whether an audit group, a line of groups/, is meant. Raises QueryRefused for a teacher that is none."""
        if self.terms is not None:
            return any(terms == self.terms or terms.split("@")[0] == self.terms for terms in group["terms"])
        try:
            teacher = Teacher.parse(str(self.teacher))
        except PolicyError as error:
            raise QueryRefused(str(error)) from error
        asked = {"revision": teacher.revision, "served_by": teacher.served_by}
        if "#" in str(self.teacher):
            asked["access_path"] = teacher.access_path
        model = group["model"] if teacher.layers else group["model"].partition("+")[0]  # rows name layers too
        return model == teacher.name and all(value is None or group[name] == value for name, value in asked.items())


@dataclass(frozen=True, slots=True)
class Found:
    """Files that hold selected rows; `keys` of those rows, None where whole groups are meant."""

    files: list[LoggedFile]
    keys: set[str] | None
    rows: int
    runs: list[str]


def find(table: Table, opened: DeltaTable, selection: Selection) -> Found:
    """Look the selected rows up in an opened version of the table."""
    files = table.log.files(opened)
    pinned = table.at(opened)
    if selection.by_group:
        groups = {line["audit_group"] for line in table.groups.read().to_pylist() if selection.matches(line)}
        files = [file for file in files if file.partition in groups]
        runs = _rows(pinned, "DISTINCT run_id", f"audit_group IN ({_quoted(groups)})")["run_id"] if files else []
        return Found(files, None, sum(file.rows for file in files), sorted(runs))
    condition = selection.where if selection.where is not None else f"run_id = {_quoted({str(selection.run)})}"
    # one query: a condition may name what differs from one to the next, as random() does
    found = _rows(pinned, "key, audit_group", condition)
    keys, groups = set(found["key"]), set(found["audit_group"])
    holding = [f for f in files if f.partition in groups and selected(read_rows(f, table.log), keys).true_count]
    return Found(holding, keys, len(keys), [selection.run] if selection.run is not None else [])


def selected(rows: pa.Table, keys: set[str]) -> pa.BooleanArray:
    """Which rows have one of these keys."""
    return pc.is_in(rows.column("key").combine_chunks(), pa.array(sorted(keys), pa.string()))


def selected_rejects(selection: Selection, found: Found) -> Callable[[pa.Table], pa.Array]:
    """Which rejects go with the rows: those of the same runs, or, by SQL, those of the same keys."""
    name, values = ("key", sorted(found.keys or ())) if selection.where is not None else ("run_id", found.runs)
    return lambda rejects: pc.is_in(rejects.column(name).combine_chunks(), pa.array(values, pa.string()))


def _rows(table: Table, columns: str, condition: str) -> dict[str, list[str]]:
    # the line break ends a comment that a condition may end with
    found: dict[str, list[str]] = sql(table, f"SELECT {columns} FROM soft_labels WHERE ({condition}\n)").to_pydict()
    return found


def _quoted(values: set[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in sorted(values))
