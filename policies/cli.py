"""The commands `check` and `terms`: each is one call of a function of this room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from policies.decision import Decision


@click.command()
@click.option(
    "--teacher",
    "teachers",
    metavar="MODEL[@REVISION][#ACCESS_PATH]",
    multiple=True,
    required=True,
    help="A teacher to judge; may be repeated. MODEL+BASE names the model that it was made from, "
    "#openrouter/PROVIDER the provider that served.",
)
@click.option(
    "--use",
    "use_file",
    metavar="USE.toml",
    type=click.Path(path_type=Path),
    help="What the student is for; without it collecting alone is judged.",
)
@click.option(
    "--waiver",
    "waiver_files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A waiver to take into account; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the decision record.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Also write the decision record here.")
def check(
    teachers: tuple[str, ...], use_file: Path | None, waiver_files: tuple[Path, ...], as_json: bool, out: Path | None
) -> None:
    """Judge teachers and a use before any data exists.

    Ends with 0 when it is allowed, with or without conditions, 5 when it needs review, 3 when it is refused.
    """
    from policies.documents import load_bundle
    from policies.evaluate import evaluate
    from policies.identity import Material, Teacher
    from policies.settings import read_toml
    from policies.use import Use
    from policies.waivers import read_waivers

    use = Use.collect_only() if use_file is None else read_toml(use_file, Use)
    signal = use.data.signal or "top_k_logprobs"
    materials = [Material(teacher=Teacher.parse(text), signal=signal) for text in teachers]
    decision = evaluate(materials, use, bundle=load_bundle(), waivers=read_waivers(waiver_files))
    if out is not None:
        _write(out, decision)
    if as_json:
        click.echo(decision.to_json(), nl=False)
    else:
        _show(decision)
    if decision.exit_code:
        click.get_current_context().exit(decision.exit_code)


@click.command()
@click.argument("name", metavar="[ID]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the documents as JSON.")
def terms(name: str | None, as_json: bool) -> None:
    """Show the register: what each terms document says, where, how sure.

    With ID (gemma-tou, or gemma-tou@2025-03-24) one document is shown whole, in all its versions.
    """
    from datetime import UTC, datetime

    from rich.console import Console

    from policies.documents import load_bundle
    from policies.terms import find, record, render_document, render_list

    bundle = load_bundle()
    today = datetime.now(UTC).date()
    found = bundle.documents if name is None else find(bundle, name)
    if as_json:
        records = [record(document, today) for document in found]
        shown = {"bundle": bundle.id, "digest": bundle.digest, "documents": records}
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    elif name is None:
        console = Console(highlight=False)
        cut = {"no_wrap": True, "overflow": "ellipsis"} if console.is_terminal else {"soft_wrap": True}
        console.print(render_list(bundle, today), **cut)  # a pipe gets whole lines
    else:
        for document in found:
            Console(highlight=False).print(render_document(document, today))


def _show(decision: Decision) -> None:
    from rich.console import Console

    from policies.report import render

    Console(highlight=False).print(render(decision))


def _write(path: Path, decision: Decision) -> None:
    from policies.errors import PolicyError

    try:
        path.write_text(decision.to_json(), "utf-8")
    except OSError as error:
        raise PolicyError(f"{path}: the decision cannot be written ({error.strerror})") from None
