"""The alignment proof: right labels pass, labels moved by one and foreign ids do not."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.codec import Labels
from storage.rows import Row
from storage.table import Table
from tests.trainer.synthetic import MarkovTeacher
from trainer.align import NotAligned, prove_alignment
from trainer.stream import SoftLabelStream


def batches(table: Table, **options: Any) -> SoftLabelStream:
    settings = {"sequence_length": 64, "batch_size": 4, "pack": True, "seed": 0, "holdout": 0.0, "split": "train"}
    return SoftLabelStream(table, **{**settings, "repeat": False, **options})


def moved(row: Row, by: int) -> Row:
    """The same row with each distribution moved to a neighbouring token."""
    labels = row.labels
    assert labels is not None
    turned = {name: np.roll(getattr(labels, name), by, axis=0) for name in ("top_ids", "top_logprobs", "log_tail")}
    kept = {name: getattr(labels, name) for name in ("token_ids", "token_logprobs", "token_ranks")}
    return Row(**{name: getattr(row, name) for name in Row.__dataclass_fields__} | {"labels": Labels(**kept, **turned)})


def table_moved(folder: Path, by: int) -> Table:
    teacher, table = MarkovTeacher(), Table.create(folder / "table")
    digest = table.save_tokenizer(teacher.tokenizer())
    rows = [moved(row, by) for row in teacher.rows(20, tokenizer_sha256=digest)]
    table.append(rows, writer="w", sequence=0)
    return table


@pytest.mark.parametrize("pack", [True, False])
def test_right_labels_are_proved(tmp_path: Path, pack: bool) -> None:
    teacher = MarkovTeacher()
    proof = prove_alignment(batches(teacher.table(tmp_path / "table", 20), pack=pack), vocabulary=50, tokenizer="t")
    assert max(proof.likelihood, key=proof.likelihood.__getitem__) == 0
    assert proof.tokens == 20 * 24
    assert "shift +0" in proof.lines()[0]


def test_the_likelihood_in_place_is_the_teachers_own(tmp_path: Path) -> None:
    """Every realised token among the candidates: the proof's figure is their mean stored log-probability."""
    teacher = MarkovTeacher()
    table = teacher.table(tmp_path / "table", 4, k=48)
    proof = prove_alignment(batches(table, pack=False), vocabulary=50, tokenizer="t")
    # the last two targets of a sequence have no neighbour to compare with
    expected = np.mean([row.labels.token_logprobs[:-2].mean() for row in teacher.rows(4, k=48) if row.labels])
    assert proof.likelihood[0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("by", [-1, 1])
def test_labels_moved_by_one_are_refused(tmp_path: Path, by: int) -> None:
    with pytest.raises(NotAligned, match=re.escape(f"moved by {-by:+d}")):
        prove_alignment(batches(table_moved(tmp_path, by)), vocabulary=50, tokenizer="t")


def test_ids_outside_the_students_vocabulary_are_refused(tmp_path: Path) -> None:
    table = MarkovTeacher().table(tmp_path / "table", 20)
    with pytest.raises(NotAligned, match="has 10 tokens"):
        prove_alignment(batches(table), vocabulary=10, tokenizer="t")


def test_too_little_to_tell_is_refused(tmp_path: Path) -> None:
    table = MarkovTeacher().table(tmp_path / "table", 1, length=4)
    with pytest.raises(NotAligned, match="4 targets"):
        prove_alignment(batches(table), vocabulary=50, tokenizer="t")


def test_a_stream_that_reads_targets_from_the_wrong_place_is_refused(tmp_path: Path) -> None:
    def shifted() -> Iterator[dict[str, torch.Tensor]]:
        for batch in batches(MarkovTeacher().table(tmp_path / "table", 20)):
            yield {**batch, "loss_index": (batch["loss_index"] - 1).clamp(min=0)}

    with pytest.raises(NotAligned, match="fault of the stream"):
        prove_alignment(shifted(), vocabulary=50, tokenizer="t")
