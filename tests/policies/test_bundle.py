"""The register on disk: seen again when a file of it changed, and kept whole as one file named by its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import policies
from policies.documents import Bundle, load_bundle, read_bundle
from policies.errors import RegisterError
from policies.evaluate import evaluate
from policies.use import Use
from tests.policies.registers import installed_copy
from tests.policies.test_evaluate import material

GEMMA = "gemma-tou@2025-03-24.toml"


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return installed_copy(tmp_path, monkeypatch)


def test_a_changed_register_is_seen_and_an_unchanged_one_is_not_read_again(register: Path) -> None:
    first = load_bundle()
    assert load_bundle() is first
    text = (register / GEMMA).read_text("utf-8")
    (register / GEMMA).write_text(text.replace('reach = "student"', 'reach = "outputs"'), "utf-8")
    second = load_bundle()
    assert second.digest != first.digest and len(second.documents) == len(first.documents)
    (register / GEMMA).unlink()
    assert load_bundle().get("gemma-tou@2025-03-24") is None


def test_a_bundle_is_kept_whole_under_its_digest(register: Path) -> None:
    bundle = read_bundle(register)
    data = bundle.to_json()
    assert hashlib.sha256(data).hexdigest() == bundle.digest
    again = Bundle.from_json(data)
    assert again.documents == bundle.documents and again.id == bundle.id
    for damaged in (b"[]x", b'[{"id": 1}]', b"[1]"):
        with pytest.raises(RegisterError, match="stored bundle cannot be read"):
            Bundle.from_json(damaged)


def test_evaluate_can_be_called_by_the_rooms_name() -> None:
    """The function shares its name with its module, so whichever of them the name means must judge."""
    use = Use(action="internal_use")
    by_function = evaluate([material()], use, bundle=load_bundle())
    by_room = policies.evaluate([material()], use, bundle=load_bundle())
    assert by_room.digest == by_function.digest
