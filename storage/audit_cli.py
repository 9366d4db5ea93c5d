"""`potstill audit`: a decision on a table version, and what can be made of it: signed, compared, read back, checked."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from policies.decision import Decision
    from storage.reaudit import Reaudit

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("table", type=_FILE)
@click.option("--use", "use_path", type=_FILE, metavar="USE.toml", help="What the student is for.")
@click.option("--version", type=int, help="Judge this version of the table instead of the newest.")
@click.option(
    "--waiver", "waivers", type=_FILE, metavar="FILE", multiple=True, help="A waiver to take into account; repeatable."
)
@click.option(
    "--student", type=_FILE, metavar="DIR", help="Read a finished student's folder and say what is still owed for it."
)
@click.option(
    "--bundle", type=_FILE, metavar="DIR", help="Judge by the terms documents in this folder and explain what changes."
)
@click.option("--since", metavar="DIGEST", help="Explain what changed since this decision; by default the last audit.")
@click.option("--sign", type=_FILE, metavar="KEY.pem", help="Sign the decision with this ed25519 private key.")
@click.option("--verify", type=_FILE, metavar="FILE", help="Check a signed decision against the table; needs --key.")
@click.option("--key", type=_FILE, metavar="PUBLIC.pem", help="The signer's public key.")
@click.option("--sarif", type=_FILE, metavar="FILE", help="Write the reasons as SARIF, for code hosts and CI.")
@click.option("--json", "as_json", is_flag=True, help="Print the decision record as JSON.")
@click.option("--out", type=_FILE, metavar="FILE", help="Write the decision record here; signed where --sign is given.")
def audit(table: Path, use_path: Path | None, verify: Path | None, key: Path | None, **asked: Any) -> None:
    """Decide whether a table version may train a student.

    The decision is kept in the table under its digest, with the terms documents that it was made under. Exit codes:
    0 allowed, maybe under conditions, 3 refused, 5 needs review; with --student 5 also while something is owed that
    the folder does not show.
    """
    if (verify is None) != (key is None):
        raise click.UsageError("--verify FILE and --key PUBLIC.pem belong together.")
    if (use_path is None) == (verify is None):
        raise click.UsageError("Say what the student is for with --use USE.toml, or check a decision with --verify.")
    if verify is not None and key is not None:
        _verify(table, verify, key, asked["as_json"])
    elif use_path is not None:
        _audit(table, use_path, **asked)


def _audit(
    table: Path,
    use_path: Path,
    *,
    version: int | None,
    waivers: tuple[Path, ...],
    student: Path | None,
    bundle: Path | None,
    since: str | None,
    sign: Path | None,
    sarif: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    from policies.documents import read_bundle
    from policies.settings import read_toml
    from policies.use import Use
    from policies.waivers import read_waivers
    from storage.audit import audit as judge
    from storage.evidence import audit_student, version_of
    from storage.reaudit import reaudit

    if student is not None and (bundle is not None or since is not None):
        raise click.UsageError("--student says what is owed now: leave --bundle and --since out.")
    use, given = read_toml(use_path, Use), read_waivers(waivers)
    version = version_of(table, version, student)  # of several steps on one table, all are on the same version
    terms = read_bundle(bundle) if bundle is not None else None
    again = None
    if student is not None:
        decision = audit_student(table, use, student, version=version, waivers=given)
    elif bundle is not None or since is not None:
        again = reaudit(table, use, bundle=terms, since=since, version=version, waivers=given)
        decision = again.decision
    else:
        decision = judge(table, use, version=version, waivers=given)
    _write(table, decision, version, student, sign, sarif, out)
    _show(decision, again, as_json)
    if decision.exit_code:
        click.get_current_context().exit(decision.exit_code)


def _write(
    path: Path,
    decision: Decision,
    version: int,
    student: Path | None,
    sign: Path | None,
    sarif: Path | None,
    out: Path | None,
) -> None:
    """The files that were asked for; where they lie goes to stderr."""
    from policies.sarif import sarif as sarif_of
    from storage.errors import mapped
    from storage.evidence import sign_decision
    from storage.table import Table

    if sarif is not None:
        with mapped(sarif):
            sarif.write_text(json.dumps(sarif_of(decision), indent=2, ensure_ascii=False) + "\n", "utf-8")
    text = decision.to_json()
    if sign is not None:
        text, kept = sign_decision(Table.open(path, version), decision, _read(sign), student)
        click.echo(f"signed: {kept}", err=True)
    if out is not None:
        with mapped(out):
            out.write_text(text, "utf-8")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise click.UsageError(f"{path} is not there.")
    return path.read_bytes()


def _show(decision: Decision, again: Reaudit | None, as_json: bool) -> None:
    from rich.console import Console

    from policies.report import render, render_changes

    if not as_json:
        console = Console(markup=False, highlight=False)
        console.print(render(decision))
        if again is not None:
            console.print(render_changes(again.changes, again.since))
        return
    record = json.loads(decision.to_json())
    if again is not None:
        record["since"] = None if again.since is None else again.since.digest
        record["changes"] = [asdict(change) for change in again.changes]
    click.echo(json.dumps(record, indent=2, ensure_ascii=False))


def _verify(table: Path, envelope: Path, key: Path, as_json: bool) -> None:
    from storage.evidence import verify_decision

    decision, what = verify_decision(table, _read(envelope).decode("utf-8", errors="replace"), _read(key))
    _show(decision, None, as_json)
    click.echo(f"The signature fits, and {what} is what was signed.", err=as_json)
