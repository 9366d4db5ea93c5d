"""The model card carries what the decision says is owed, and no path of the machine."""

import json
from pathlib import Path

import pytest

from policies.settings import read_toml
from policies.use import Use
from storage.audit import audit
from tests.trainer.synthetic import ALLOWED, MarkovTeacher, training_folder
from trainer.card import card
from trainer.config import read_config
from trainer.fit import RECORD_FILE, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    MarkovTeacher().table(folder / "table", 20)
    train(read_config(training_folder(folder, steps=1)))
    return folder


def test_every_obligation_of_the_decision_is_on_the_card(folder: Path) -> None:
    decision = audit(folder / "table", read_toml(folder / "use.toml", Use))
    text = (folder / "student" / "README.md").read_text(encoding="utf-8")
    assert decision.obligations
    for duty in decision.obligations:
        assert duty.text in text and duty.document in text
    assert decision.digest in text and decision.bundle in text


def test_the_card_names_teacher_terms_and_amounts(folder: Path) -> None:
    text = (folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "google/gemma-3-270m @ gguf-q4_k_m" in text
    assert "gemma-tou@2025-03-24 | CC0-1.0 | 20 | 480 |" in text
    assert "license: other\nlicense_name: LicenseRef-scancode-gemma-tou-2025-03-24" in text
    assert text.startswith("---\n") and "# markov-small" in text


def test_the_card_tells_no_path_of_the_machine(folder: Path) -> None:
    text = (folder / "student" / "README.md").read_text(encoding="utf-8")
    assert str(folder) not in text and "Table `table`, version 1." in text


def test_a_plain_licence_is_the_front_matters(folder: Path) -> None:
    use = ALLOWED.replace("LicenseRef-scancode-gemma-tou-2025-03-24", "MIT")
    (folder / "mit.toml").write_text(use, encoding="utf-8")
    decision = audit(folder / "table", read_toml(folder / "mit.toml", Use))
    record = json.loads((folder / "student" / RECORD_FILE).read_text(encoding="utf-8"))
    assert "license: mit\n" in card(record, decision)
