"""No bundle lets through what the one before stopped, unless a document says why."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import pytest

from policies.documents import Bundle, Document, load_bundle, read_bundle
from policies.errors import RegisterError
from policies.identity import Material
from policies.loosening import Case, Loosened, loosened
from policies.use import ACTIONS
from tests.policies.cases import TODAY, VARIATIONS, teacher_of, use_of
from tests.policies.test_reaudit import bundle_with, document
from tests.policies.test_vectors import VECTORS, materials_of
from tests.policies.test_vectors import use_of as vector_use

ROOT = Path(__file__).parents[2]
LLAMA = "llama-3@2024-04-18.toml"


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


def vector_cases() -> list[Case]:
    """The reference cases, which no register may judge more mildly in silence."""
    return [
        Case(f"vector {v['id']}", tuple(materials_of(v)), vector_use(v)) for v in VECTORS["cases"] if "waiver" not in v
    ]


def git(root: Path, *arguments: str) -> str | None:
    found = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return None if found.returncode else found.stdout.strip()


def base(root: Path) -> str:
    """The commit to compare with: POTSTILL_BASE, else where this branch left origin/main, else the last tag, else the
    commit before."""
    named = os.environ.get("POTSTILL_BASE")
    if named:
        return named
    head, left = git(root, "rev-parse", "HEAD"), git(root, "merge-base", "HEAD", "origin/main")
    if left and left != head:
        return left
    return git(root, "describe", "--tags", "--abbrev=0", "HEAD~1") or "HEAD~1"


def register_at(root: Path, commit: str, folder: Path) -> Bundle | None:
    """The register as it was at a commit; None where there is none that this version can read."""
    asked = ["git", "archive", commit, "policies/register"]
    found = subprocess.run(asked, cwd=root, capture_output=True, check=False)
    if found.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    try:
        return read_bundle(folder / "policies" / "register")
    except RegisterError:  # written in an older vocabulary
        return None


def loosened_since(old: Bundle, new: Bundle) -> tuple[Loosened, ...]:
    """What the new register lets through that the old one stopped: on changed documents and on every vector."""
    changed = [d for d in old.documents if (now := new.get(d.name)) is None or now.digest != d.digest]
    added = [d for d in new.documents if old.get(d.name) is None]
    if not (changed or added):
        return ()
    return loosened(old, new, [*cases([*changed, *added], new), *vector_cases()], TODAY)


def test_this_register_loosens_nothing_without_a_note(tmp_path: Path) -> None:
    old = register_at(ROOT, base(ROOT), tmp_path)
    if old is None:
        pytest.skip("no commit to compare the register with")
    assert loosened_since(old, load_bundle()) == ()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the register, in which the next commit loosens what the text of Llama 3.0 bans."""
    monkeypatch.delenv("POTSTILL_BASE", raising=False)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "reader@example.org")
    register = tmp_path / "policies" / "register"
    shutil.copytree(str(resources.files("policies.register")), register)
    commands = (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-q", "-m", "register"))
    for command in commands:
        assert git(tmp_path, *command) is not None
    path = register / LLAMA
    text = path.read_text("utf-8")
    assert 'verdict = "deny"' in text
    path.write_text(text.replace('verdict = "deny"', 'verdict = "allow"'), "utf-8")
    assert git(tmp_path, "commit", "-q", "-a", "-m", "milder") is not None
    return tmp_path


def test_a_commit_that_loosens_a_vector_needs_a_note(repository: Path, tmp_path: Path) -> None:
    register = repository / "policies" / "register"
    old = register_at(repository, base(repository), tmp_path / "old")
    assert old is not None
    found = loosened_since(old, read_bundle(register))
    assert {("vector llama30-internal", "deny")} <= {(x.case, x.before) for x in found}
    path = register / LLAMA
    path.write_text('loosens = "2026-12-01: Meta answered in writing"\n' + path.read_text("utf-8"), "utf-8")
    assert loosened_since(old, read_bundle(register)) == ()


def test_the_commit_to_compare_with(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole branch is compared with where it began, so that a loosening cannot hide behind a second commit."""
    first = git(repository, "rev-parse", "HEAD~1")
    assert base(repository) == "HEAD~1"
    git(repository, "tag", "v1", "HEAD~1")
    git(repository, "commit", "-q", "--allow-empty", "-m", "another")
    assert base(repository) == "v1"
    git(repository, "update-ref", "refs/remotes/origin/main", str(first))
    assert base(repository) == first
    monkeypatch.setenv("POTSTILL_BASE", "abc")
    assert base(repository) == "abc"


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
