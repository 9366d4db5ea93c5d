"""One document against one use of one teacher's outputs: what its rules and duties say there.

Everything that a document can say is here; what several documents come to together is evaluate.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from policies.decision import Obligation, Reason, Verdict
from policies.documents import CONFIDENCES, Confidence, Duty, Rule
from policies.duties import claims_of, describe, due
from policies.facts import Answer, Case, all_of
from policies.merge import Claims, merge, worst
from policies.reasons import missing_reason, reason_of
from policies.use import Action
from policies.violations import violations

STUDENT_ACTIONS: frozenset[Action] = frozenset(("train", "distribute_student", "host_student", "internal_use"))
"""The actions in which a student is trained or used."""


@dataclass(frozen=True)
class Finding:
    """What one document says: reasons, obligations, and what it adds to the lattice."""

    reasons: tuple[Reason, ...] = ()
    obligations: tuple[Obligation, ...] = ()
    claims: Claims = field(default_factory=Claims)

    @property
    def verdict(self) -> Verdict:
        """The strictest reason; an obligation that is due and open makes it conditional."""
        owed = any(o.due and o.trigger != "always" and not o.discharged for o in self.obligations)
        return worst([*(reason.verdict for reason in self.reasons), "conditional" if owed else "allow"])


def judge(case: Case, confidence: Confidence) -> Finding:
    """Judge `case.document` for `case.use`; `confidence` is that of the statement that it binds this teacher."""
    reasons = [reason for rule in case.document.rules for reason in _rule(case, rule)]
    if not reasons:
        gist = f"{case.document.name} says nothing that permits {case.use.action}"
        reasons.append(reason_of(case, "UNKNOWN_TERMS", "deny", gist, None))
    reasons += _said_ahead(case)
    reasons += _derivative(case)
    duties = [(duty, _applies(case, duty)) for duty in case.document.obligations]
    duties = [(duty, answer) for duty, answer in duties if answer.holds is not False]
    reasons += [reason for duty, _ in duties for reason in violations(case, duty)]
    reasons += _sureness(case, confidence)
    obligations = tuple(_obligation(case, duty) for duty, _ in duties)
    claims = merge([_claims_of_rules(case, confidence), *(claims_of(case, duty) for duty, _ in duties)])
    return Finding(tuple(_once(reasons)), obligations, claims)


def _rule(case: Case, rule: Rule) -> Iterator[Reason]:
    if case.use.action not in rule.actions:
        return
    answer = case.holds(rule.when, rule.unless)
    if answer.holds:
        yield reason_of(case, rule.code, rule.verdict, rule.gist, rule.section, answer, rule.fix)
    elif answer.holds is None and rule.verdict in ("review", "deny"):
        if answer.missing:
            yield missing_reason(case, rule.code, rule.verdict, rule.gist, rule.section, answer)
        else:
            gist = f"{rule.gist}; whether that reaches this student is not said"
            yield reason_of(case, rule.code, "review", gist, rule.section, answer, rule.fix)


def _said_ahead(case: Case) -> Iterator[Reason]:
    """Outputs may be kept or passed on, but no student may come of them: whoever pays for them is told first."""
    if case.use.action not in ("collect", "publish_dataset"):
        return
    for rule in case.document.rules:
        if rule.verdict != "deny" or case.use.action in rule.actions or not STUDENT_ACTIONS & set(rule.actions):
            continue
        answer = case.holds(rule.when, rule.unless)
        if answer.holds is not False:
            then = " or ".join(a for a in rule.actions if a in STUDENT_ACTIONS)
            gist = f"May be kept, but {then} would be refused: {rule.gist}"
            yield reason_of(case, rule.code, "conditional", gist, rule.section, answer, rule.fix)


def _derivative(case: Case) -> Iterator[Reason]:
    reading = case.document.student
    if case.use.action not in STUDENT_ACTIONS or reading.is_derivative != "yes":
        return
    answer = case.derivative()
    gist = reading.gist or "a student trained on the outputs is a derivative of the teacher"
    if answer.holds is not False:
        yield reason_of(case, "STUDENT_IS_DERIVATIVE", "conditional", gist, reading.section, answer)


def _sureness(case: Case, confidence: Confidence) -> Iterator[Reason]:
    source = case.document.source
    if source.confidence != "stored-copy":
        gist = f"The text was not read in a stored copy ({source.confidence}: {source.read_in})"
        yield reason_of(case, "RULE_UNVERIFIED", "review", gist, case.document.outputs.sections)
    elif confidence != "stored-copy":
        gist = f"That these terms bind {case.teacher.model} is known from {confidence} sources only"
        yield reason_of(case, "RULE_UNVERIFIED", "review", gist, None)
    if source.newer_version_unread and not case.document.fixed_at_download:
        yield reason_of(case, "RULE_STALE", "review", source.newer_version_unread, None)


def _applies(case: Case, duty: Duty) -> Answer:
    """Whether a duty can concern this student at all; missing facts leave it standing."""
    selector = [Answer(duty.modality == "text")]
    if duty.teacher is not None:
        selector.append(case.about_teacher(duty.teacher))
    return all_of((*selector, case.holds(duty.when)))


def _obligation(case: Case, duty: Duty) -> Obligation:
    params = duty.model_dump(
        mode="json", exclude_none=True, exclude_defaults=True, exclude={"type", "trigger", "section", "when"}
    )
    return Obligation(
        type=duty.type,
        text=describe(case.document, duty),
        trigger=duty.trigger,
        document=case.document.name,
        section=duty.section,
        params=params,
        teachers=(case.teacher.label,),
        due=due(case, duty),
    )


def _claims_of_rules(case: Case, confidence: Confidence) -> Claims:
    """What the bans demand of any student: a family to start from, or a purpose."""
    claims = Claims(
        reach=case.document.reach,
        confidence=max(confidence, case.document.source.confidence, key=CONFIDENCES.index),
    )
    for rule in case.document.rules:
        if rule.verdict != "deny" or case.use.action not in rule.actions:
            continue
        if rule.code == "SAME_FAMILY_ONLY" and case.document.family is not None:
            claims = claims.join(Claims(families=frozenset({case.document.family.name})))
        if rule.code == "NONCOMMERCIAL":
            claims = claims.join(Claims(purposes=frozenset({"noncommercial"})))
    return claims


def _once(reasons: Iterable[Reason]) -> list[Reason]:
    """Reasons without repetitions, and with the review of a rule dropped where the same rule already denies."""
    found = list(dict.fromkeys((r.code, r.verdict, r.section, r.gist) for r in reasons))
    first = {(r.code, r.verdict, r.section, r.gist): r for r in reversed(list(reasons))}
    denied = {(code, section) for code, verdict, section, _ in found if verdict == "deny"}
    return [first[k] for k in found if not (k[1] == "review" and (k[0], k[2]) in denied)]
