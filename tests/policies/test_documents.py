"""Every document comes out as recorded, and no rule of it can be taken away unnoticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.documents import Bundle, Document, load_bundle
from policies.use import Action
from tests.policies.cases import outcome, recorded, said, standing

RECORDED = json.loads((Path(__file__).parent / "data" / "documents.json").read_text())
SAID = json.loads((Path(__file__).parent / "data" / "said.json").read_text("utf-8"))
NAMES = [document.name for document in load_bundle().documents]


def test_every_document_is_recorded() -> None:
    assert sorted(RECORDED) == sorted(NAMES)
    assert len({name.partition("@")[0] for name in NAMES} - {"own-work"}) == 73


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_are_as_recorded(name: str) -> None:
    bundle = load_bundle()
    document = bundle.get(name)
    assert document is not None
    assert recorded(document, bundle) == RECORDED[name]


@pytest.mark.parametrize("name", NAMES)
def test_words_are_as_recorded(name: str) -> None:
    """Section, gist, ways out, facts, parameters and claims: what people read and what is merged with other terms."""
    document = load_bundle().get(name)
    assert document is not None
    assert said(document, load_bundle()) == SAID[name]


@pytest.mark.parametrize("name", NAMES)
def test_no_rule_or_duty_can_be_removed_unnoticed(name: str) -> None:
    bundle = load_bundle()
    document = bundle.get(name)
    assert document is not None
    for what, poorer in without_one(document):
        others = [d for d in bundle.documents if d.name != name]
        changed = Bundle([*others, poorer])
        assert standing(poorer, changed) != RECORDED[name]["standing"] or any(
            outcome(poorer, changed, action, variation) != line for line, action, variation in cases_of(name)
        ), f"{name} without {what} decides every case as before"


def cases_of(name: str) -> Iterator[tuple[str, Action, str]]:
    for line, actions in RECORDED[name]["cases"].items():
        for action, variations in actions.items():
            for variation in variations:
                yield line, action, variation


def without_one(document: Document) -> Iterator[tuple[str, Document]]:
    for index, rule in enumerate(document.rules):
        rest = document.rules[:index] + document.rules[index + 1 :]
        yield f"rule {index} ({rule.code})", document.model_copy(update={"rules": rest})
    for index, duty in enumerate(document.obligations):
        if duty.trigger == "on_distribute_teacher" or duty.modality == "image" or duty.type == "separate_approval":
            continue  # never due for a student of text, or only for the largest: test_fine_print.py tries those
        rest_duties = document.obligations[:index] + document.obligations[index + 1 :]
        yield f"duty {index} ({duty.type})", document.model_copy(update={"obligations": rest_duties})
