"""`potstill profile`: one call of storage.profile, shown to a person or printed as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Production's prompts, one JSON object a line.")
@click.option("--plan", "count", type=click.IntRange(1), help="Pick so many prompts of --pool that close the gap best.")
@click.option("--pool", type=click.Path(path_type=Path), help="Prompts to pick from, one JSON object a line.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="plan.jsonl", show_default=True, help="The picked ones."
)
@click.option(
    "--features",
    type=click.Choice(["auto", "ngrams", "embeddings"]),
    default="auto",
    show_default=True,
    help="What texts are compared by.",
)
@click.option("--version", type=int, help="Profile this version of the table instead of the newest.")
@click.option("--rows", type=click.IntRange(1), default=20_000, show_default=True, help="Look at so many rows at most.")
@click.option("--gates", type=click.Path(path_type=Path), help="Judge by the [gates] of this train.toml.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def profile(
    table: Path,
    against: Path | None,
    count: int | None,
    pool: Path | None,
    out: Path,
    features: Literal["auto", "ngrams", "embeddings"],
    version: int | None,
    rows: int,
    gates: Path | None,
    as_json: bool,
) -> None:
    """Measure soft-label quality and the match with production.

    Finds loops, refusals, near-duplicates, wrong languages, rows of another teacher and of a strange subject; says what
    the stored k captures, how right the teacher is where prompts bring references, and with --against what production
    has and the table lacks. Exit codes: 0 nothing looks wrong, 5 look at what it names, 3 a gate is missed.
    """
    from storage.gates import missed, read_gates
    from storage.profile import profile as measure
    from storage.profile_against import Plan
    from storage.profile_display import render

    if (count is None) != (pool is None) or (count is not None and against is None):
        raise click.UsageError("--plan N, --pool FILE and --against FILE belong together.")
    thresholds = None if gates is None else read_gates(gates)
    if thresholds is not None and against is None:
        against = thresholds.production
    plan = Plan(count, pool, out) if count is not None and pool is not None else None
    found = measure(table, version=version, most=rows, against=against, plan=plan, features=features)
    reasons = () if thresholds is None else missed(thresholds, found)
    if as_json:
        gate = {} if thresholds is None else {"gates": [reason.model_dump(mode="json") for reason in reasons]}
        click.echo(json.dumps(found.to_json() | gate, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        console = Console(markup=False, highlight=False)
        console.print(render(found))
        for reason in reasons:
            console.print(f"Gate {reason.section}: {reason.gist}", style="bold red")
    if any(reason.verdict == "deny" for reason in reasons):
        click.get_current_context().exit(3)
    if found.warnings or reasons:
        click.get_current_context().exit(5)
