"""Thresholds on the quality of labels: measures of a table × thresholds → reasons, beside those of the licences.

The thresholds are the owner's own, so an accepted risk may lift one; it names the digest of thresholds and data, and so
ends when either changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import Field

from policies.codes import ways_out
from policies.decision import Decision, Reason, Verdict, digest_of
from policies.errors import FactsError
from policies.merge import worst
from policies.settings import LocalPath, Settings
from policies.waivers import Waiver

Share = Annotated[float, Field(ge=0, le=1)]
DOCUMENT = "gates@train"
"""What a waiver names as its document."""


class Gates(Settings):
    """`[gates]` of train.toml: each threshold holds back a training; none is set unless it is written.

    Shares are of the rows (0.01 is one in a hundred). The measures are those of `potstill profile`.
    """

    max_truncated: Share | None = None
    max_loops: Share | None = None
    max_refusals: Share | None = None
    max_duplicate_prompts: Share | None = None
    max_duplicate_answers: Share | None = None
    max_wrong_language: Share | None = None
    max_other_teacher: Share | None = None
    max_strange_subject: Share | None = None
    max_flagged: Share | None = None
    min_captured_mass: Share | None = None
    """Mean mass of the stored candidates."""
    min_accuracy: Share | None = None
    """Of the teacher against the references that prompts bring."""
    max_calibration_error: Share | None = None
    production: LocalPath | None = None
    """A file of prompts of the later use, one JSON object a line, that the table is compared with."""
    max_production_auc: Share | None = None
    """How well a classifier tells the table's prompts from production's: 0.5 is not at all."""
    min_production_coverage: Share | None = None
    """The share of production's prompts that the table has near neighbours of."""

    @property
    def thresholds(self) -> dict[str, float]:
        """The thresholds that are set, by name."""
        return {name: value for name, value in self if isinstance(value, float)}


def subject(gates: Gates, data: str) -> str:
    """Digest of what a decision of the gates is about, and what a waiver of it names: thresholds and data."""
    return digest_of({"data": data, "thresholds": gates.thresholds})


def judge(gates: Gates, measures: Mapping[str, float | None]) -> tuple[Reason, ...]:
    """What the measures come to under the thresholds: deny for a missed one, review for one that has no measure."""
    reasons = []
    for name, threshold in gates.thresholds.items():
        side, _, measure = name.partition("_")
        value = measures.get(measure)
        facts = {"measure": measure, "value": value, name: threshold}
        words = measure.replace("_", " ")
        if value is None:
            gist = f"{words} is not known of this table, and [gates] {name} = {threshold:g} asks for it"
            reasons.append(_reason("GATE_UNKNOWN", "review", name, gist, facts))
        elif (value > threshold) if side == "max" else (value < threshold):
            gist = f"{words} is {value:.4g}, {'more' if side == 'max' else 'less'} than {threshold:g}"
            reasons.append(_reason("GATE_MISSED", "deny", name, gist, facts))
    return tuple(reasons)


def gated(
    decision: Decision,
    gates: Gates,
    measures: Mapping[str, float | None],
    *,
    data: str,
    waivers: Sequence[Waiver] = (),
    today: date | None = None,
) -> Decision:
    """The decision on a use with what its quality gates say: the strictest word stands.

    `data` is a digest of the rows that were measured. Of `waivers` those that name `gates@train` are applied. Raises
    FactsError for one given for other thresholds or other data.
    """
    if not gates.thresholds:
        return decision
    about = subject(gates, data)
    day = today or datetime.now(UTC).date()
    chosen = [waiver for waiver in waivers if waiver.document == DOCUMENT]
    reasons = list(judge(gates, measures))
    for waiver in chosen:
        reasons = _waived(reasons, waiver, about, decision, day)
    facts = {
        **decision.facts,
        "gates": {
            "digest": about,
            "thresholds": gates.thresholds,
            "measures": dict(measures),
            "waivers": [waiver.model_dump(mode="json") for waiver in chosen],
        },
    }
    return decision.model_copy(
        update={
            "verdict": worst([decision.verdict, *(reason.verdict for reason in reasons)]),
            "reasons": (*decision.reasons, *reasons),
            "facts": facts,
            "facts_digest": digest_of(facts),
        }
    )


def _waived(reasons: list[Reason], waiver: Waiver, about: str, decision: Decision, today: date) -> list[Reason]:
    if waiver.kind != "internal_risk_acceptance":
        raise FactsError("waiver: kind: a gate is your own threshold; give kind = internal_risk_acceptance")
    if waiver.document_digest != about:
        raise FactsError(
            f"waiver: document_digest: the gates or the table are not those it was given for (now {about}); "
            "look at what changed and have the waiver given anew"
        )
    if waiver.valid_from > today:
        raise FactsError(f"waiver: valid_from: {waiver.valid_from} lies in the future")
    met = [r for r in reasons if r.code in waiver.rules]
    if not met or decision.action not in waiver.actions:
        return reasons
    facts = {"waiver": waiver.digest, "kind": waiver.kind, "valid_until": waiver.valid_until.isoformat()}
    if waiver.valid_until < today:
        return [*reasons, _reason("WAIVER_EXPIRED", "allow", None, f"Ran out on {waiver.valid_until}", facts)]
    lifted = [r.model_copy(update={"verdict": "conditional"}) if r in met else r for r in reasons]
    what = ", ".join(dict.fromkeys(str(r.section) for r in met))
    gist = f"{what} settled by {waiver.kind.replace('_', ' ')} until {waiver.valid_until}"
    return [*lifted, _reason("WAIVER_APPLIED", "conditional", None, gist, facts)]


def _reason(code: str, verdict: Verdict, section: str | None, gist: str, facts: Mapping[str, Any]) -> Reason:
    return Reason(
        code=code, verdict=verdict, document=DOCUMENT, section=section, gist=gist, fix=ways_out(code), facts=facts
    )
