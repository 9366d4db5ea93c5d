"""The room's commands: each reads a run file, calls one public function, and shows what came of it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collectors.dry_run import Estimate

_SHOWN_STARTS = 3
_RUN = click.argument("run", type=click.Path(path_type=Path), metavar="RUN.toml")
_WAIVER = click.option(
    "--waiver",
    "waivers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    help="A waiver that the policies take into account, beside those of RUN.toml; may be repeated.",
)


@click.command()
@_RUN
@_WAIVER
def probe(run: Path, waivers: tuple[Path, ...]) -> None:
    """Ask an endpoint a dozen tiny requests and show its card.

    The card says what the endpoint really does: token ids, candidates, temperature, BOS. `collect` makes the same
    probe by itself; a run that the card contradicts does not start.
    """
    from rich.console import Console

    from collectors.card import card_table, contradictions, warnings
    from collectors.config import read_run
    from collectors.run import probe_endpoints

    config = read_run(run).waived(waivers)
    for card in probe_endpoints(config):
        Console().print(card_table(card))
        for line in (*contradictions(card, config.ask), *warnings(card)):
            click.echo(f"note: {line}", err=True)


@click.command()
@_RUN
@click.option("--dry-run", is_flag=True, help="Say what would be asked, what it may cost, and the policy verdict.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N requests in this start.")
@_WAIVER
def collect(run: Path, dry_run: bool, limit: int | None, waivers: tuple[Path, ...]) -> None:
    """Collect soft labels; run it again to resume.

    Nothing is asked before the policies have decided. Answers are kept in a journal before they are read and committed
    to the table in batches; what cannot become a row is kept as a reject with its reason. Ctrl-C stops gently.
    """
    from collectors.config import read_run

    config = read_run(run).waived(waivers)
    if dry_run:
        from collectors.dry_run import estimate

        found = estimate(config, limit=limit)
        _show(found)
        if config.schedule is not None:
            from collectors.schedule import Standing

            starts = Standing.of(config).next_starts(_SHOWN_STARTS)
            click.echo(f"next starts  {', '.join(f'{start:%a %Y-%m-%d %H:%M %Z}' for start in starts)}")
        sys.exit(found.decision.exit_code)

    from storage.locks import check_free

    check_free(config.table / "journal", config.run_id)  # told before the slow imports
    from collectors.progress import Console
    from collectors.run import collect as run_it

    with Console() as watcher:
        report = run_it(config, limit=limit, watcher=watcher)
    _tell(str(report))
    if report.exit_code:
        sys.exit(report.exit_code)


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), metavar="RUN.toml…", nargs=-1, required=True)
@click.option("--once", is_flag=True, help="Start what is due now, wait for it, and end.")
@click.option(
    "--emit", "kind", type=click.Choice(["cron", "systemd", "k8s", "airflow"]), help="Write files for this scheduler."
)
@click.option("--out", type=click.Path(path_type=Path), default=".", help="Where --emit writes; default: here.")
@click.option("--image", default="", help="An image that holds potstill, for --emit k8s.")
def schedule(runs: tuple[Path, ...], once: bool, kind: str | None, out: Path, image: str) -> None:
    """Start runs at their times, until stopped.

    [schedule] in a run file says when: cron, window, jitter, timezone. A run drains at the end of its window and goes
    on in the next; starts that were missed are caught up once. Ctrl-C and SIGTERM stop gently. --once does what is due
    now and nothing else: --emit writes files that make another scheduler call it.
    """
    from collectors.config import read_run

    configs = [read_run(run) for run in runs]
    if kind is not None:
        from collectors.emit import emit_schedule

        for run, config in zip(runs, configs, strict=True):
            for path in emit_schedule(kind, run, config, out=out, image=image):
                click.echo(f"{path}  written")
        return
    from collectors.schedule import run_schedule

    code = run_schedule(configs, once=once, say=_say)
    if code:
        sys.exit(code)


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
def reparse(table: Path) -> None:
    """Make rows again from archived responses, after a reader was mended.

    Needs runs with keep_raw = true. Nothing is asked; rows that change are replaced in one commit and the earlier
    version stays readable; rejects that can be read now become rows.
    """
    from collectors.reparse import reparse_table

    done = reparse_table(table)
    click.echo(
        f"{done.read:,} responses read again: {done.changed:,} rows changed, {done.became_rows:,} rejects became rows, "
        f"{done.became_rejects:,} rows became rejects; version {done.version}."
    )
    if done.unmatched:
        click.echo(f"{done.unmatched:,} belong to nothing that the table has (taken down, or another run's).", err=True)


def _tell(text: str) -> None:
    """Say what came of a run; its exit code stands also where nobody reads that any more."""
    try:
        click.echo(text)
    except OSError:  # the terminal was closed: nothing may be left to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(name: str, line: str) -> None:
    plain = "".join(letter if letter.isprintable() else " " for letter in line)
    with suppress(OSError):  # whoever read it may be gone; the runs go on
        click.echo(f"{datetime.now():%Y-%m-%d %H:%M:%S} {name}: {plain}", err=True)


def _show(found: Estimate) -> None:
    from rich.console import Console

    from policies.report import render

    likely, worst = found.likely, found.worst
    click.echo(f"prompts      {found.prompts:,}")
    click.echo(f"in the table {found.known:,}")
    click.echo(f"duplicates   {found.duplicates:,}")
    click.echo(f"requests     {likely.requests:,} for answers; those of probe, canaries and tokenizing come beside")
    click.echo(f"tokens       {likely.tokens:,} to {worst.tokens:,}")
    click.echo(f"cost         ${likely.usd:,.2f} to ${worst.usd:,.2f}")
    if found.minutes is not None:
        click.echo(f"at the limit {found.minutes[0]:,.1f} to {found.minutes[1]:,.1f} minutes")
    Console().print(render(found.decision))
