"""The commands of this room: sql, status, audit. Each is one call of a public function, imported when it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from storage.status import Status

_TABLE = click.argument("table", type=click.Path(path_type=Path))


@click.command()
@_TABLE
@click.argument("query")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file; needed for parquet.")
@click.option("--version", type=int, help="Query this version of the table instead of the newest.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Lines shown by --format table.")
@click.option("--seconds", type=float, default=600.0, show_default=True, help="Stop the query after this time.")
@click.option("--memory", type=click.IntRange(16), default=2048, show_default=True, help="MB that the query may use.")
def sql(
    table: Path, query: str, form: str, out: Path | None, version: int | None, limit: int, seconds: float, memory: int
) -> None:
    """Query the soft labels, tokens and candidates of a table.

    QUERY is one SELECT over the views soft_labels, tokens, candidates, runs, rejects and decisions; `-` reads it from
    the standard input. Macros: entropy(logprobs, log_tail), perplexity(logprob), top_mass(logprobs, n).
    """
    from storage.display import to_csv, to_json, to_rich, write_parquet
    from storage.query import sql as run

    if form == "parquet" and out is None:
        raise click.UsageError("--format parquet needs --out FILE.")
    text = sys.stdin.read() if query == "-" else query
    result = run(table, text, version=version, seconds=seconds, memory_mb=memory)
    if form == "parquet" and out is not None:
        write_parquet(result, out)
    elif form == "table" and out is None:
        _print(to_rich(result, limit), wide_in_pipes=True)
        if result.num_rows > limit:
            click.echo(f"{result.num_rows - limit} more lines: raise --limit, or use --format csv.", err=True)
    else:
        _deliver(to_json(result) if form == "json" else to_csv(result), out)


@click.command()
@_TABLE
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def status(table: Path, as_json: bool) -> None:
    """Show rows, tokens, cost, verdicts and what is pending."""
    from storage.status import status as look

    found = look(table)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_status(found)


@click.command()
@_TABLE
@click.option("--use", "use_path", type=click.Path(path_type=Path), required=True, help="What the student is for.")
@click.option("--version", type=int, help="Judge this version of the table instead of the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print the decision record as JSON.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the decision record to this file too.")
def audit(table: Path, use_path: Path, version: int | None, as_json: bool, out: Path | None) -> None:
    """Decide whether a table version may train a student.

    The decision is kept in the table under its digest. Exit codes: 0 allowed, maybe under conditions, 3 refused,
    5 needs review.
    """
    from policies.report import render
    from policies.settings import read_toml
    from policies.use import Use
    from storage.audit import audit as judge

    decision = judge(table, read_toml(use_path, Use), version=version)
    if out is not None:
        _deliver(decision.to_json(), out)
    if as_json:
        click.echo(decision.to_json(), nl=False)
    else:
        _print(render(decision))
    if decision.exit_code:
        click.get_current_context().exit(decision.exit_code)


def _print(renderable: Any, *, wide_in_pipes: bool = False) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if wide_in_pipes and not console.is_terminal:
        console = Console(markup=False, highlight=False, width=2000)
    console.print(renderable)


def _deliver(text: str, out: Path | None) -> None:
    from storage.errors import mapped

    if out is None:
        click.echo(text, nl=False)
        return
    with mapped(out):
        out.write_text(text, "utf-8")


def _print_status(found: Status) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    from storage.display import printable

    cost = "unknown" if found.cost_usd is None else f"${found.cost_usd:,.4f}"
    verdicts = ", ".join(f"{rows} {verdict}" for verdict, rows in found.verdicts.items()) or "none"
    rejects = ", ".join(f"{count} {reason}" for reason, count in found.rejects.items()) or "none"
    lines = [
        ("table", f"{found.path}, version {found.version}"),
        ("rows", f"{found.rows:,} ({found.labelled_rows:,} with labels) of {found.prompts:,} prompts"),
        ("tokens", f"{found.tokens:,} stored; {found.prompt_tokens:,} + {found.completion_tokens:,} in usage"),
        ("cost", cost),
        ("size", f"{found.bytes:,} bytes in {found.files} files"),
        ("verdicts", verdicts),
        ("rejects", rejects),
    ]
    for group in found.groups:
        revision = f"@{group.revision}" if group.revision else ""
        terms = ", ".join(group.terms)
        lines.append(("teacher", f"{group.model}{revision}: {group.rows:,} rows, {group.signal}, under {terms}"))
    for run in found.runs:
        counts = f"{run.committed:,} of {run.planned:,} rows, {run.rejected:,} rejects"
        lines.append(("run", f"{run.run_id}: {run.outcome}, {counts}"))
    for journal in found.pending:
        lines.append(("journal", f"{journal.run_id}: {journal.responses:,} responses not in the table yet"))
    lines.append(("next", found.next))
    grid = RichTable.grid(padding=(0, 2))
    for name, text in lines:
        grid.add_row(Text(name, style="bold"), Text(printable(text)))
    _print(grid)
