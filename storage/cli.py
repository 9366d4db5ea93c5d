"""The commands of this room, each one call of a public function that is imported when it runs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from storage.status import Status

_TABLE = click.argument("table", type=click.Path(path_type=Path))


@click.command()
@_TABLE
@click.argument("query")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="How to write the result.",
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
@click.option("--version", type=int, help="Check this version of the table instead of the newest.")
@click.option("--repair", is_flag=True, help="Remove what killed writers left behind.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(table: Path, version: int | None, repair: bool, as_json: bool) -> None:
    """Check every file against its checksum and every row against its rules.

    Exit code 1 when anything is not as it was written.
    """
    from storage.verify import repair as remove_leftovers
    from storage.verify import verify as check

    if repair:
        for name in remove_leftovers(table):
            click.echo(f"removed {name}", err=True)
    found = check(table, version)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        for problem in found.problems:
            click.echo(f"{problem.path}: {problem.what}")
        for name in found.leftovers:
            click.echo(f"{name}: left behind by a killed writer, harmless; --repair removes it", err=True)
        count = f"{len(found.problems)} problems" if found.problems else "no problem"
        click.echo(f"Version {found.version}: {found.files} files, {found.rows:,} rows, {count}.")
    if found.problems:
        click.get_current_context().exit(1)


@click.command()
@_TABLE
@click.option("--purge", is_flag=True, help="Delete the bytes of removed rows; earlier versions become unreadable.")
def compact(table: Path, purge: bool) -> None:
    """Join small files: fewer, larger files, same rows."""
    from storage.compact import compact as join

    done = join(table, purge=purge)
    click.echo(f"{done.files_before} files became {done.files_after}, {done.rows:,} rows, version {done.version}.")
    if purge:
        click.echo(f"{done.purged_files} files of earlier versions deleted, {done.purged_bytes:,} bytes.")


@click.command()
@_TABLE
@click.option("--terms", help="Rows under these terms: ID, or ID@VERSION.")
@click.option("--teacher", help="Rows of this teacher: MODEL[@REVISION][#ACCESS_PATH].")
@click.option("--run", help="Rows of this run.")
@click.option("--where", help="Rows for which this SQL condition holds.")
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--dry-run", is_flag=True, help="Only say what would go and what it reached.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def takedown(
    table: Path,
    terms: str | None,
    teacher: str | None,
    run: str | None,
    where: str | None,
    reason: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove rows by terms, teacher, run or SQL, and record why.

    Earlier versions still hold the rows until `potstill compact --purge`.
    """
    from storage.selection import Selection
    from storage.takedown import takedown as remove

    if not dry_run and not reason:
        raise click.UsageError("Say why with --reason, or look first with --dry-run.")
    selection = Selection(terms=terms, teacher=teacher, run=run, where=where)
    done = remove(table, selection, reason=reason, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2, ensure_ascii=False))
        return
    verb = "would go" if dry_run else "are gone"
    besides = f"{done.rejects} rejects, {done.responses} journal entries, {done.archived} archived responses"
    click.echo(f"{done.rows:,} rows, {besides} {verb}.")
    if done.versions is not None:
        first, last = done.versions
        span = f"version {first}" if first == last else f"versions {first} to {last}"
        click.echo(f"They were in {span} of the table.")
    for student in done.students:
        click.echo(f"Reached by training: {student}")
    for checkpoint in done.checkpoints:
        click.echo(f"Reached, a checkpoint: {checkpoint}")
    if done.record is not None:
        click.echo(f"Version {done.version} no longer has them; record {done.record[:12]} says why.")
        click.echo(f"Next: potstill compact {table} --purge  deletes their bytes.")


@click.command()
@_TABLE
@click.option(
    "--to", "layout", type=click.Choice(["hf", "jsonl"]), default="hf", show_default=True, help="Layout of the export."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--use", "use_path", type=click.Path(path_type=Path), help="What it is for; by default publishing it.")
@click.option("--version", type=int, help="Export this version of the table instead of the newest.")
@click.option(
    "--waiver",
    "waivers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    help="A waiver to take into account; may be repeated.",
)
def export(
    table: Path, layout: str, out: Path, use_path: Path | None, version: int | None, waivers: tuple[Path, ...]
) -> None:
    """Write a table as a Hugging Face data set or as JSON lines.

    The export is judged first; the decision and its obligations travel with the data. Exit codes: 3 refused, 5 needs
    review.
    """
    from policies.settings import read_toml
    from policies.use import Use
    from policies.waivers import read_waivers
    from storage.display import printable
    from storage.export import export as write

    use = read_toml(use_path, Use) if use_path is not None else None
    form: Literal["hf", "jsonl"] = "hf" if layout == "hf" else "jsonl"
    done = write(table, out, to=form, use=use, version=version, waivers=read_waivers(waivers))
    click.echo(f"{done.rows:,} rows of version {done.version} written to {done.out}; decision {done.decision[:12]}.")
    for line in done.owed:
        click.echo(printable(f"owed: {line}"))
    click.echo(f"{done.out / 'LICENSE-OBLIGATIONS.md'} holds all that is owed for passing it on.")


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@_TABLE
@click.option("--teacher", required=True, help="Who made the labels: MODEL[@REVISION][#ACCESS_PATH].")
@click.option("--terms", multiple=True, required=True, help="ID@VERSION that binds them; may be repeated.")
@click.option("--prompt-licence", help="Licence of the texts, as SPDX.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="The teacher's tokenizer.json, kept with the table.")
def import_(
    source: Path, table: Path, teacher: str, terms: tuple[str, ...], prompt_licence: str | None, tokenizer: Path | None
) -> None:
    """Bring in soft labels of DistillKit or Axolotl.

    SOURCE is a DistillKit capture or an Axolotl set, raw or prepared; TABLE is made when it is missing. A raw set has
    chats and no token ids: it needs --tokenizer, with the chat template beside it.
    """
    from policies.identity import Teacher
    from storage.errors import mapped
    from storage.importing import Provenance, import_labels
    from storage.table import Table

    digest = None
    if tokenizer is not None:
        with mapped(tokenizer):
            digest = Table.open_or_create(table).save_tokenizer(tokenizer.read_bytes())
    provenance = Provenance(
        teacher=Teacher.parse(teacher),
        terms=terms,
        prompt_licence=prompt_licence,
        tokenizer_sha256=digest,
        tokenizer=tokenizer,
    )
    done = import_labels(source, table, provenance)
    click.echo(f"{done.rows:,} rows imported, {done.duplicates:,} were there already, version {done.version}.")
    if done.rejects:
        click.echo(
            f"{done.rejects:,} sequences could not become rows; `potstill sql TABLE` says why in rejects.", err=True
        )
        click.get_current_context().exit(4)


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
