"""How a reason is written: the document it comes from, the facts that were read, the ways out."""

from __future__ import annotations

from policies.codes import ways_out
from policies.decision import Reason, Verdict
from policies.facts import YES, Answer, Case


def reason_of(
    case: Case,
    code: str,
    verdict: Verdict,
    gist: str,
    section: str | None,
    answer: Answer = YES,
    fix: tuple[str, ...] = (),
) -> Reason:
    """A reason in the name of the case's document, with the facts that were read and the usual ways out."""
    return Reason(
        code=code,
        verdict=verdict,
        teacher=case.teacher.label,
        document=case.document.name,
        section=section,
        gist=gist,
        fix=fix or ways_out(code),
        facts=dict(answer.facts),
    )


def missing_reason(case: Case, code: str, could_be: Verdict, gist: str, section: str | None, answer: Answer) -> Reason:
    """Review for want of facts: which ones, and what the rule that needs them would say at worst."""
    names = sorted(answer.missing)
    facts = {**answer.facts, "missing": names, "rule": code, "could_be": could_be}
    return Reason(
        code="MISSING_FACT",
        verdict="review",
        teacher=case.teacher.label,
        document=case.document.name,
        section=section,
        gist=f"{', '.join(names)} decides: {gist}",
        fix=tuple(f"give {name} in use.toml" for name in names),
        facts=facts,
    )
