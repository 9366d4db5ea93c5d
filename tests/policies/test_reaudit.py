"""Each changed verdict has exactly one cause."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from policies.documents import Bundle, Document, load_bundle
from policies.reaudit import Change, Situation, changes
from tests.policies.cases import TODAY
from tests.policies.test_evaluate import material, use
from tests.policies.test_waivers import waiver

QWEN, CLAUDE = "Qwen/Qwen3-32B", "claude-sonnet#anthropic-api"


def bundle_with(*documents: Document) -> Bundle:
    names = {d.name for d in documents}
    return Bundle([*(d for d in load_bundle().documents if d.name not in names), *documents])


def document(name: str, **changes: Any) -> Document:
    found = load_bundle().get(name)
    assert found is not None
    return found.model_copy(update=changes)


def denying(name: str, **changes: Any) -> Document:
    rule = document(name).rules[0].model_copy(update={"code": "OUTPUT_TRAIN_BAN", "verdict": "deny", "when": ()})
    return document(name, rules=(rule,), **changes)


NOW = Situation((material(),), use("internal_use"), load_bundle(), TODAY)
PERMITTED = waiver(valid_until=date(2027, 4, 1))


@pytest.mark.parametrize(
    ("before", "after", "teacher", "verdicts", "cause"),
    [
        (
            NOW,
            replace(NOW, bundle=bundle_with(denying("apache-2.0@2004-01-01"))),
            QWEN,
            ("allow", "deny"),
            "rule corrected",
        ),
        (
            replace(NOW, materials=(material("deepseek-chat#deepseek-platform"),)),
            replace(
                NOW,
                materials=(material("deepseek-chat#deepseek-platform"),),
                bundle=bundle_with(
                    denying("deepseek-platform@2026-04-29", version="2026-11-01", effective_from=date(2026, 11, 1))
                ),
            ),
            "deepseek-chat#deepseek-platform",
            ("allow", "deny"),
            "terms changed",
        ),
        (
            replace(NOW, materials=(material("google/gemma-3-27b-it"),)),
            replace(NOW, materials=(material("google/gemma-3-27b-it"),), use=use()),
            "google/gemma-3-27b-it",
            ("conditional", "deny"),
            "fact changed",
        ),
        (NOW, replace(NOW, materials=(material(prompt_licence="odd"),)), QWEN, ("allow", "deny"), "rows"),
        (
            replace(NOW, materials=(material(CLAUDE),)),
            replace(NOW, materials=(material(CLAUDE),), waivers=(PERMITTED,)),
            CLAUDE,
            ("deny", "conditional"),
            "waiver",
        ),
        (
            replace(NOW, materials=(material(CLAUDE),), waivers=(PERMITTED,)),
            replace(NOW, materials=(material(CLAUDE),), waivers=(PERMITTED,), today=date(2027, 4, 2)),
            CLAUDE,
            ("conditional", "deny"),
            "time",
        ),
    ],
)
def test_one_cause(before: Situation, after: Situation, teacher: str, verdicts: tuple[str, str], cause: str) -> None:
    assert changes(before, after) == (Change(None, *verdicts, cause), Change(teacher, *verdicts, cause))  # type: ignore[arg-type]
    assert [c.cause for c in changes(after, before)] == [cause, cause]


def test_nothing_changed() -> None:
    assert changes(NOW, NOW) == ()
    assert changes(NOW, replace(NOW, today=date(2026, 11, 25))) == ()


def test_teachers_that_come_and_go_are_rows() -> None:
    more = replace(NOW, materials=(*NOW.materials, material("nobody/x")))
    assert changes(NOW, more) == (Change(None, "allow", "deny", "rows"), Change("nobody/x", None, "deny", "rows"))
    assert Change("nobody/x", "deny", None, "rows") in changes(more, NOW)


def test_of_several_steps_the_one_that_settled_it_is_the_cause() -> None:
    """The prompts turned odd, and the licence was corrected to deny as well: it was refused by the first already."""
    after = replace(
        NOW, materials=(material(prompt_licence="odd"),), bundle=bundle_with(denying("apache-2.0@2004-01-01"))
    )
    assert [c.cause for c in changes(NOW, after)] == ["rows", "rows"]


def test_a_waiver_voids_itself_when_the_document_reads_otherwise() -> None:
    corrected = bundle_with(document("anthropic-commercial@2025-06-17", notes="read again"))
    before = replace(NOW, materials=(material(CLAUDE),), waivers=(PERMITTED,))
    after = replace(before, bundle=corrected)
    assert [(c.before, c.after, c.cause) for c in changes(before, after)] == [
        ("conditional", "deny", "rule corrected"),
        ("conditional", "deny", "rule corrected"),
    ]
