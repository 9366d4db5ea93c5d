"""The gate before training: an audit of exactly the table version that will be read, its terms and then its quality.

There is no way round it: a use that the policies refuse, or cannot judge, ends here, with the reasons and the ways out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from policies.decision import Decision
from policies.gates import DOCUMENT, Gates
from policies.identity import Signal
from policies.settings import read_toml
from policies.use import Use
from policies.waivers import read_waivers
from storage.audit import audit
from storage.gates import gate as quality_gate
from storage.table import Table
from trainer.errors import TrainError


class TrainingRefused(TrainError):
    """The policies refuse this use of this table."""

    exit_code = 3


class TrainingNeedsReview(TrainError):
    """The policies cannot judge this use of this table by themselves."""

    exit_code = 5


NO_GATES = Gates()


def gate(
    table: Table, use: Path, waivers: Sequence[Path] = (), *, signal: Signal | None = None, gates: Gates = NO_GATES
) -> Decision:
    """Audits the table's version for the use in the file `use`, and keeps the decision with the table.

    `waivers` are files of the waivers to take into account; `signal` is what else the student learns from, beyond what
    the table holds and the file declares; `gates` are thresholds on the labels' quality, which are measured only when
    the licences allow the use. Raises TrainingRefused (exit 3) or TrainingNeedsReview (exit 5), with each reason and
    its ways out.
    """
    given = read_waivers(waivers)
    wanted = read_toml(use, Use)
    if signal is not None:
        wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"signal": signal})})
    decision = audit(
        table.path, wanted, version=table.version, waivers=[waiver for waiver in given if waiver.document != DOCUMENT]
    )
    _demand(decision, f"`potstill audit {table.path} --use {use}` shows the whole decision.")
    decision = quality_gate(table, decision, gates, waivers=given)
    if "gates" in decision.facts:
        digest = decision.facts["gates"]["digest"]
        _demand(decision, f"`potstill profile {table.path}` names the rows; a waiver of {DOCUMENT} names {digest}.")
    return decision


def _demand(decision: Decision, look: str) -> None:
    if decision.verdict == "deny":
        raise TrainingRefused(_explain(f"Training is refused; {look}", decision))
    if decision.verdict == "review":
        raise TrainingNeedsReview(_explain(f"Training needs a review first; {look}", decision))


def _explain(headline: str, decision: Decision) -> str:
    lines = [headline]
    for reason in decision.reasons:
        if reason.verdict == decision.verdict:
            source = " ".join(part for part in (reason.document, reason.section) if part)
            lines.append(f"  {reason.code} ({source or 'no document'}): {reason.gist}")
            lines += [f"    way out: {fix}" for fix in reason.fix]
    return "\n".join(lines)
