"""Three-valued answers: does a condition hold, given facts of which some are missing?

Kleene's logic keeps a missing fact harmless where it cannot matter: unknown AND false is false.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from policies.countries import within
from policies.documents import Condition, Document
from policies.identity import SIGNALS, Signal, Teacher
from policies.licences import under
from policies.use import Use


class Answer(NamedTuple):
    """`holds` is None when the facts do not say; `missing` then names those that would, and is empty when it is the
    text itself that does not say. `facts` are those that were read."""

    holds: bool | None
    missing: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = {}


YES = Answer(True)


def all_of(answers: Iterable[Answer]) -> Answer:
    """True when all are; one that is false settles it, whatever is missing elsewhere."""
    found = list(answers)
    facts = {name: value for answer in found for name, value in answer.facts.items()}
    if any(answer.holds is False for answer in found):
        return Answer(False, frozenset(), facts)
    if all(answer.holds for answer in found):
        return Answer(True, frozenset(), facts)
    missing = frozenset(name for answer in found if answer.holds is None for name in answer.missing)
    return Answer(None, missing, facts)


def negate(answer: Answer) -> Answer:
    """The opposite; unknown stays unknown."""
    return answer if answer.holds is None else answer._replace(holds=not answer.holds)


def any_of(answers: Iterable[Answer]) -> Answer:
    """True when one is; by de Morgan."""
    return negate(all_of(negate(answer) for answer in answers))


@lru_cache(maxsize=4096)  # each teacher meets every pattern of the register
def matches(text: str, patterns: tuple[str, ...]) -> bool:
    """Whether a model id or revision matches one of the globs; case does not count, as on the hubs."""
    return any(fnmatch.fnmatchcase(text.casefold(), pattern.casefold()) for pattern in patterns)


@dataclass(frozen=True)
class Case:
    """One teacher's outputs under one document, for one use: everything that a condition may ask about."""

    teacher: Teacher
    signal: Signal
    use: Use
    document: Document

    def holds(self, when: tuple[Condition, ...], unless: tuple[Condition, ...] = ()) -> Answer:
        """Whether one of `when` holds (none given: it always does) and none of `unless` does."""
        positive = any_of(self._condition(c) for c in when) if when else YES
        negative = any_of(self._condition(c) for c in unless) if unless else Answer(False)
        return all_of((positive, negate(negative)))

    def _condition(self, condition: Condition) -> Answer:
        asked = {name: value for name, value in condition.model_dump(exclude_none=True).items() if name != "users_on"}
        return all_of(self._ask(name, value, condition) for name, value in asked.items())

    def _ask(self, name: str, wanted: Any, condition: Condition) -> Answer:
        """One question of a condition; a flag may ask for the opposite."""
        if name in _FLAGS:
            answer = _FLAGS[name](self)
            return answer if wanted else negate(answer)
        if name == "users_over":
            return self.users_over(wanted, condition.users_on)
        return _QUESTIONS[name](self, wanted)

    @property
    def worst_signal(self) -> Signal:
        """What was collected or what the use says it takes, whichever shows more of the teacher."""
        declared = self.use.data.signal or "text"
        return max(self.signal, declared, key=SIGNALS.index)

    def fact(self, path: str) -> Any:
        """The value at a path of use.toml such as `student.kind`, None when it is not given.

        An action settles what it implies: a student that is distributed is distributed, one for internal use is not.
        """
        table, name = path.split(".")
        value = getattr(getattr(self.use, table), name)
        implied = {
            ("distribute_student", "student.distributed"): True,
            ("host_student", "student.hosted"): True,
            ("internal_use", "student.distributed"): False,
        }
        return implied.get((self.use.action, path)) if value is None else value

    def is_any(self, path: str, wanted: tuple[Any, ...]) -> Answer:
        """Whether a fact has one of the values."""
        value = self.fact(path)
        if value is None:
            return Answer(None, frozenset({path}))
        return Answer(value in wanted, facts={path: value})

    def about_teacher(self, patterns: tuple[str, ...]) -> Answer:
        """Whether the teacher's id matches one of the globs."""
        return Answer(matches(self.teacher.model, patterns), facts={"teacher": self.teacher.model})

    def commerce(self) -> Answer:
        """Whether the organisation is a commercial one."""
        return self.is_any("organisation.commercial", (True,))

    def deployed_or_domiciled(self, territories: tuple[str, ...]) -> Answer:
        """Whether the organisation or the student is in one of the territories."""
        return any_of((self.domiciled(territories), self.deployed(territories)))

    def released(self) -> Answer:
        """Whether others get the student itself."""
        return self.is_any("student.distributed", (True,))

    def listed(self, path: str) -> Answer:
        """Whether the document is among those that a list of the organisation names."""
        value = self.fact(path)
        if value is None:
            return Answer(None, frozenset({path}))
        return Answer(self.document.id in value or self.document.name in value, facts={path: list(value)})

    def in_business(self, wanted: tuple[str, ...]) -> Answer:
        """Whether the organisation is in one of the businesses."""
        value = self.use.organisation.business
        if value is None:
            return Answer(None, frozenset({"organisation.business"}))
        return Answer(bool(set(value) & set(wanted)), facts={"organisation.business": list(value)})

    def over(self, path: str, limit: float) -> Answer:
        """Whether a figure of the organisation lies above a limit."""
        value = self.fact(path)
        if value is None:
            return Answer(None, frozenset({path}))
        return Answer(value > limit, facts={path: value})

    def users_over(self, limit: float, on: date | None) -> Answer:
        """Monthly active users on the day that the licence names, else the figure of today."""
        dated = self.use.organisation.monthly_active_users_on
        if on is not None and on in dated:
            return Answer(dated[on] > limit, facts={f"organisation.monthly_active_users_on.{on}": dated[on]})
        return self.over("organisation.monthly_active_users", limit)

    def domiciled(self, territories: tuple[str, ...]) -> Answer:
        """Whether the organisation is domiciled in one of the territories."""
        country = self.use.organisation.domicile
        if country is None:
            return Answer(None, frozenset({"organisation.domicile"}))
        facts = {"organisation.domicile": country}
        return Answer(any(within(country, t) for t in territories), facts=facts)

    def deployed(self, territories: tuple[str, ...]) -> Answer:
        """Whether the student is deployed in one of the territories."""
        countries = self.use.organisation.deploys_in
        if countries is None:
            return Answer(None, frozenset({"organisation.deploys_in"}))
        inside = any(within(country, t) for country in countries for t in territories)
        return Answer(inside, facts={"organisation.deploys_in": list(countries)})

    def in_family(self) -> Answer:
        """Whether the student starts from weights of the document's family; None without missing facts where the
        text does not say if those weights count."""
        start = self.fact("student.init_from")
        family = self.document.family
        if family is None or start == "scratch":
            return Answer(False, facts={"student.init_from": start})
        if start is None:
            return Answer(None, frozenset({"student.init_from"}))
        facts = {"student.init_from": start}
        if matches(start, family.members):
            return Answer(True, facts=facts)
        return Answer(None if matches(start, family.unclear) else False, facts=facts)

    def under_this_licence(self) -> Answer:
        """Whether the student is released under the document itself."""
        licence = self.fact("student.licence")
        if licence is None:
            return Answer(None, frozenset({"student.licence"}))
        return Answer(under(licence, self.document.licence, self.document.id), facts={"student.licence": licence})

    def derivative(self) -> Answer:
        """Whether the student becomes a derivative under the document; None without missing facts where the text
        is unclear."""
        reading = self.document.student
        if reading.is_derivative == "yes":
            return self.holds(reading.when)
        return Answer(None) if reading.is_derivative == "unclear" else Answer(False)


_FLAGS: dict[str, Callable[[Case], Answer]] = {
    "commercial": Case.commerce,
    "derivative": Case.derivative,
    "intent_similar": lambda case: case.is_any("student.intent_similar", (True,)),
    "student_distributed": Case.released,
    "student_in_family": Case.in_family,
    "student_under_this_licence": Case.under_this_licence,
}

_QUESTIONS: dict[str, Callable[[Case, Any], Answer]] = {
    "business": Case.in_business,
    "domicile": Case.domiciled,
    "revenue_over_usd": lambda case, limit: case.over("organisation.annual_revenue_usd", limit),
    "signal": lambda case, signals: Answer(case.worst_signal in signals, facts={"signal": case.worst_signal}),
    "student_kind": lambda case, kinds: case.is_any("student.kind", kinds),
    "teacher": Case.about_teacher,
    "territory": Case.deployed_or_domiciled,
}
