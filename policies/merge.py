"""The lattice: what the terms of many teachers demand together, component by component.

`Claims.join` is commutative, associative and idempotent and never improves anything, so it does not matter in which
order groups of rows are looked at, and more data can never turn a no into a yes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import reduce
from typing import Literal

from policies.decision import VERDICTS, Verdict
from policies.documents import CONFIDENCES, REACHES, Confidence, Reach

Purpose = Literal["commercial", "noncommercial"]
PURPOSES: frozenset[Purpose] = frozenset(("commercial", "noncommercial"))


@dataclass(frozen=True, order=True)
class Limit:
    """A licence holds up to `value` of a metric (monthly_active_users, annual_revenue_usd), on a date or at any."""

    metric: str
    on: date
    value: float


@dataclass(frozen=True)
class Claims:
    """What terms demand of a student and its maker. The default demands nothing: the unit of the join.

    `families` is None where any initial weights will do. `share_alike` holds the licences that the student must be
    under; more than one cannot be met.
    """

    verdict: Verdict = "allow"
    purposes: frozenset[Purpose] = PURPOSES
    families: frozenset[str] | None = None
    name_prefixes: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()
    limits: frozenset[Limit] = frozenset()
    territories: frozenset[str] = frozenset()
    attributions: frozenset[str] = frozenset()
    notices: frozenset[str] = frozenset()
    licence_copies: frozenset[str] = frozenset()
    use_restrictions: frozenset[str] = frozenset()
    share_alike: frozenset[str] = frozenset()
    reach: Reach = "none"
    confidence: Confidence = "stored-copy"

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", lowest(self.limits))

    def join(self, other: Claims) -> Claims:
        """What both demand: at least as strict as either."""
        return Claims(
            verdict=worst((self.verdict, other.verdict)),
            purposes=self.purposes & other.purposes,
            families=_both(self.families, other.families),
            name_prefixes=self.name_prefixes | other.name_prefixes,
            marks=self.marks | other.marks,
            limits=self.limits | other.limits,
            territories=self.territories | other.territories,
            attributions=self.attributions | other.attributions,
            notices=self.notices | other.notices,
            licence_copies=self.licence_copies | other.licence_copies,
            use_restrictions=self.use_restrictions | other.use_restrictions,
            share_alike=self.share_alike | other.share_alike,
            reach=max(self.reach, other.reach, key=REACHES.index),
            confidence=max(self.confidence, other.confidence, key=CONFIDENCES.index),
        )


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The strictest verdict, allow when there is none."""
    return max(verdicts, key=VERDICTS.index, default="allow")


def merge(claims: Iterable[Claims]) -> Claims:
    """All of them together."""
    return reduce(Claims.join, claims, Claims())


def lowest(limits: Iterable[Limit]) -> frozenset[Limit]:
    """The smallest value for each metric and date: whoever keeps it keeps the others."""
    best: dict[tuple[str, date], Limit] = {}
    for limit in limits:
        held = best.get((limit.metric, limit.on))
        if held is None or limit.value < held.value:
            best[limit.metric, limit.on] = limit
    return frozenset(best.values())


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """Families that satisfy both; None is any family."""
    if one is None or other is None:
        return other if one is None else one
    return one & other
