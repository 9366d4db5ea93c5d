"""What is in a table, what is pending, what to do next. Totals are read from the table itself, never counted aside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.journal import Pending, pending
from storage.ledgers import RunRecord
from storage.query import sql
from storage.table import Table

_TOTALS = """
SELECT count(DISTINCT prompt_id) AS prompts, count(*) FILTER (k > 0) AS labelled_rows,
       coalesce(sum(usage.prompt_tokens), 0)::BIGINT AS prompt_tokens,
       coalesce(sum(usage.completion_tokens), 0)::BIGINT AS completion_tokens,
       sum(usage.cost_usd) AS cost_usd
FROM soft_labels"""
_VERDICTS = "SELECT collect_verdict, count(*) AS rows FROM soft_labels GROUP BY 1 ORDER BY 1"
_REJECTS = "SELECT reason, count(*) AS responses FROM rejects GROUP BY 1 ORDER BY 2 DESC, 1"


@dataclass(frozen=True, slots=True)
class GroupTotal:
    """One audit group: all rows that an audit treats alike."""

    model: str
    revision: str | None
    access_path: str
    served_by: str | None
    signal: str
    terms: tuple[str, ...]
    prompt_licence: str | None
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Status:
    """A table at one version. `tokens` counts stored targets; usage and cost are what the endpoints reported."""

    path: str
    version: int
    rows: int
    labelled_rows: int
    tokens: int
    prompts: int
    files: int
    bytes: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    verdicts: dict[str, int]
    groups: tuple[GroupTotal, ...]
    rejects: dict[str, int]
    runs: tuple[RunRecord, ...]
    pending: tuple[Pending, ...]
    next: str

    def to_json(self) -> dict[str, Any]:
        """The record of `status --json`; configurations and cards of runs are left to `sql`."""
        record = asdict(self)
        for run in record["runs"]:
            del run["config"], run["endpoint_cards"]
            run["started_at"], run["updated_at"] = run["started_at"].isoformat(), run["updated_at"].isoformat()
        return record


def status(path: Path | str) -> Status:
    """Look at a table. Raises what opening and querying it raise."""
    newest = Table.open(path)
    table = Table.open(path, newest.version)  # one version throughout, whoever writes meanwhile
    files = table.files()
    [totals] = sql(table, _TOTALS).to_pylist()
    runs, waiting = table.runs(), pending(table.path / "journal")
    return Status(
        path=str(path),
        version=table.version,
        rows=sum(file.rows for file in files),
        tokens=sum(file.tokens for file in files),
        files=len(files),
        bytes=sum(file.size for file in files),
        verdicts={line["collect_verdict"]: line["rows"] for line in sql(table, _VERDICTS).to_pylist()},
        groups=tuple(_group(material) for material in table.materials()),
        rejects={line["reason"]: line["responses"] for line in sql(table, _REJECTS).to_pylist()},
        runs=tuple(runs),
        pending=tuple(waiting),
        next=_next(bool(files), runs, waiting),
        **totals,
    )


def _group(material: Any) -> GroupTotal:
    teacher = material.teacher
    return GroupTotal(
        model=teacher.model,
        revision=teacher.revision,
        access_path=teacher.access_path,
        served_by=teacher.served_by,
        signal=material.signal,
        terms=material.terms or (),
        prompt_licence=material.prompt_licence,
        rows=material.rows,
        tokens=material.tokens,
    )


def _next(any_rows: bool, runs: list[RunRecord], waiting: list[Pending]) -> str:
    for journal in waiting:
        if journal.held_by is not None:
            return f"Run {journal.run_id} is at work: {journal.held_by}."
    for journal in waiting:
        if journal.responses:
            return (
                f"Run {journal.run_id} was stopped with {journal.responses} paid responses in its journal: "
                "`potstill collect` with its file stores them and goes on."
            )
    for run in runs:
        if run.outcome not in ("done", "failed"):
            return f"Run {run.run_id} is not finished: `potstill collect` with its file goes on where it stopped."
    if not any_rows:
        return "`potstill collect RUN.toml` asks the teacher and fills the table."
    return "`potstill audit TABLE --use USE.toml` says whether it may train your student."
