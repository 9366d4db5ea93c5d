"""Audit again: what a decision of the past has become, under another bundle, on other rows, for other facts, and why.

The table keeps the bundle of each audit, so that the decision of then can be taken apart years later without the
register that it was made under.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from policies.decision import Decision
from policies.discharge import OF_A_FOLDER
from policies.documents import Bundle, load_bundle
from policies.identity import Material
from policies.reaudit import Change, Situation, changes
from policies.use import Use
from policies.waivers import Waiver
from storage.audit import audit, materials_of
from storage.errors import InvalidRecord
from storage.table import Table


@dataclass(frozen=True, slots=True)
class Reaudit:
    """The decision of now, the one that it is compared with, and each verdict that changed with its one cause.

    `since` is None where the table keeps no audit for that action: then the register that ships is compared with.
    """

    decision: Decision
    since: Decision | None
    changes: tuple[Change, ...]


def reaudit(
    path: Path | str,
    use: Use,
    *,
    bundle: Bundle | None = None,
    since: str | None = None,
    version: int | None = None,
    today: date | None = None,
    waivers: Sequence[Waiver] = (),
) -> Reaudit:
    """Audit a table version under `bundle` (default: the register that ships) and explain what changed.

    `since` names the earlier decision by its digest or the start of it; by default the newest audit for the same
    action that the table keeps. Raises InvalidRecord when that decision or its bundle is not kept, and what `audit`
    raises.
    """
    table = Table.open(path, version)
    day, terms = today or datetime.now(UTC).date(), bundle or load_bundle()
    now = Situation(tuple(materials_of(table)), use, terms, day, tuple(waivers))
    earlier = _newest(table, use) if since is None else _named(table, since)
    then = Situation(now.materials, use, load_bundle(), day, now.waivers) if earlier is None else _of(table, earlier)
    decision = audit(path, use, version=table.version, bundle=terms, today=today, waivers=waivers)
    return Reaudit(decision, earlier, changes(then, now))


def _newest(table: Table, use: Use) -> Decision | None:
    """The newest audit for the action. Decisions of runs do not count, they were made before there were rows, nor do
    those that a student's folder added to."""
    audits = [d for d in table.decisions() if d.action == use.action and any(m["rows"] for m in d.facts["materials"])]
    plain = [d for d in audits if not any(r.code in OF_A_FOLDER for r in d.reasons)]
    return plain[-1] if plain else None


def _named(table: Table, start: str) -> Decision:
    found = [digest for digest in table.listed("decisions") if digest.startswith(start.lower())]
    if len(found) != 1:
        many = "several decisions begin" if found else "no decision begins"
        raise InvalidRecord(f"In {table.path} {many} with {start[:64]!r}: `potstill sql` lists them in `decisions`.")
    return table.decision(found[0])


def _of(table: Table, decision: Decision) -> Situation:
    """All that a decision was made of, from what is kept of it."""
    facts = decision.facts
    return Situation(
        materials=tuple(Material.model_validate(material) for material in facts["materials"]),
        use=Use.model_validate(facts["use"]),
        bundle=_bundle(table, decision),
        today=decision.decided_at.date(),
        waivers=tuple(Waiver.from_record(record) for record in facts["waivers"]),
    )


def _bundle(table: Table, decision: Decision) -> Bundle:
    if decision.bundle_digest in table.listed("bundles"):
        return table.bundle(decision.bundle_digest)
    installed = load_bundle()
    if installed.digest == decision.bundle_digest:
        return installed
    raise InvalidRecord(
        f"The bundle {decision.bundle} of decision {decision.digest[:12]} is not kept with the table: "
        "audit once more, and compare with that audit from then on."
    )
