"""The gate at every training start: on exactly the table version that is read, with no way round but a waiver.

Each test is named for the gate without which it fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.documents import load_bundle
from policies.errors import FactsError
from storage.selection import Selection
from storage.table import Table
from storage.takedown import takedown
from tests.trainer.synthetic import REFUSED, MarkovTeacher, training_folder
from trainer import fit
from trainer.checkpoint import TrainingState
from trainer.config import TrainConfig, read_config
from trainer.fit import check, train
from trainer.gate import TrainingNeedsReview, TrainingRefused

GEMMA = "gemma-tou@2025-03-24"


class PastTheGate(Exception):
    """The training came to the student."""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A training that ends where the gate has let it through."""

    def student(*_: object) -> None:
        raise PastTheGate

    monkeypatch.setattr(fit, "make_student", student)
    MarkovTeacher().table(tmp_path / "table", 4)
    return read_config(training_folder(tmp_path))


def add_refused_rows(config: TrainConfig) -> None:
    """From the next version on the table holds rows of which nobody knows the terms."""
    rows = MarkovTeacher().rows(3, seed=1, terms=("nobody-knows@2026",))
    Table.open(config.table).append(rows, writer="other", sequence=0)


def test_gate_at_training_start(config: TrainConfig) -> None:
    with pytest.raises(PastTheGate):
        train(config)
    config.use.write_text(REFUSED, encoding="utf-8")
    for start in (train, check):
        with pytest.raises(TrainingRefused, match="STUDENT_LICENCE_CONFLICT") as caught:
            start(config)
        assert caught.value.exit_code == 3
    assert not config.out.exists()


def test_gate_at_training_start_stops_a_review_too(config: TrainConfig) -> None:
    config.use.write_text(REFUSED.replace('licence = "Apache-2.0"\n', ""), encoding="utf-8")
    with pytest.raises(TrainingNeedsReview, match=r"student\.licence") as caught:
        train(config)
    assert caught.value.exit_code == 5


def test_gate_judges_exactly_the_version_that_is_read(config: TrainConfig) -> None:
    add_refused_rows(config)
    with pytest.raises(TrainingRefused, match="UNKNOWN_TERMS"):
        train(config)
    with pytest.raises(PastTheGate):
        train(config.model_copy(update={"version": 1}))
    takedown(config.table, Selection(terms="nobody-knows@2026"), reason="unknown")
    with pytest.raises(PastTheGate):
        train(config)
    with pytest.raises(TrainingRefused, match="UNKNOWN_TERMS"):
        train(config.model_copy(update={"version": 2}))


def test_gate_is_passed_again_at_a_resume(config: TrainConfig) -> None:
    """What was allowed when it began may be refused when it goes on."""
    folder = config.out / "checkpoint-1"
    folder.mkdir(parents=True)
    TrainingState(
        table=str(config.table),
        table_version=1,
        decision="d" * 64,
        config=config.digest,
        sequences_per_step=8,
        step=1,
        stream={},
    ).save(folder)
    add_refused_rows(config)
    with pytest.raises(PastTheGate):  # on the version of the checkpoint, not on the newest
        train(config, resume=True)
    config.use.write_text(REFUSED, encoding="utf-8")
    with pytest.raises(TrainingRefused):
        train(config, resume=True)


def test_a_waiver_is_the_only_way_round_and_is_kept(config: TrainConfig, tmp_path: Path) -> None:
    document = load_bundle().get(GEMMA)
    assert document is not None
    waiver = tmp_path / "waiver.toml"
    text = f"""
kind = "external_permission"
document = "{GEMMA}"
document_digest = "{document.digest}"
rules = ["STUDENT_LICENCE_CONFLICT"]
valid_from = 2026-11-01
valid_until = 2099-01-01
[permission]
title = "Letter"
sha256 = "{"ab" * 32}"
granted_by = "Google"
granted_on = 2026-10-20
"""
    waiver.write_text(text, encoding="utf-8")
    config.use.write_text(REFUSED, encoding="utf-8")
    waived = config.waived((waiver,))
    assert waived.digest == config.digest  # a waiver decides whether, not what, is trained
    with pytest.raises(PastTheGate):
        train(waived)
    (kept,) = Table.open(config.table).decisions()[-1].facts["waivers"]
    assert kept["permission"]["title"] == "Letter"
    waiver.write_text(text.replace(document.digest, "0" * 64), encoding="utf-8")
    with pytest.raises(FactsError, match="reads otherwise now"):
        train(waived)
