"""More cases, read out of the documents by hand: aggregators, dates, layers, limits, territories, prompts, waivers."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from policies.documents import load_bundle
from policies.evaluate import evaluate
from policies.identity import Material, Teacher
from policies.use import Use
from tests.policies.test_vectors import ACTIONS, TODAY, VECTORS, waiver_of

CASES = json.loads((Path(__file__).parent / "data" / "more_vectors.json").read_text())["cases"]


def use_of(case: dict[str, Any]) -> Use:
    """The defaults of the reference cases; null takes a fact away."""
    action = case.get("action") or ACTIONS[case["use"]]
    organisation = {**VECTORS["defaults"]["organisation"], "deploys_in": ["US"]}
    organisation["monthly_active_users"] = organisation.pop("mau")
    student = dict(VECTORS["defaults"]["student"])
    if action == "internal_use":
        student["distributed"] = False
    facts = [{**student, **case.get("student", {})}, {**organisation, **case.get("organisation", {})}]
    given = [{name: value for name, value in table.items() if value is not None} for table in facts]
    return Use.model_validate({"action": action, "student": given[0], "organisation": given[1]})


def materials_of(case: dict[str, Any]) -> list[Material]:
    first, last = (date.fromisoformat(day) for day in case["collected"]) if "collected" in case else (None, None)
    return [
        Material(
            teacher=Teacher.parse(text),
            signal=case.get("signal", "top_k_logprobs"),
            prompt_licence=case.get("prompt_licence"),
            terms=tuple(case["terms"]) if "terms" in case else None,
            collected_from=first,
            collected_to=last,
        )
        for text in case["teachers"]
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    materials, waivers = materials_of(case), []
    if "waiver" in case:
        waivers = [waiver_of(case["waiver"], materials[0].teacher, **case.get("waiver_changes", {}))]
    today = date.fromisoformat(case.get("today", TODAY.isoformat()))
    decision = evaluate(materials, use_of(case), bundle=load_bundle(), today=today, waivers=waivers)
    codes = {reason.code for reason in decision.reasons}
    assert (decision.verdict, set(case.get("codes", ())) - codes) == (case["verdict"], set()), decision.to_json()
    if "missing" in case:
        assert list(decision.missing_facts) == case["missing"]
    if "due" in case:
        assert sorted({o.type for o in decision.obligations if o.due and o.trigger != "always"}) == case["due"]
    if "drop" in case:
        assert decision.drop is not None and list(decision.drop.teachers) == case["drop"]
