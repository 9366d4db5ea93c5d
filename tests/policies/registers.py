"""A copy of the register that stands for the installed one, and ways to change it while something runs."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pytest

from policies import documents
from policies.use import ACTIONS


def installed_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `load_bundle` read a copy in `folder` from now on; → the folder of the copy."""
    register = folder / "register"
    shutil.copytree(str(resources.files("policies.register")), register)
    monkeypatch.setattr(documents, "register_folder", lambda: register)
    return register


def forbid(register: Path, document: str) -> None:
    """The document reads otherwise from now on: it refuses every action."""
    rule = f"""
[[rules]]
code = "COLLECTION_BAN"
verdict = "deny"
actions = {list(ACTIONS)}
gist = "The licensor took it back"
"""
    with (register / f"{document}.toml").open("a", encoding="utf-8") as file:
        file.write(rule)


def reread(register: Path, document: str) -> None:
    """The document was read again and a word of its own notes changed: another bundle, the same verdicts."""
    path = register / f"{document}.toml"
    text = path.read_text("utf-8")
    path.write_text(
        'notes = "read again"\n' + "".join(f"{x}\n" for x in text.splitlines() if x[:6] != "notes "), "utf-8"
    )
