"""The lattice laws of merging, and what a merge of known teachers comes to."""

from __future__ import annotations

from dataclasses import fields
from datetime import date

from hypothesis import given, settings

from policies.decision import VERDICTS
from policies.documents import CONFIDENCES, REACHES
from policies.merge import PURPOSES, Claims, Limit, lowest, merge, worst
from tests.policies.strategies import triples_of_claims


@settings(max_examples=400, deadline=None)
@given(triples_of_claims(25))  # 10,000 cases
def test_join_is_a_semilattice_and_never_improves(triples: list[tuple[Claims, Claims, Claims]]) -> None:
    for a, b, c in triples:
        both = a.join(b)
        assert both == b.join(a)
        assert both.join(c) == a.join(b.join(c))
        assert a.join(a) == a
        assert a.join(Claims()) == a
        never_improves(a, both)


def never_improves(a: Claims, both: Claims) -> None:
    assert VERDICTS.index(both.verdict) >= VERDICTS.index(a.verdict)
    assert both.purposes <= a.purposes
    assert a.families is None or (both.families is not None and both.families <= a.families)
    for name in GROWING:
        assert getattr(both, name) >= getattr(a, name)
    for limit in a.limits:
        held = [x for x in both.limits if (x.metric, x.on) == (limit.metric, limit.on)]
        assert len(held) == 1 and held[0].value <= limit.value
    assert REACHES.index(both.reach) >= REACHES.index(a.reach)
    assert CONFIDENCES.index(both.confidence) >= CONFIDENCES.index(a.confidence)


GROWING = (
    "name_prefixes",
    "marks",
    "territories",
    "attributions",
    "notices",
    "licence_copies",
    "use_restrictions",
    "share_alike",
)


def test_every_component_is_covered_by_the_laws() -> None:
    others = {"verdict", "purposes", "families", "limits", "reach", "confidence"}
    assert {field.name for field in fields(Claims)} == others | set(GROWING)


def test_nothing_is_the_unit() -> None:
    assert merge([]) == Claims()
    assert Claims().purposes == PURPOSES
    assert worst([]) == "allow"
    assert worst(["conditional", "deny", "review"]) == "deny"


def test_the_smaller_limit_holds_for_each_metric_and_date() -> None:
    day, later = date(2023, 7, 18), date(2024, 4, 18)
    limits = [Limit("users", day, 7e8), Limit("users", day, 1e8), Limit("users", later, 7e8), Limit("usd", day, 9e9)]
    assert lowest(limits) == {Limit("users", day, 1e8), Limit("users", later, 7e8), Limit("usd", day, 9e9)}
    assert lowest(reversed(limits)) == lowest(limits)


def test_families_intersect() -> None:
    llama, any_family = Claims(families=frozenset({"llama-3"})), Claims()
    assert llama.join(any_family).families == {"llama-3"}
    assert any_family.join(llama).families == {"llama-3"}
    assert llama.join(Claims(families=frozenset({"hunyuan"}))).families == frozenset()
