"""Prompt licences, and what a student's licence can carry."""

from __future__ import annotations

from typing import Any

import pytest

from policies.identity import Material, Teacher
from policies.licences import carries_restrictions, parse, traits, under
from policies.prompts import judge_prompts
from policies.use import Use


def found(
    licence: str | None, action: str, *, rows: int = 1, commercial: bool | None = True, student: str | None = None
) -> Any:
    material = Material(teacher=Teacher(model="a/b"), signal="text", prompt_licence=licence, rows=rows)
    use = Use.model_validate(
        {"action": action, "organisation": {"commercial": commercial}, "student": {"licence": student}}
    )
    return judge_prompts(material, use)


@pytest.mark.parametrize(
    ("licence", "action", "verdict", "code"),
    [
        ("CC0-1.0", "publish_dataset", "allow", None),
        ("LicenseRef-own", "publish_dataset", "allow", None),
        ("cc0-1.0", "distribute_student", "allow", None),
        ("MIT", "distribute_student", "allow", None),
        ("MIT", "publish_dataset", "conditional", None),
        ("CC-BY-4.0", "publish_dataset", "conditional", None),
        ("CC-BY-NC-4.0", "collect", "deny", "NONCOMMERCIAL"),
        ("CC-BY-NC-4.0", "train", "deny", "NONCOMMERCIAL"),
        ("CC-BY-NC-SA-4.0", "internal_use", "deny", "NONCOMMERCIAL"),
        ("CC-BY-SA-4.0", "train", "allow", None),
        ("CC-BY-SA-4.0", "publish_dataset", "conditional", None),
        ("CC-BY-SA-4.0", "distribute_student", "review", "STUDENT_LICENCE_CONFLICT"),
        ("GPL-3.0-or-later", "host_student", "review", "STUDENT_LICENCE_CONFLICT"),
        ("CC-BY-ND-4.0", "publish_dataset", "deny", "DATASET_PUBLICATION"),
        ("CC-BY-ND-4.0", "train", "review", "STUDENT_IS_DERIVATIVE"),
        ("CC-BY-ND-4.0", "collect", "allow", None),
        ("CC-BY-NC-ND-4.0", "collect", "deny", "NONCOMMERCIAL"),
        ("MIT AND CC-BY-NC-4.0", "train", "deny", "NONCOMMERCIAL"),
        ("MIT OR CC-BY-NC-4.0", "train", "allow", None),
        ("(MIT OR CC-BY-NC-4.0) AND CC-BY-SA-4.0", "distribute_student", "review", "STUDENT_LICENCE_CONFLICT"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "train", "allow", None),
        ("unknown", "train", "deny", "UNKNOWN_TERMS"),
        ("LicenseRef-somebody", "train", "deny", "UNKNOWN_TERMS"),
        ("OpenSSL", "train", "deny", "UNKNOWN_TERMS"),
        ("MIT OR (", "train", "deny", "UNKNOWN_TERMS"),
        ("", "train", "deny", "UNKNOWN_TERMS"),
        ("NOASSERTION", "train", "review", "MISSING_FACT"),
        (None, "train", "review", "MISSING_FACT"),
    ],
)
def test_prompt_licence(licence: str | None, action: str, verdict: str, code: str | None) -> None:
    finding = found(licence, action)
    assert finding.verdict == verdict
    assert [r.code for r in finding.reasons] == ([code] if code else [])
    assert all(r.fix for r in finding.reasons)


def test_nothing_is_said_of_prompts_before_there_are_rows_unless_it_was_asked() -> None:
    assert found(None, "train", rows=0).verdict == "allow"
    assert found("NOASSERTION", "train", rows=0).verdict == "review"
    assert found("none", "train", rows=0).verdict == "review"


def test_purposes_that_are_not_commercial_and_unknown_ones() -> None:
    assert found("CC-BY-NC-4.0", "train", commercial=False).verdict == "allow"
    unknown = found("CC-BY-NC-4.0", "train", commercial=None)
    assert unknown.verdict == "review" and unknown.reasons[0].facts["missing"] == ["organisation.commercial"]


def test_share_alike_prompts_and_a_student_under_the_same_licence() -> None:
    assert found("CC-BY-SA-4.0", "distribute_student", student="CC-BY-SA-4.0").verdict == "allow"
    assert found("CC-BY-SA-4.0", "distribute_student", student="CC-BY-SA-3.0").verdict == "review"


def test_what_publishing_owes() -> None:
    owed = found("CC-BY-SA-4.0", "publish_dataset").obligations
    assert [(o.type, o.due, o.document) for o in owed] == [
        ("attribution_statement", True, "prompts: CC-BY-SA-4.0"),
        ("share_alike", True, "prompts: CC-BY-SA-4.0"),
    ]
    assert not any(o.due for o in found("CC-BY-SA-4.0", "train").obligations)


@pytest.mark.parametrize(
    ("licence", "carries"),
    [
        ("Apache-2.0", False),
        ("mit", False),
        ("GPL-3.0-only", False),
        ("CC-BY-SA-4.0", False),
        ("LicenseRef-acme", True),
        ("LicenseRef-acme AND Apache-2.0", True),
        ("LicenseRef-acme OR Apache-2.0", False),
        ("LicenseRef-acme OR LicenseRef-other", True),
        ("LicenseRef-acme AND GPL-3.0-only", False),
        ("LicenseRef-acme OR proprietary", None),
        ("LicenseRef-acme AND proprietary", True),
        ("Apache-2.0 AND proprietary", None),
        ("Apache-2.0 OR proprietary", False),
        ("Apache-2.0 AND MIT", False),
        ("proprietary", None),
        ("a b (", None),
    ],
)
def test_whether_a_licence_carries_use_restrictions(licence: str, carries: bool | None) -> None:
    assert carries_restrictions(licence) is carries


def test_whether_a_student_is_under_a_documents_licence() -> None:
    assert under("LicenseRef-llama-3", None, "llama-3")
    assert under("LicenseRef-scancode-x AND MIT", "LicenseRef-scancode-x", "x-1")
    assert not under("MIT", "LicenseRef-x", "x-1")
    assert not under("(", "LicenseRef-x", "x-1")


def test_expressions_keep_spdx_spelling() -> None:
    tree = parse("apache-2.0 and cc-by-4.0")
    assert tree is not None and tree.operator == "AND" and tree.leaves() == ("Apache-2.0", "CC-BY-4.0")
    assert traits("Apache-2.0") == {"attribution"}
    assert traits("Beerware") is None
