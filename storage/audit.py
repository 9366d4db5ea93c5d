"""A decision on a table version: storage gathers what is in it, the policies judge, the decision is kept.

Only groups/ and the log are read, so an audit of ten million rows takes no longer than one of a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from policies.decision import Decision
from policies.documents import Bundle, load_bundle
from policies.evaluate import evaluate
from policies.identity import Material
from policies.use import Use
from policies.waivers import Waiver
from storage.errors import EmptyTable, NeedsReview, Refused
from storage.table import Table


def audit(
    path: Path | str,
    use: Use,
    *,
    version: int | None = None,
    bundle: Bundle | None = None,
    today: date | None = None,
    waivers: Sequence[Waiver] = (),
) -> Decision:
    """Decide whether the rows of a table version may serve `use`; decision and bundle are saved under their digests.

    `bundle` is by default the register that ships. Raises EmptyTable where there is nothing to judge, FactsError for
    facts or waivers that cannot be, and what opening the table raises.
    """
    table = Table.open(path, version)
    terms = bundle or load_bundle()
    decision = evaluate(materials_of(table), use, bundle=terms, today=today, waivers=waivers)
    table.save_bundle(terms)
    table.save_decision(decision)
    return decision


def materials_of(table: Table) -> list[Material]:
    """What there is to judge in a table version. Raises EmptyTable."""
    materials = table.materials()
    if not materials:
        raise EmptyTable(f"{table.path} has no rows at version {table.version}: collect some before auditing it.")
    return materials


def demand(decision: Decision, what: str) -> None:
    """Raise Refused or NeedsReview, with the reasons, unless a decision allows `what` ("Exporting this table")."""
    if decision.verdict not in ("deny", "review"):
        return
    stopping = [r for r in decision.reasons if r.verdict == decision.verdict]
    reasons = "; ".join(f"{r.document or 'no document'}: {r.gist}" for r in stopping)
    ways = list(dict.fromkeys(way for r in stopping for way in r.fix[:1]))[:2]
    out = f" Ways out: {'; '.join(ways)}." if ways else ""
    if decision.verdict == "deny":
        raise Refused(f"{what} is refused for {decision.action} ({reasons}); decision {decision.digest[:12]}.{out}")
    raise NeedsReview(
        f"{what} for {decision.action} needs a review first ({reasons}); decision {decision.digest[:12]}.{out}"
    )
