"""The trainer's commands: `train` and `evaluate`. Each is one call of a public function of the room."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

# OpenMP's threads wait for each other spinning, which on a busy machine more than doubles the time of a step; torch
# reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Show = Callable[[int, int, dict[str, float]], None]
_WAIVER = click.option(
    "--waiver",
    "waivers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    help="A waiver that the policies take into account, beside those of TRAIN.toml; may be repeated.",
)


@click.command()
@click.argument("settings", metavar="TRAIN.toml", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the last finished checkpoint.")
@click.option("--check", is_flag=True, help="Only compare the first step's gradient under other splits of its batch.")
@_WAIVER
def train(settings: Path, resume: bool, check: bool, waivers: tuple[Path, ...]) -> None:
    """Audit, align, stream, train a student.

    The table version is audited for the use that TRAIN.toml names before the first step: exit 3 when it is refused, 5
    when it needs a review. The student, its model card and its training record are left in the folder `out`.
    """
    from trainer.config import read_config
    from trainer.fit import check as compare
    from trainer.fit import train as run

    config = read_config(settings).waived(waivers)
    if check:
        for split, difference in compare(config, tell=_tell).items():
            click.echo(f"split into {split}: the gradient differs by {difference:.1e} of its norm")
        return
    with _progress() as show:
        training = run(config, resume=resume, tell=_tell, progress=show)
    click.echo(f"student in {training.out}, model card in {training.out / 'README.md'}")
    click.echo(f"training record {training.digest[:12]} in the table's trainings/")


@click.command()
@click.argument("settings", metavar="TRAIN.toml", type=click.Path(path_type=Path))
@_WAIVER
def evaluate(settings: Path, waivers: tuple[Path, ...]) -> None:
    """Compare the student with its teacher and a hard-label twin.

    Measures on the held-out rows: the student, the same student untrained, and its twin trained on hard labels only,
    which is trained first when it is not there yet ([evaluate] hard_twin = false leaves it out).
    """
    from trainer.config import read_config
    from trainer.evaluate import evaluate as run

    with _progress() as show:
        report = run(read_config(settings).waived(waivers), tell=_tell, progress=show)
    for line in report.lines():
        click.echo(line)
    click.echo(f"{report.html}\n{report.json}")


def _tell(line: str) -> None:
    from policies.report import printable

    click.echo(printable(line), err=True)


@contextmanager
def _progress() -> Iterator[Show]:
    """A bar on a terminal; a line for each log elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield lambda step, steps, logs: click.echo(f"step {step}/{steps}  {_figures(logs)}", err=True)
        return
    columns: list[Any] = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None, figures="")

        def show(step: int, steps: int, logs: dict[str, float]) -> None:
            bar.update(task, completed=step, total=steps, figures=_figures(logs))

        yield show


def _figures(logs: dict[str, float]) -> str:
    return (
        f"loss {logs['loss']:.3f}  KL {logs['divergence']:.3f}  top-1 {logs['agreement']:.0%}  "
        f"{logs['tokens_per_second']:,.0f} tokens/s"
    )
