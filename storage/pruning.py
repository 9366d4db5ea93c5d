"""Which data files a query can need, by what its WHERE says of the teacher and of collected_at; the rest stay closed.

The log knows the audit group and the times of each file, groups/ what the group stands for. DuckDB itself judges the
conditions, on one line for each file, so they mean here what they mean there. What is not plainly such a condition
leaves every file in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from storage.delta_log import LoggedFile
from storage.errors import StorageError
from storage.schema import TIME

_OF_GROUP = ("model", "revision", "access_path", "served_by")
_LINES = pa.schema(
    [
        ("number", pa.int32()),
        *((name, pa.string()) for name in ("audit_group", *_OF_GROUP)),
        ("low", TIME),
        ("high", TIME),
    ]
)
_PURE = {"~~", "!~~", "~~*", "!~~*", "contains", "starts_with", "lower", "upper"}
"""Functions that give the same for every row of a group; ~~ and its like are LIKE."""
_CLASSES = {"COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CAST", "TYPE", "FUNCTION"}
_LESS = {"COMPARE_LESSTHAN", "COMPARE_LESSTHANOREQUALTO"}
_GREATER = {"COMPARE_GREATERTHAN", "COMPARE_GREATERTHANOREQUALTO"}
Node = dict[str, Any]


class _Other(Exception):
    """A condition that depends on more than the group of a row, or on its time in another way than by comparison."""


def files_wanted(
    connection: Any, nodes: Sequence[Node], views: set[str], files: Sequence[LoggedFile], groups: Callable[[], pa.Table]
) -> list[LoggedFile]:
    """Those of `files` that may hold rows for a query, given by the nodes of its syntax tree and the views of labels.

    `groups` reads groups/; it is called when a condition is on the teacher.
    """
    conditions = list(_conditions(nodes, views)) if len(files) > 1 else []
    if not conditions:
        return list(files)
    of_teacher = any(name in _OF_GROUP for condition in conditions for name in _names(condition))
    try:
        known = {line["audit_group"]: line for line in groups().to_pylist()} if of_teacher else None
    except StorageError:  # the rows stay readable without groups/, only more slowly; `verify` says what is wrong there
        return list(files)
    lines, unknown = [], set()
    for number, file in enumerate(files):
        group = {"audit_group": file.partition} if known is None else known.get(str(file.partition))
        if group is None or file.first is None or file.last is None:
            unknown.add(number)  # a damaged table: `verify` says so, a query reads it
        else:
            facts = {name: group.get(name) for name in ("audit_group", *_OF_GROUP)}
            lines.append(facts | {"number": number, "low": file.first, "high": file.last})
    found = unknown | _judged(connection, conditions, pa.Table.from_pylist(lines, schema=_LINES))
    return [file for number, file in enumerate(files) if number in found]


def _judged(connection: Any, conditions: Sequence[Node], lines: pa.Table) -> set[int]:
    """Numbers of the lines for which all conditions are true; all of them where DuckDB cannot tell."""
    connection.register("known_files", lines)
    try:
        frame = json.loads(
            _one(connection, "SELECT json_serialize_sql('SELECT number FROM known_files WHERE a AND b')")
        )
        frame["statements"][0]["node"]["where_clause"]["children"] = list(conditions)
        text = _one(connection, "SELECT json_deserialize_sql(?)", [json.dumps(frame)])
        return {number for (number,) in connection.execute(text).fetchall()}
    except duckdb.Error:  # a date that is none, for one: the query will say so
        return set(lines.column("number").to_pylist())
    finally:
        connection.unregister("known_files")


def _one(connection: Any, text: str, values: Sequence[str] = ()) -> str:
    return str(connection.execute(text, list(values)).fetchall()[0][0])


def _conditions(nodes: Sequence[Node], views: set[str]) -> Iterator[Node]:
    """Conditions on a file's line which every row that the query uses must meet.

    Only where the labels are read in one place, by a SELECT from nothing else: what another part of the query wants
    of them could be more.
    """
    named = [str(node.get("table_name", "")).strip('"').lower() for node in nodes]
    if sum(name in views for name in named) != 1:
        return
    for node in nodes:
        table = node.get("from_table")
        if node.get("type") != "SELECT_NODE" or not table or table.get("type") != "BASE_TABLE":
            continue
        view, alias = str(table["table_name"]).lower(), str(table["alias"]).lower()
        plain = not (table["sample"] or table["column_name_alias"] or table["at_clause"] or node["sample"])
        if view in views and plain:
            columns = _columns(view, alias or view)
            for part in _parts(node["where_clause"]):
                try:
                    yield from _of_line(part, columns)
                except _Other:
                    continue


def _columns(view: str, alias: str) -> dict[tuple[str, ...], str]:
    """How a query may name a column that a file's line has → its name there."""
    known: dict[tuple[str, ...], str] = {("audit_group",): "audit_group", ("collected_at",): "collected_at"}
    known |= {("teacher", name): name for name in _OF_GROUP} if view == "soft_labels" else {("model",): "model"}
    if alias in ("teacher", *_OF_GROUP):
        return {}
    return known | {(alias, *names): name for names, name in known.items()}


def _parts(condition: Node | None) -> Iterator[Node]:
    """What is joined by AND."""
    if condition is not None and condition["type"] == "CONJUNCTION_AND":
        for child in condition["children"]:
            yield from _parts(child)
    elif condition is not None:
        yield condition


def _of_line(part: Node, columns: dict[tuple[str, ...], str]) -> Iterator[Node]:
    """What this condition on a row demands of a file's line. Raises _Other where it does not say."""
    condition = _renamed(part, columns)
    names = _names(condition)
    if "collected_at" not in names:
        if names:
            yield condition
        return
    if names != ["collected_at"]:
        raise _Other
    if condition["type"] == "COMPARE_BETWEEN" and _is_column(condition["input"]):
        yield _compared("COMPARE_GREATERTHANOREQUALTO", _column("high"), condition["lower"])
        yield _compared("COMPARE_LESSTHANOREQUALTO", _column("low"), condition["upper"])
        return
    if condition["class"] != "COMPARISON" or not (_is_column(condition["left"]) or _is_column(condition["right"])):
        raise _Other
    mirrored = _is_column(condition["right"])
    least, most = ("high", "low") if mirrored else ("low", "high")
    kind, other = condition["type"], condition["left" if mirrored else "right"]
    if kind in _LESS | _GREATER:
        bound = _column(least if kind in _LESS else most)
        yield condition | {"right" if mirrored else "left": bound}
    elif kind == "COMPARE_EQUAL":
        yield _compared("COMPARE_LESSTHANOREQUALTO", _column("low"), other)
        yield _compared("COMPARE_GREATERTHANOREQUALTO", _column("high"), other)
    else:
        raise _Other


def _renamed(value: Any, columns: dict[tuple[str, ...], str]) -> Any:
    """The same condition over a line's columns; collected_at keeps its name. Raises _Other where it holds more."""
    if isinstance(value, list):
        return [_renamed(one, columns) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("class", "TYPE") not in _CLASSES:
        raise _Other
    if value.get("class") == "FUNCTION" and str(value["function_name"]).lower() not in _PURE:
        raise _Other
    if value.get("class") == "COLUMN_REF":
        name = columns.get(tuple(str(name).lower() for name in value["column_names"]))
        if name is None:
            raise _Other
        return _column(name)
    return {key: _renamed(one, columns) for key, one in value.items()}


def _names(value: Any) -> list[str]:
    """Columns that a renamed condition names."""
    if isinstance(value, dict) and value.get("class") == "COLUMN_REF":
        return list(value["column_names"])
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for one in inner for name in _names(one)]


def _is_column(node: Node) -> bool:
    return bool(node["class"] == "COLUMN_REF")


def _column(name: str) -> Node:
    place = {"query_location": 0, "query_location_length": 0}
    return {"class": "COLUMN_REF", "type": "COLUMN_REF", "alias": "", **place, "column_names": [name]}


def _compared(kind: str, left: Node, right: Node) -> Node:
    place = {"query_location": 0, "query_location_length": 0}
    return {"class": "COMPARISON", "type": kind, "alias": "", **place, "left": left, "right": right}
