"""What a takedown reaches: a table of five teachers, and a student trained before one of them is withdrawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from storage import cli
from storage.compact import compact
from storage.errors import VersionNotFound
from storage.rows import TeacherRecord
from storage.selection import Selection
from storage.table import Table
from storage.takedown import takedown
from storage.verify import verify
from tests.trainer.synthetic import GEMMA, MarkovTeacher, training_folder
from trainer.config import read_config
from trainer.fit import train

APACHE = ("apache-2.0@2004-01-01",)
OTHERS = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Twelve rows of each of five teachers, of which Gemma is the first."""
    chain = MarkovTeacher()
    table = chain.table(tmp_path / "table", 12)
    digest = table.listed("tokenizers")[0]
    for number, model in enumerate(OTHERS, 1):
        teacher = TeacherRecord(model=model, provider="vllm", access_path="self_host")
        rows = chain.rows(12, seed=number, tokenizer_sha256=digest, teacher=teacher, terms=APACHE)
        table.append(rows, writer=model, sequence=0)
    return table


def models(table: Table, version: int | None = None) -> set[str]:
    query = "SELECT DISTINCT teacher.model AS model FROM soft_labels"
    return {line["model"] for line in Table.open(table.path, version).sql(query).to_pylist()}


def test_a_takedown_reaches_the_student_that_was_trained_before_it(table: Table, tmp_path: Path) -> None:
    student = train(read_config(training_folder(tmp_path, steps=20))).out
    gone = {f.path for f in table.files() if GEMMA.model in _model_of(table, f.audit_group)}
    assert len(gone) == 1 and models(table) == {GEMMA.model, *OTHERS}

    looked = takedown(table.path, Selection(teacher=f"{GEMMA.model}@{GEMMA.revision}"), reason="", dry_run=True)
    assert (looked.rows, looked.versions, looked.record) == (12, (1, 5), None)
    assert looked.students == (str(student),) and len(looked.trainings) >= 1
    assert str(student / "checkpoint-20") in looked.checkpoints
    shown = CliRunner().invoke(cli.takedown, [str(table.path), "--terms", "gemma-tou", "--dry-run"]).stdout
    assert f"Reached by training: {student}" in shown and "versions 1 to 5" in shown
    assert f"Reached, a checkpoint: {student / 'checkpoint-20'}" in shown
    assert GEMMA.model in models(table)

    done = takedown(table.path, Selection(terms="gemma-tou"), reason="the licensor ended it")
    assert (done.rows, done.students) == (12, (str(student),)) and done.record is not None
    assert models(table) == set(OTHERS) and models(table, 5) == {GEMMA.model, *OTHERS}
    assert (verify(table.path).rows, verify(table.path).problems) == (48, ())
    assert table.takedowns()[-1]["reason"] == "the licensor ended it"

    purged = compact(table.path, purge=True)
    assert purged.purged_files >= 1 and not any(path.exists() for path in gone)
    assert models(table) == set(OTHERS) and verify(table.path).problems == ()
    with pytest.raises(VersionNotFound, match="purged"):
        Table.open(table.path, 5)
    # a student that is trained from here on is none that the takedown reached
    again = takedown(table.path, Selection(terms="gemma-tou"), reason="", dry_run=True)
    assert (again.rows, again.students) == (0, ())


def test_a_training_that_never_ended_is_reached_by_its_checkpoints(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 12)
    config = read_config(training_folder(tmp_path, steps=40))

    def interrupt(step: int, steps: int, logs: dict[str, float]) -> None:
        if step >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, progress=interrupt)
    looked = takedown(config.table, Selection(terms="gemma-tou"), reason="", dry_run=True)
    assert looked.students == (str(config.out),)
    assert looked.checkpoints == (str(config.out / "checkpoint-20"),)


def _model_of(table: Table, group: str) -> str:
    lines = table.groups.read().to_pylist()
    return next(line["model"] for line in lines if line["audit_group"] == group)
