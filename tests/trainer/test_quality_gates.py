"""[gates] of train.toml: a table that misses one trains nothing, until a waiver for exactly these rows is given."""

import json
from pathlib import Path

import pytest
import torch

from policies.gates import DOCUMENT
from storage.table import Table
from tests.trainer.synthetic import MarkovTeacher, training_folder
from trainer.config import read_config
from trainer.fit import train
from trainer.gate import TrainingNeedsReview, TrainingRefused

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gated")
    MarkovTeacher().table(path / "table", 30)
    return path


def test_a_missed_gate_refuses_before_anything_is_made_and_a_waiver_lifts_it(folder: Path) -> None:
    config = read_config(training_folder(folder, steps=1, settings="[gates]\nmin_captured_mass = 0.9999"))
    with pytest.raises(TrainingRefused, match="min_captured_mass") as refused:
        train(config)
    assert refused.value.exit_code == 3 and not config.out.exists()
    (decision,) = (one for one in Table.open(folder / "table").decisions() if "gates" in one.facts)
    assert decision.verdict == "deny" and decision.facts["gates"]["digest"] in str(refused.value)
    (folder / "waiver.toml").write_text(
        f"""
kind = "internal_risk_acceptance"
document = "{DOCUMENT}"
document_digest = "{decision.facts["gates"]["digest"]}"
rules = ["GATE_MISSED"]
valid_from = 2026-11-01
valid_until = 2027-04-01
reason = "a first try"
approvers = ["ada", "bob"]
""",
        encoding="utf-8",
    )
    waived = config.waived((folder / "waiver.toml",))
    record = json.loads((train(waived).out / "training.json").read_text(encoding="utf-8"))
    assert record["verdict"] == "conditional" and record["use"]["gates"]["waivers"]
    assert waived.digest == config.digest


def test_a_gate_that_holds_lets_the_training_go_on(folder: Path) -> None:
    config = read_config(training_folder(folder, steps=1, settings="[gates]\nmax_refusals = 0.01"))
    record = train(config.model_copy(update={"out": folder / "other"})).record
    assert record["use"]["gates"]["measures"]["refusals"] == 0.0


def test_a_gate_without_its_measure_needs_a_review(folder: Path) -> None:
    config = read_config(training_folder(folder, steps=1, settings="[gates]\nmin_accuracy = 0.5"))
    with pytest.raises(TrainingNeedsReview, match="accuracy is not known"):
        train(config)
