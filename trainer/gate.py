"""The gate before training: an audit of exactly the table version that will be read.

There is no way round it: a use that the policies refuse, or cannot judge, ends here, with the reasons and the ways out.
"""

from __future__ import annotations

from pathlib import Path

from policies.decision import Decision
from policies.settings import read_toml
from policies.use import Use
from storage.audit import audit
from storage.table import Table
from trainer.errors import TrainError


class TrainingRefused(TrainError):
    """The policies refuse this use of this table."""

    exit_code = 3


class TrainingNeedsReview(TrainError):
    """The policies cannot judge this use of this table by themselves."""

    exit_code = 5


def gate(table: Table, use: Path) -> Decision:
    """Audits the table's version for the use in the file `use`, and keeps the decision with the table.

    Raises TrainingRefused (exit 3) or TrainingNeedsReview (exit 5), with each reason and its ways out.
    """
    decision = audit(table.path, read_toml(use, Use), version=table.version)
    if decision.verdict == "deny":
        raise TrainingRefused(_explain("Training is refused", decision, table, use))
    if decision.verdict == "review":
        raise TrainingNeedsReview(_explain("Training needs a review first", decision, table, use))
    return decision


def _explain(headline: str, decision: Decision, table: Table, use: Path) -> str:
    lines = [f"{headline}; `potstill audit {table.path} --use {use}` shows the whole decision."]
    for reason in decision.reasons:
        if reason.verdict == decision.verdict:
            source = " ".join(part for part in (reason.document, reason.section) if part)
            lines.append(f"  {reason.code} ({source or 'no document'}): {reason.gist}")
            lines += [f"    way out: {fix}" for fix in reason.fix]
    return "\n".join(lines)
