"""The model card carries what the decision says is owed, and no path of the machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.decision import Decision
from policies.settings import read_toml
from policies.use import Use
from storage.audit import audit
from storage.evidence import audit_student
from storage.rows import TeacherRecord
from tests.trainer.synthetic import ALLOWED, MarkovTeacher, training_folder
from trainer.card import card, still_owed
from trainer.config import read_config
from trainer.fit import RECORD_FILE, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    MarkovTeacher().table(folder / "table", 20)
    told: list[str] = []
    train(read_config(training_folder(folder, steps=1)), tell=told.append)
    (folder / "told.txt").write_text("\n".join(told), encoding="utf-8")
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
    assert text.startswith("---\n") and "\n# markov-small\n" in text


def front_matter(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n", 2)[1])
    return found


def test_the_front_matter_is_what_the_decision_settles(folder: Path) -> None:
    text = (folder / "student" / "README.md").read_text(encoding="utf-8")
    record = json.loads((folder / "student" / RECORD_FILE).read_text(encoding="utf-8"))
    front = front_matter(text)
    assert (front["license"], front["license_name"]) == ("other", "LicenseRef-scancode-gemma-tou-2025-03-24")
    assert front["teachers"] == ["google/gemma-3-270m"] and front["policy_decision"] == record["decision"]
    assert front["ai_generated"] is True and "are AI-generated: label them so" in text
    assert front["licence_copies"] == ["LICENSES/gemma-tou.txt"]


def test_what_is_owed_lies_beside_the_weights(folder: Path) -> None:
    """The texts, the decision, and the lines for the EU's summary of training content."""
    student = folder / "student"
    obligations = (student / "LICENSE-OBLIGATIONS.md").read_text(encoding="utf-8")
    assert "`LICENSES/gemma-tou.txt`" in obligations and "gemma-tou@2025-03-24" in obligations
    assert "Gemma is provided under" in (student / "NOTICE").read_text(encoding="utf-8")
    decision = Decision.from_json((student / "decision.json").read_text(encoding="utf-8"))
    assert decision.digest == json.loads((student / RECORD_FILE).read_text(encoding="utf-8"))["decision"]
    summary = "Synthetic data made by google/gemma-3-270m (revision gguf-q4_k_m): 20 rows, 480 tokens"
    assert summary in (student / "README.md").read_text(encoding="utf-8")


def test_what_only_its_maker_can_add_is_told_and_read_back(folder: Path) -> None:
    student, use = folder / "student", read_toml(folder / "use.toml", Use)
    lines = still_owed(student, audit(folder / "table", use))
    assert [line.partition(" (")[0].partition(": ")[2] for line in lines] == [
        "Not found in the student's folder: Give a copy of the licence",
        "Not found in the student's folder: Make the use restrictions",
    ]
    where = "put the licence's text in LICENSES/gemma-tou.txt (gemma-tou@2025-03-24, s3.1(2))"
    assert lines[0].endswith(f"(Gemma Terms of Use); {where}")
    assert audit_student(folder / "table", use, student).verdict == "review"
    (student / "LICENSES").mkdir()
    (student / "LICENSES" / "gemma-tou.txt").write_text("Gemma Terms of Use. " * 20, encoding="utf-8")
    (student / "LICENSE").write_text("Use is bound by the Gemma Prohibited Use Policy.", encoding="utf-8")
    assert still_owed(student, audit(folder / "table", use)) == []
    assert audit_student(folder / "table", use, student).verdict == "conditional"


def test_a_training_ends_with_what_is_owed_and_how_to_read_it_back(folder: Path) -> None:
    told = (folder / "told.txt").read_text(encoding="utf-8").splitlines()
    table, use, student = (folder / name for name in ("table", "use.toml", "student"))
    assert [line for line in told if line.startswith("owed")] == told[-3:-1]
    assert told[-1] == (
        f"all that is owed for distribute_student is in {student / 'LICENSE-OBLIGATIONS.md'}; "
        f"`potstill audit {table} --use {use} --student {student}` reads the folder again"
    )


def test_what_no_folder_shows_is_told_too(folder: Path) -> None:
    kimi = TeacherRecord(model="moonshotai/Kimi-K3", provider="vllm", access_path="self_host")
    MarkovTeacher().table(folder / "kimi", 4, teacher=kimi, terms=("kimi-k3@2026-07",))
    (folder / "kimi.toml").write_text(
        ALLOWED.replace("deploys_in", 'business = ["other"]\ndeploys_in'), encoding="utf-8"
    )
    (line,) = still_owed(folder / "student", audit(folder / "kimi", read_toml(folder / "kimi.toml", Use)))
    assert line.startswith("owed beside the folder: Take a separate licence from Moonshot")
    assert line.endswith("(kimi-k3@2026-07, 2)")


def test_a_line_that_must_be_shown_stands_under_the_title(folder: Path) -> None:
    """«Built with Llama», from a table of Llama's outputs."""
    llama = TeacherRecord(model="meta-llama/Llama-3.3-70B-Instruct", provider="vllm", access_path="self_host")
    MarkovTeacher().table(folder / "llama", 4, teacher=llama, terms=("llama-3.3@2024-12-06",))
    (folder / "llama.toml").write_text(ALLOWED.replace("markov-small", "Llama-markov"), encoding="utf-8")
    decision = audit(folder / "llama", read_toml(folder / "llama.toml", Use))
    record = json.loads((folder / "student" / RECORD_FILE).read_text(encoding="utf-8"))
    text = card(record, decision)
    assert "# Llama-markov\n\nBuilt with Llama\n" in text
    assert front_matter(text)["attributions"] == ["Built with Llama"]


def test_the_card_tells_no_path_of_the_machine(folder: Path) -> None:
    text = (folder / "student" / "README.md").read_text(encoding="utf-8")
    assert str(folder) not in text and "Table `table`, version 1." in text


def test_a_plain_licence_is_the_front_matters(folder: Path) -> None:
    use = ALLOWED.replace("LicenseRef-scancode-gemma-tou-2025-03-24", "MIT")
    (folder / "mit.toml").write_text(use, encoding="utf-8")
    decision = audit(folder / "table", read_toml(folder / "mit.toml", Use))
    record = json.loads((folder / "student" / RECORD_FILE).read_text(encoding="utf-8"))
    assert front_matter(card(record, decision))["license"] == "mit"
