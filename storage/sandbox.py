"""A DuckDB connection that can read the given tables and nothing else, and the check of what it is asked.

Two fences: DuckDB's own settings, locked; and the parsed query, of which only SELECTs over known names and pure
functions pass. Either alone would do for files; the second also keeps settings, logs and catalogs out.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from storage.checked_files import CheckedFiles
from storage.errors import QueryFailed, QueryRefused

SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "temp_directory": "",
}
TABLE_FUNCTIONS = {"range", "generate_series", "unnest", "json_each", "json_tree"}
REFUSED_FUNCTIONS = {"current_setting", "getvariable", "write_log", "sleep_ms", "nextval", "currval", "getenv"}
AMPLIFIERS = {"repeat", "lpad", "rpad", "list_resize", "array_resize"}
"""Functions by which values grow outside of DuckDB's memory limit and without a look at the clock."""
MOST_TIMES = 1_000_000
QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}


def connect(memory: str) -> Any:
    """An in-memory connection that reads nothing yet; `memory` as DuckDB writes it.

    No threads that only read, of which it has eight: reading calls into Python, where one thread at a time gets on, and
    two that passed its lock around made a filter a fifth slower. The threads that compute read for themselves.
    """
    threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return duckdb.connect(
        ":memory:", config=SETTINGS | {"memory_limit": memory, "threads": threads, "async_threads": "0"}
    )


def lock(
    connection: Any,
    tables: Mapping[str, pa.Table | pads.Dataset],
    statements: list[str],
    files: CheckedFiles | None = None,
) -> None:
    """Register `tables` and `files`, run `statements`, then shut the connection off from all else, for good."""
    if files is not None:
        connection.register_filesystem(files)
        connection.execute(f"SET allowed_paths = {files.names}")
    for name, table in tables.items():
        connection.register(name, table)
    for statement in statements:
        connection.execute(statement)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


@dataclass(frozen=True, slots=True)
class Checked:
    """A query that may run: which of the names it uses, and all nodes of its syntax tree."""

    names: set[str]
    nodes: list[dict[str, Any]]


def check_query(connection: Any, query: str, names: set[str]) -> Checked:
    """Raise QueryRefused unless `query` is one SELECT over `names`, its CTEs and pure functions; → what it uses."""
    if "\0" in query:
        raise QueryRefused("The query holds a NUL character: remove it.")
    parsed = json.loads(connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0])
    if parsed["error"]:
        if parsed["error_type"] == "not implemented":
            raise QueryRefused("Only one SELECT can be run: the query connection reads the views and changes nothing.")
        raise QueryFailed(f"The query cannot be parsed: {parsed['error_message']}")
    if len(parsed["statements"]) != 1:
        raise QueryRefused(f"Exactly one SELECT can be run, not {len(parsed['statements'])}: run them one by one.")
    nodes = list(_nodes(parsed["statements"]))
    known = {name.lower() for name in names}
    known |= {entry["key"].lower() for node in nodes for entry in node.get("cte_map", {}).get("map", [])}
    known |= {str(node["cte_name"]).lower() for node in nodes if "cte_name" in node}
    for node in nodes:
        _check_node(node, known)
    _check_growth(nodes)
    return Checked({name for name in names if any(_table_of(node) == name for node in nodes)}, nodes)


def _table_of(node: dict[str, Any]) -> str | None:
    """The table that a node reads, in lower case; DESCRIBE and SUMMARIZE name one in a node of their own."""
    name = node.get("table_name") if node.get("type") in ("BASE_TABLE", "SHOW_REF") else None
    return None if name is None else str(name).strip('"').lower()


def _nodes(parsed: Any) -> Iterator[dict[str, Any]]:
    stack = [parsed]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def _check_node(node: dict[str, Any], known: set[str]) -> None:
    kind = str(node.get("type"))
    if kind.endswith("_NODE") and kind not in QUERY_NODES:
        raise QueryRefused("Only SELECT can be run: the query connection changes nothing.")
    if kind == "BASE_TABLE":
        name = str(node["table_name"])
        if (
            name.lower() not in known
            or node["schema_name"] not in ("", "main")
            or node["catalog_name"] not in ("", "memory")
        ):
            raise QueryRefused(f"There is no view {name!r}: the views are {', '.join(sorted(known))}.")
    if kind == "TABLE_FUNCTION":
        name = str(node["function"]["function_name"])
        if name.lower() not in TABLE_FUNCTIONS:
            raise QueryRefused(f"The table function {name!r} is not available: query the views instead.")
    if kind == "FUNCTION" and str(node["function_name"]).lower() in REFUSED_FUNCTIONS:
        raise QueryRefused(f"The function {node['function_name']!r} is not available here.")


def _check_growth(nodes: list[dict[str, Any]]) -> None:
    """Such functions may stand within each other, so their numbers are multiplied."""
    times = 1
    for node in nodes:
        if node.get("type") == "FUNCTION" and str(node["function_name"]).lower() in AMPLIFIERS:
            last = node["arguments"][1]["expression"] if len(node["arguments"]) > 1 else {}
            literal = last.get("literal", {})
            times *= max(int(literal["text"]), 1) if literal.get("kind") == "INTEGER" else MOST_TIMES + 1
    if times > MOST_TIMES:
        raise QueryRefused(
            f"{', '.join(sorted(AMPLIFIERS))} need a plain number as their second argument, all together up to "
            f"{MOST_TIMES:,}."
        )
