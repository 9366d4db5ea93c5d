"""Which uses violate an obligation outright, or need a fact or a step before they may go on.

Each check asks one question in three values: true is a refusal, unknown is a review that names the facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from policies import licences
from policies.decision import Reason
from policies.documents import Duty
from policies.duties import describe, fires, passed
from policies.facts import YES, Answer, Case, all_of, negate
from policies.names import bears, begins_with
from policies.reasons import missing_reason, reason_of


def violations(case: Case, duty: Duty) -> Iterator[Reason]:
    """The reasons that a duty gives against the use; a duty whose trigger does not fire gives none."""
    check = _CHECKS.get(duty.type)
    if check is not None and fires(case, duty):
        yield from check(case, duty)


def _against(case: Case, duty: Duty, code: str, answer: Answer, gist: str) -> Iterator[Reason]:
    """A refusal where the answer is yes, a review where it is not known."""
    if answer.holds:
        yield reason_of(case, code, "deny", gist, duty.section, answer)
    elif answer.holds is None and answer.missing:
        yield missing_reason(case, code, "deny", gist, duty.section, answer)
    elif answer.holds is None:
        yield reason_of(case, code, "review", f"{gist}: the facts given do not say", duty.section, answer)


def _name_prefix(case: Case, duty: Duty) -> Iterator[Reason]:
    name = case.use.student.name
    prefix = str(duty.value)
    answer = Answer(None, frozenset({"student.name"}))
    if name is not None:
        answer = Answer(not begins_with(name, prefix), facts={"student.name": name})
    gist = f"The student's name must begin with {prefix!r}"
    yield from _against(case, duty, "NAME_PREFIX_MISSING", answer, gist)


def _mark(case: Case, duty: Duty) -> Iterator[Reason]:
    if duty.mark is None:
        return
    name = case.use.student.name
    answer = Answer(None, frozenset({"student.name"}))
    if name is not None:
        answer = Answer(bears(name, duty.mark), facts={"student.name": name})
    gist = f"The student's name may not bear the mark {duty.mark!r}"
    yield from _against(case, duty, "MARK_FORBIDDEN_IN_NAME", answer, gist)


def _users(case: Case, duty: Duty) -> Iterator[Reason]:
    over = case.users_over(int(float(duty.value or 0)), duty.measured_on)
    yield from _licensed_above(case, duty, "MAU_GATE", over)


def _revenue(case: Case, duty: Duty) -> Iterator[Reason]:
    over = case.over("organisation.annual_revenue_usd", float(duty.value or 0))
    yield from _licensed_above(case, duty, "REVENUE_GATE", over)


def _licensed_above(case: Case, duty: Duty, code: str, over: Answer) -> Iterator[Reason]:
    """Above a threshold the licence ends, unless the organisation took one of its own."""
    if duty.trigger == "on_commercial_use":
        over = all_of((case.commerce(), over))
    separate = case.listed("organisation.separate_licences")
    if over.holds is not False and separate.holds:
        gist = f"{describe(case.document, duty)}; a separate licence is on record"
        yield reason_of(case, code, "conditional", gist, duty.section, separate)
        return
    yield from _against(case, duty, code, over, describe(case.document, duty))


def _separate(case: Case, duty: Duty) -> Iterator[Reason]:
    """A licence or an approval that some businesses need; what exempts internal use ends where others are reached."""
    yield from _licensed_above(case, duty, "REVENUE_GATE", passed(case, duty))
    commerce = case.commerce()
    if duty.exempt and commerce.holds is not False:
        gist = "Internal use is exempt only while outputs and capabilities stay inside; here others get them"
        yield reason_of(case, "INTERNAL_EXEMPTION_LOST", "conditional", gist, duty.section, commerce)


def _registration(case: Case, duty: Duty) -> Iterator[Reason]:
    registered = case.listed("organisation.registrations")
    owed = all_of((case.commerce(), negate(registered)))
    if owed.holds is not False:
        missing = owed._replace(missing=owed.missing or frozenset({"organisation.registrations"}))
        yield missing_reason(case, "MISSING_FACT", "review", describe(case.document, duty), duty.section, missing)


def _territory(case: Case, duty: Duty) -> Iterator[Reason]:
    territory = duty.territory or ()
    here = case.deployed_or_domiciled if duty.type == "territory_excluded" else case.domiciled
    inside = here(territory)
    yield from _against(case, duty, "TERRITORY", inside, describe(case.document, duty))


def _restrictions(case: Case, duty: Duty) -> Iterator[Reason]:
    """Use restrictions have to be an enforceable part of the licence that the student is released under."""
    licence = case.use.student.licence
    carries = Answer(None, frozenset({"student.licence"}))
    if licence is not None:
        carries = Answer(licences.carries_restrictions(licence), facts={"student.licence": licence})
    yield from _conflict(case, duty, carries, "cannot carry the use restrictions that must go with it")


def _share_alike(case: Case, duty: Duty) -> Iterator[Reason]:
    yield from _conflict(case, duty, case.under_this_licence(), f"is not {case.document.title}, under which it must be")


def _conflict(case: Case, duty: Duty, carries: Answer, what: str) -> Iterator[Reason]:
    """A student that is hosted and never given away has users' terms instead of a licence."""
    released = case.released() if case.use.action == "host_student" else YES
    answer = all_of((case.holds(duty.when), released, negate(carries)))
    gist = f"The student's licence {case.use.student.licence or ''} {what}".replace("  ", " ")
    yield from _against(case, duty, "STUDENT_LICENCE_CONFLICT", answer, gist)


_CHECKS: dict[str, Callable[[Case, Duty], Iterator[Reason]]] = {
    "name_prefix": _name_prefix,
    "no_trademark_use": _mark,
    "mau_threshold": _users,
    "revenue_threshold": _revenue,
    "separate_license": _separate,
    "separate_approval": _separate,
    "registration": _registration,
    "territory_excluded": _territory,
    "territory_excluded_domicile": _territory,
    "use_restrictions_enforceable": _restrictions,
    "share_alike": _share_alike,
}
