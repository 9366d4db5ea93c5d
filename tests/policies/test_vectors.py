"""The reference cases: every one must come out by general rules."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from policies.binding import bind
from policies.documents import load_bundle
from policies.evaluate import evaluate
from policies.identity import Material, Teacher
from policies.use import Use
from policies.waivers import Waiver

VECTORS = json.loads((Path(__file__).parent / "data" / "vectors.json").read_text())
TODAY = date(2026, 11, 24)
ACTIONS = {"distribute": "distribute_student", "internal": "internal_use"}


def use_of(case: dict[str, Any]) -> Use:
    defaults = VECTORS["defaults"]
    organisation = dict(defaults["organisation"])
    organisation["monthly_active_users"] = organisation.pop("mau")
    student = {**defaults["student"], **case.get("student", {})}
    action = case.get("action") or ACTIONS[case["use"]]
    if action == "internal_use":
        student["distributed"] = False
    return Use.model_validate({"action": action, "student": student, "organisation": organisation})


def materials_of(case: dict[str, Any]) -> list[Material]:
    path = case.get("access_path", VECTORS["defaults"]["access_path"])
    signal = case.get("signal", VECTORS["defaults"]["signal"])
    teachers = [Teacher(model=m, revision=case.get("revision"), access_path=path) for m in case["teachers"]]
    return [Material(teacher=teacher, signal=signal) for teacher in teachers]


def waiver_of(kind: str, teacher: Teacher) -> Waiver:
    document = bind(teacher, load_bundle(), TODAY).bound[0].document
    facts: dict[str, Any] = {
        "kind": kind,
        "document": document.name,
        "document_digest": document.digest,
        "rules": sorted({rule.code for rule in document.rules if rule.verdict == "deny"}),
        "valid_from": date(2026, 11, 1),
        "valid_until": date(2027, 1, 31),
    }
    if kind == "external_permission":
        facts["permission"] = {
            "title": "Letter of 2026-10-20",
            "sha256": "ab" * 32,
            "granted_by": document.provider,
            "granted_on": date(2026, 10, 20),
        }
    else:
        facts |= {"reason": "small risk", "approvers": ["Ada", "Grace"]}
    return Waiver.model_validate(facts)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["id"])
def test_vector(case: dict[str, Any]) -> None:
    materials = materials_of(case)
    waivers = [waiver_of(case["waiver"], materials[0].teacher)] if "waiver" in case else []
    decision = evaluate(materials, use_of(case), bundle=load_bundle(), today=TODAY, waivers=waivers)
    codes = {reason.code for reason in decision.reasons}
    assert decision.verdict == case["verdict"], decision.to_json()
    assert set(case.get("codes", ())) <= codes, decision.to_json()
