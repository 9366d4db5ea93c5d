"""The policy gate: nothing is asked before the policies have decided, and the decision is kept beside the rows.

Two questions: may this be collected at all, and, where the run says what the student is for, may that use have it.
The stricter answer counts; each row names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from collectors.config import RunConfig
from collectors.errors import PolicyRefused, ReviewNeeded
from policies.binding import binding_terms
from policies.decision import VERDICTS, Decision, Reason
from policies.documents import load_bundle
from policies.evaluate import evaluate
from policies.identity import Material, Signal
from policies.use import Use
from policies.waivers import read_waivers
from storage.table import Table


@dataclass(frozen=True, slots=True)
class Clearance:
    """What the rows of a run carry of the licence side."""

    terms: tuple[str, ...]
    policy_bundle: str
    collect_verdict: str
    decision: str


class Gate:
    """One start of a run before the policies: judged when it is made, and again at a write after anything changed.

    Verdicts can change while a run goes on: the register is updated, a day begins on which other terms are in force, a
    waiver runs out. Raises PolicyRefused (exit 3) or ReviewNeeded (exit 5); what was received stays in the journal.
    """

    def __init__(self, config: RunConfig, licences: Sequence[str | None]) -> None:
        self._config = config
        self._licences = tuple(licences)
        self._table: Table | None = None
        self._judge()

    def _judge(self) -> None:
        self._seen = _what_may_change()
        self.decision = judge(self._config, self._licences)
        if self._table is not None:
            self._table.save_decision(self.decision)  # also one that stops the run: it says why
        enforce(self.decision)
        terms = binding_terms(self._config.licensed_teacher, load_bundle())
        self.clearance = Clearance(terms, self.decision.bundle, self.decision.verdict, self.decision.digest)

    def open(self, table: Table) -> None:
        """Keep the decision with the table that the rows go to."""
        self._table = table
        table.save_decision(self.decision)

    def pass_write(self) -> None:
        """Judge again when the register on disk or the day is another than at the last judgement."""
        if _what_may_change() != self._seen:
            self._judge()


def _what_may_change() -> tuple[str, date]:
    return load_bundle().digest, datetime.now(UTC).date()


def judge(config: RunConfig, licences: Sequence[str | None]) -> Decision:
    """The stricter of the decisions on collecting and on the run's own use, for prompts under these licences."""
    bundle = load_bundle()
    teacher = config.licensed_teacher
    asked = Material(teacher=teacher, signal=signal(config))
    materials = [asked.model_copy(update={"prompt_licence": licence or "NOASSERTION"}) for licence in licences]
    materials = materials or [asked]  # no prompt is left to be asked
    uses = [Use.collect_only()] if config.use is None else [Use.collect_only(), config.use]
    waivers = read_waivers(config.waivers)
    decisions = [evaluate(materials, use, bundle=bundle, waivers=waivers) for use in uses]
    return max(decisions, key=lambda decision: VERDICTS.index(decision.verdict))


def signal(config: RunConfig) -> Signal:
    """What of the teacher the run keeps, in the words of the terms."""
    ask = config.ask
    if ask.estimator == "full":
        return "logits"
    return "top_k_logprobs" if ask.top_k or ask.estimator == "sampled" or ask.labels else "text"


def enforce(decision: Decision) -> None:
    """Return when the run may go on; raise PolicyRefused (exit 3) or ReviewNeeded (exit 5) with the first reason."""
    if decision.exit_code == 0:
        return
    worst = [reason for reason in decision.reasons if reason.verdict == decision.verdict]
    told = "; ".join(f"{reason.code}{_where(reason)}: {reason.gist.rstrip('.')}" for reason in worst[:2])
    ways = next((reason.fix[0] for reason in worst if reason.fix), None)
    more = f" A way out: {ways.rstrip('.')}." if ways else ""
    text = f"Policy verdict «{decision.verdict}» for {decision.action} under bundle {decision.bundle}: {told}.{more}"
    raise PolicyRefused(text) if decision.verdict == "deny" else ReviewNeeded(text)


def _where(reason: Reason) -> str:
    """Document and section in brackets, as far as there are any."""
    named = ", ".join(part for part in (reason.document, reason.section) if part)
    return f" ({named})" if named else ""
