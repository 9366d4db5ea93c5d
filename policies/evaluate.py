"""Rules × facts → decision: may these teachers' outputs serve this use, under this bundle?

Pure: no files, no clock but the default of `today`. Every document that binds is judged as of now and as of collection,
the teachers are merged, and the strictest word stands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import ModuleType
from typing import Any

from policies.binding import AGGREGATOR, Binding, Bound, Problem, bind
from policies.clauses import Finding, judge
from policies.codes import ways_out
from policies.decision import VERDICTS, Decision, Obligation, Reason, TeacherVerdict, Verdict, digest_of
from policies.documents import Bundle, Document
from policies.errors import FactsError
from policies.facts import Case
from policies.identity import Material
from policies.merge import Claims, merge, worst
from policies.obligations import Share, conflicts, smallest_drop
from policies.prompts import judge_prompts
from policies.use import Use
from policies.waivers import Waiver, apply_waivers, check_waivers

REVIEW_CODES = ("IDENTITY_INCOMPLETE", "SERVED_PROVIDER_MISSING")
"""Problems of identity that a fact can settle; every other one is a refusal."""


@dataclass(frozen=True)
class _Judged:
    """One teacher: all that was found about its groups of rows."""

    reasons: tuple[Reason, ...]
    obligations: tuple[Obligation, ...]
    claims: Claims
    terms: tuple[str, ...]
    rows: int
    tokens: int


def evaluate(
    materials: Sequence[Material],
    use: Use,
    *,
    bundle: Bundle,
    today: date | None = None,
    waivers: Sequence[Waiver] = (),
) -> Decision:
    """Judge a use of some teachers' outputs.

    `today` is the day that terms in force, waivers and reviews are judged by (default: now, UTC). Raises FactsError
    for facts that cannot be: nothing to judge, dates in the future, a waiver for another version of a document.
    """
    now = datetime.now(UTC)
    day = today or now.date()
    if not materials:
        raise FactsError("there is nothing to judge: name a teacher, or audit a table that has rows")
    for material in materials:
        _check_facts(material, day)
    for on in use.organisation.monthly_active_users_on:
        if on > day:
            raise FactsError(f"organisation.monthly_active_users_on: {on} lies in the future")
    check_waivers(waivers, bundle, day)
    judged = {
        label: _judge_teacher(group, use, bundle, day, waivers) for label, group in _by_teacher(materials).items()
    }
    together = merge(part.claims for part in judged.values())
    reasons = [reason for part in judged.values() for reason in part.reasons] + list(conflicts(together))
    shares = {label: Share(part.claims, part.rows, part.tokens) for label, part in judged.items()}
    facts = _facts(materials, use, waivers)
    return Decision(
        verdict=worst([together.verdict, *(reason.verdict for reason in reasons)]),
        action=use.action,
        reasons=tuple(sorted(reasons, key=_reading_order)),
        obligations=_merged(obligation for part in judged.values() for obligation in part.obligations),
        missing_facts=_missing(reasons),
        per_teacher={label: _verdict(part) for label, part in judged.items()},
        drop=smallest_drop(shares),
        bundle=bundle.id,
        bundle_digest=bundle.digest,
        facts=facts,
        facts_digest=digest_of(facts),
        decided_at=now if today is None else datetime(day.year, day.month, day.day, tzinfo=UTC),
    )


def _check_facts(material: Material, today: date) -> None:
    teacher = material.teacher
    if teacher.served_by is not None and teacher.access_path != AGGREGATOR:
        raise FactsError(
            f"{teacher.label}: served_by: only an aggregator passes requests on, and {teacher.access_path} is none; "
            "leave it out, or give the access path of the one that answered"
        )
    for name in ("collected_from", "collected_to"):
        day = getattr(material, name)
        if day is not None and day > today + timedelta(days=1):  # clocks of other time zones
            raise FactsError(f"{material.teacher.label}: {name}: {day} lies in the future")


def _by_teacher(materials: Iterable[Material]) -> dict[str, list[Material]]:
    groups: dict[str, list[Material]] = {}
    for material in materials:
        groups.setdefault(material.teacher.label, []).append(material)
    return {label: groups[label] for label in sorted(groups)}


def _judge_teacher(
    group: Sequence[Material], use: Use, bundle: Bundle, day: date, waivers: Sequence[Waiver]
) -> _Judged:
    reasons: list[Reason] = []
    obligations: list[Obligation] = []
    claims: list[Claims] = []
    verdicts: list[Verdict] = []
    terms: set[str] = set()
    binding = bind(group[0].teacher, bundle, day)
    for material in group:
        reasons += [_of_problem(material, problem) for problem in binding.problems]
        bound, notes = _in_time(material, binding, bundle)
        reasons += notes
        terms |= {item.document.name for item in bound}
        for item in bound:
            finding = _judge_document(item, material, use, day, waivers)
            reasons += finding.reasons
            obligations += finding.obligations
            claims.append(finding.claims)
            verdicts.append(finding.verdict)
        prompts = judge_prompts(material, use)
        reasons += prompts.reasons
        obligations += prompts.obligations
        verdicts.append(prompts.verdict)
    kept = _decisive(reasons)
    verdict = worst([*(r.verdict for r in kept), *(v for v in verdicts if v == "conditional")])
    return _Judged(
        reasons=tuple(kept),
        obligations=tuple(obligations),
        claims=merge([*claims, Claims(verdict=verdict)]),
        terms=tuple(sorted(terms)),
        rows=sum(m.rows for m in group),
        tokens=sum(m.tokens for m in group),
    )


def _judge_document(bound: Bound, material: Material, use: Use, day: date, waivers: Sequence[Waiver]) -> Finding:
    case = Case(material.teacher, material.signal, use, bound.document)
    finding = judge(case, bound.confidence)
    document = bound.document
    if document.next_review < day and not document.fixed_at_download:
        gist = f"Terms of a service drift; this reading was to be looked at again by {document.next_review}"
        stale = Reason(
            code="RULE_STALE",
            verdict="review",
            teacher=material.teacher.label,
            document=document.name,
            gist=gist,
            fix=ways_out("RULE_STALE"),
        )
        finding = Finding((*finding.reasons, stale), finding.obligations, finding.claims)
    return apply_waivers(finding, case, waivers, day)


def _of_problem(material: Material, problem: Problem) -> Reason:
    verdict: Verdict = "review" if problem.code in REVIEW_CODES else "deny"
    missing = {"missing": [problem.missing]} if problem.missing else {}
    return Reason(
        code=problem.code,
        verdict=verdict,
        teacher=material.teacher.label,
        gist=problem.gist[0].upper() + problem.gist[1:],
        fix=ways_out(problem.code),
        facts=missing,
    )


def _in_time(material: Material, binding: Binding, bundle: Bundle) -> tuple[tuple[Bound, ...], list[Reason]]:
    """The versions to judge by: those of now, and those that were in force when the rows were made.

    A licence that came with weights keeps its text: there the version that the rows recorded stands alone.
    """
    recorded: list[Document] = []
    notes: list[Reason] = []
    for name in material.terms or ():
        document = bundle.get(name)
        if document is None:
            notes.append(_unknown_terms(material, f"Rows name the terms {name}, which the bundle does not know"))
        else:
            recorded.append(document)
    if material.terms is not None and not material.terms:
        notes.append(_unknown_terms(material, "Rows were written without terms"))
    bound: dict[str, Bound] = {}
    for item in binding.bound:
        then = [d for d in recorded if d.id == item.document.id]
        if not (item.document.fixed_at_download and then):
            bound[item.document.name] = item
        if not item.document.fixed_at_download:
            then += _in_force(item.document, material, bundle)
            notes += _changed(material, item.document, then)
        bound.update({document.name: Bound(document, item.confidence) for document in then})
    bound.update({document.name: bound.get(document.name, Bound(document)) for document in recorded})
    return tuple(bound[name] for name in sorted(bound)), notes


def _in_force(document: Document, material: Material, bundle: Bundle) -> list[Document]:
    """The versions of a service's terms that were in force while the rows were collected."""
    first = material.collected_from or material.collected_to
    last = material.collected_to or material.collected_from
    if first is None or last is None:
        return []
    versions = bundle.versions(document.id)
    start = bundle.in_force(document.id, first)
    begun = [d for d in versions if d.effective_from and first < d.effective_from <= last]
    return [d for d in (start, *begun) if d is not None]


def _changed(material: Material, document: Document, then: Sequence[Document]) -> list[Reason]:
    """What to say of versions between collection and now: that they differ, or that the one of then is not known."""
    reasons: list[Reason] = []
    earlier = sorted({d.name for d in then} - {document.name})
    if earlier:
        gist = f"{', '.join(earlier)} held when the rows were made, {document.name} holds now"
        reasons.append(_note(material, document, "TERMS_CHANGED_SINCE_COLLECTION", "allow", gist))
    first = material.collected_from
    oldest = min((d.effective_from for d in (*then, document) if d.effective_from), default=None)
    if first is not None and oldest is not None and first < oldest:
        gist = f"Rows were made on {first}; the register knows these terms only since {oldest}"
        reasons.append(_note(material, document, "RULE_UNVERIFIED", "review", gist))
    return reasons


def _note(material: Material, document: Document, code: str, verdict: Verdict, gist: str) -> Reason:
    return Reason(
        code=code,
        verdict=verdict,
        teacher=material.teacher.label,
        document=document.name,
        gist=gist,
        fix=ways_out(code),
    )


def _unknown_terms(material: Material, gist: str) -> Reason:
    return Reason(
        code="UNKNOWN_TERMS",
        verdict="deny",
        teacher=material.teacher.label,
        gist=gist,
        fix=ways_out("UNKNOWN_TERMS"),
    )


def _decisive(reasons: Sequence[Reason]) -> list[Reason]:
    """Each reason once, without those that want a fact which could change nothing any more."""
    definite = worst(r.verdict for r in reasons if r.code != "MISSING_FACT")
    once = {digest_of(r.model_dump(mode="json")): r for r in reasons}
    return [r for r in once.values() if r.code != "MISSING_FACT" or _above(r, definite)]


def _above(reason: Reason, verdict: Verdict) -> bool:
    return VERDICTS.index(reason.facts["could_be"]) > VERDICTS.index(verdict)


def _missing(reasons: Sequence[Reason]) -> tuple[str, ...]:
    """The facts that would still change the verdict, none of the others."""
    definite = worst(r.verdict for r in reasons if r.code not in ("MISSING_FACT", *REVIEW_CODES))
    wanted = [
        r
        for r in reasons
        if "missing" in r.facts and ((r.code in REVIEW_CODES and definite != "deny") or _wanted(r, definite))
    ]
    return tuple(sorted({name for reason in wanted for name in reason.facts["missing"]}))


def _wanted(reason: Reason, definite: Verdict) -> bool:
    return reason.code == "MISSING_FACT" and _above(reason, definite)


def _reading_order(reason: Reason) -> tuple[Any, ...]:
    """Strictest first, then by teacher and document."""
    rest = digest_of(reason.model_dump(mode="json"))  # what is alike in all else keeps one order too
    return -VERDICTS.index(reason.verdict), reason.teacher or "", reason.document or "", reason.code, reason.gist, rest


def _verdict(part: _Judged) -> TeacherVerdict:
    return TeacherVerdict(verdict=part.claims.verdict, terms=part.terms, rows=part.rows, tokens=part.tokens)


def _merged(obligations: Iterable[Obligation]) -> tuple[Obligation, ...]:
    """The same duty of several teachers once, with all their names; those that are due first."""
    merged: dict[str, Obligation] = {}
    for obligation in obligations:
        key = digest_of(obligation.model_dump(mode="json", exclude={"teachers"}))
        held = merged.get(key, obligation)
        teachers = tuple(sorted({*held.teachers, *obligation.teachers}))
        merged[key] = held.model_copy(update={"teachers": teachers})
    return tuple(sorted(merged.values(), key=_owing_order))


def _owing_order(obligation: Obligation) -> tuple[Any, ...]:
    """What is due first, what is due at all times last."""
    later = not obligation.due, obligation.trigger == "always"
    return *later, obligation.document, obligation.type, obligation.text, digest_of(obligation.model_dump(mode="json"))


def _facts(materials: Sequence[Material], use: Use, waivers: Sequence[Waiver]) -> Mapping[str, Any]:
    """All that the decision was made on, in an order that does not depend on how the rows were read."""
    groups = [material.model_dump(mode="json") for material in materials]
    return {
        "use": use.model_dump(mode="json", exclude_none=True),
        "materials": sorted(groups, key=digest_of),
        "waivers": [w.record() for w in sorted(waivers, key=lambda waiver: waiver.digest)],
    }


class _Callable(ModuleType):
    """The package's name `evaluate` means this module once it is imported, so the module can be called as well."""

    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _Callable
