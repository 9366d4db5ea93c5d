"""No bundle lets through what the one before stopped, unless a document says why."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from policies.documents import Bundle, Document, load_bundle, read_bundle
from policies.errors import RegisterError
from policies.identity import Material
from policies.loosening import Case, loosened
from policies.use import ACTIONS
from tests.policies.cases import TODAY, VARIATIONS, teacher_of, use_of
from tests.policies.test_reaudit import bundle_with, document

ROOT = Path(__file__).parents[2]


def cases(documents: Iterable[Document], bundle: Bundle) -> list[Case]:
    return [
        Case(
            f"{d.name}, {action}, {variation}",
            (Material(teacher=teacher_of(d, bundle), signal=VARIATIONS[variation][2]),),  # type: ignore[arg-type]
            use_of(d, action, variation),
        )
        for d in documents
        for action in ACTIONS
        for variation in VARIATIONS
    ]


CASES = cases([document("llama-2@2023-07-18"), document("xai-enterprise@2026-08-14")], load_bundle())


def register_at(commit: str, folder: Path) -> Bundle | None:
    """The register as it was at a commit; None where there is none that this version can read."""
    asked = ["git", "archive", commit, "policies/register"]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, check=False)
    if found.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    try:
        return read_bundle(folder / "policies" / "register")
    except RegisterError:  # written in an older vocabulary
        return None


def test_this_register_loosens_nothing_without_a_note(tmp_path: Path) -> None:
    """Against the commit in POTSTILL_BASE, by default the one before this."""
    old = register_at(os.environ.get("POTSTILL_BASE", "HEAD~1"), tmp_path)
    if old is None:
        pytest.skip("no commit to compare the register with")
    new = load_bundle()
    changed = [d for d in old.documents if (now := new.get(d.name)) is None or now.digest != d.digest]
    added = [d for d in new.documents if old.get(d.name) is None]
    assert loosened(old, new, cases([*changed, *added], new), TODAY) == ()


def test_the_same_bundle_loosens_nothing() -> None:
    assert loosened(load_bundle(), load_bundle(), CASES, TODAY) == ()


def test_a_loosened_case_is_found_unless_the_document_says_why() -> None:
    milder = tuple(r.model_copy(update={"verdict": "review"}) for r in document("llama-2@2023-07-18").rules[:1])
    rules = milder + document("llama-2@2023-07-18").rules[1:]
    silently = bundle_with(document("llama-2@2023-07-18", rules=rules))
    found = loosened(load_bundle(), silently, CASES, TODAY)
    assert {x.documents for x in found} == {("llama-2@2023-07-18",)}
    assert {(x.before, x.after) for x in found} == {("deny", "review"), ("conditional", "allow")}
    said = bundle_with(document("llama-2@2023-07-18", rules=rules, loosens="2026-12-01: Meta answered in writing"))
    assert loosened(load_bundle(), said, CASES, TODAY) == ()
    assert loosened(said, load_bundle(), CASES, TODAY) == ()


def test_an_old_note_does_not_excuse_a_new_loosening() -> None:
    noted = bundle_with(document("llama-2@2023-07-18", loosens="an old matter"))
    milder = tuple(r.model_copy(update={"verdict": "review"}) for r in document("llama-2@2023-07-18").rules)
    again = bundle_with(document("llama-2@2023-07-18", rules=milder, loosens="an old matter"))
    assert loosened(noted, again, CASES, TODAY)
