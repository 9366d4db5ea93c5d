"""The verdicts that the reading of each document proposed, against what its rules come to; where they part, why.

Proposals know no facts: they are tried on a student that does what it can (name, licence, registration), by a company
whose business is something else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policies.documents import load_bundle
from policies.evaluate import evaluate
from policies.identity import Material
from policies.use import Action, Use
from tests.policies.cases import ORGANISATION, STUDENT, TODAY, teacher_of

PROPOSED: dict[str, list[str]] = json.loads((Path(__file__).parent / "data" / "proposals.json").read_text())
COLUMNS: tuple[tuple[Action, bool], ...] = (
    ("distribute_student", True),
    ("internal_use", True),
    ("internal_use", False),
)
"""Commercial and distributed, commercial and inside, not commercial."""

NAMES = {"llama-3": "Llama-3-acme", "glm-4-9b": "glm-4-acme"}

ELSEWHERE: dict[str, tuple[dict[int, str], str]] = {
    **{
        name: ({2: "allow"}, "what is owed is owed where the student is given away, and here it stays inside")
        for name in (
            *("llama-3.1", "llama-3.2", "llama-3.3", "llama-4", "deepseek-r1-distill-llama"),
            *("qwen-license-2024", "minimax-model-license"),
        )
    },
    "minimax-m2-modified-mit": ({0: "conditional"}, "50 million USD a year are above the 30 from which a line is owed"),
    "together": ({0: "conditional"}, "another host competes with Together; whose business is something else does not"),
    "yi-community-2.1": ({0: "conditional"}, "the organisation is registered, which is what the review was for"),
    "lfm-open-1.0": ({0: "deny"}, "50 million USD a year are above the 10 at which commercial rights end"),
    "mistral-consumer-eu": ({0: "deny", 1: "deny", 2: "deny"}, "a consumer product is never collected from"),
    "kimi-consumer": ({2: "deny"}, "a consumer product is never collected from"),
    "meta-model-api": (
        {2: "review"},
        "the ban speaks of competing models, whoever trains them; what competes is not said",
    ),
    "stability-community-2024": ({2: "deny"}, "a general model is foundational, and the ban knows no purpose"),
}
"""Where the rules come to something else than was proposed: column → verdict, and the reason."""


def use_of(document_id: str, action: Action, commercial: bool) -> Use:
    student: dict[str, Any] = {**STUDENT, "name": NAMES.get(document_id, "Llama-acme"), "licence": "LicenseRef-acme"}
    listed = {"registrations": [document_id], "business": ["other"]}
    organisation = {**ORGANISATION, **listed, "commercial": commercial}
    if not commercial:
        organisation["annual_revenue_usd"] = 0
    if document_id == "stability-nc-2023":
        student["licence"] = f"LicenseRef-{document_id}"
    return Use.model_validate({"action": action, "student": student, "organisation": organisation})


def test_every_document_has_a_proposal() -> None:
    assert {d.id for d in load_bundle().documents} - {"own-work"} == set(PROPOSED)
    assert len(PROPOSED) == 73 and set(ELSEWHERE) <= set(PROPOSED)


@pytest.mark.parametrize("document_id", sorted(PROPOSED))
def test_the_rules_come_to_what_was_proposed(document_id: str) -> None:
    bundle = load_bundle()
    teacher = teacher_of(bundle.versions(document_id)[-1], bundle)
    found = []
    for action, commercial in COLUMNS:
        material = Material(teacher=teacher, signal="top_k_logprobs")
        use = use_of(document_id, action, commercial)
        found.append(evaluate([material], use, bundle=bundle, today=TODAY).verdict)
    differing, why = ELSEWHERE.get(document_id, ({}, ""))
    assert found == [differing.get(column, verdict) for column, verdict in enumerate(PROPOSED[document_id])], why
