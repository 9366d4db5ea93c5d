"""The policy gate: nothing is asked before the policies have decided, and the decision is kept beside the rows.

Two questions: may this be collected at all, and, where the run says what the student is for, may that use have it.
The stricter answer counts; each row names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from collectors.config import RunConfig
from collectors.errors import PolicyRefused, ReviewNeeded
from policies.binding import binding_terms
from policies.decision import VERDICTS, Decision
from policies.documents import load_bundle
from policies.evaluate import evaluate
from policies.identity import Material, Signal
from policies.use import Use
from storage.table import Table


@dataclass(frozen=True, slots=True)
class Clearance:
    """What the rows of a run carry of the licence side."""

    terms: tuple[str, ...]
    policy_bundle: str
    collect_verdict: str
    decision: str


def judge(config: RunConfig, licences: Sequence[str | None]) -> Decision:
    """The stricter of the decisions on collecting and on the run's own use, for prompts under these licences."""
    bundle = load_bundle()
    teacher = config.licensed_teacher
    materials = [
        Material(teacher=teacher, signal=signal(config), prompt_licence=licence or "NOASSERTION")
        for licence in licences
    ]
    uses = [Use.collect_only()] if config.use is None else [Use.collect_only(), config.use]
    decisions = [evaluate(materials, use, bundle=bundle) for use in uses]
    return max(decisions, key=lambda decision: VERDICTS.index(decision.verdict))


def signal(config: RunConfig) -> Signal:
    """What of the teacher the run keeps, in the words of the terms."""
    return "text" if config.ask.top_k == 0 else "top_k_logprobs"


def enforce(decision: Decision) -> None:
    """Return when the run may go on; raise PolicyRefused (exit 3) or ReviewNeeded (exit 5) with the first reason."""
    if decision.exit_code == 0:
        return
    worst = [reason for reason in decision.reasons if reason.verdict == decision.verdict]
    told = "; ".join(f"{reason.code}{f' ({reason.document})' if reason.document else ''}: {reason.gist.rstrip('.')}"
                     for reason in worst[:2])  # fmt: skip
    ways = next((reason.fix[0] for reason in worst if reason.fix), None)
    more = f" A way out: {ways.rstrip('.')}." if ways else ""
    text = f"Policy verdict «{decision.verdict}» for {decision.action} under bundle {decision.bundle}: {told}.{more}"
    raise PolicyRefused(text) if decision.verdict == "deny" else ReviewNeeded(text)


def clear(config: RunConfig, table: Table, decision: Decision) -> Clearance:
    """Keep the decision with the table; → what each row names. Call it only after `enforce`."""
    digest = table.save_decision(decision)
    bundle = load_bundle()
    terms = binding_terms(config.licensed_teacher, bundle)
    return Clearance(terms, decision.bundle, decision.verdict, digest)
