"""`potstill train` and `potstill evaluate` as a user types them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.trainer.synthetic import REFUSED, MarkovTeacher, training_folder
from trainer.cli import evaluate, train


def potstill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); import potstill; potstill.main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_train_then_evaluate(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 40)
    training_folder(tmp_path, steps=20)
    done = potstill(tmp_path, "train", "train.toml")
    assert done.returncode == 0, done.stderr
    assert "student in" in done.stdout and "README.md" in done.stdout
    assert re.search(r"step 20/20  loss \d\.\d+  KL", done.stderr)
    assert "shift +0" in done.stderr and "Traceback" not in done.stderr
    done = potstill(tmp_path, "evaluate", "train.toml")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == ["untrained", "student", "hard_twin"]
    assert (tmp_path / "student" / "report.html").exists()
    assert "Loading weights" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "change", "code", "message"),
    [
        (["train", "train.toml"], ("max_steps = 20", "max_stepz = 20"), 2, "did you mean max_steps?"),
        (["train", "train.toml"], ('table = "table"', 'table = "none"'), 2, "no soft-label table"),
        (["train", "train.toml", "--resume"], ("", ""), 2, "no finished checkpoint"),
        (
            ["train", "train.toml"],
            ("[data]", '[data]\nleave_out = "wrong.txt"'),
            2,
            "wrong.txt cannot be read: No such file",
        ),
        (["train", "nowhere.toml"], ("", ""), 2, "there is no such file"),
        (["evaluate", "train.toml"], ("", ""), 2, "no trained student"),
    ],
)
def test_bad_input_is_one_sentence_and_its_exit_code(
    tmp_path: Path, arguments: list[str], change: tuple[str, str], code: int, message: str
) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    path = training_folder(tmp_path, steps=20)
    path.write_text(path.read_text(encoding="utf-8").replace(*change, 1), encoding="utf-8")
    done = potstill(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_refused_use_exits_3_with_the_section(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    training_folder(tmp_path, use=REFUSED)
    done = potstill(tmp_path, "train", "train.toml")
    assert done.returncode == 3
    assert "gemma-tou@2025-03-24 s3" in done.stderr and "Traceback" not in done.stderr


def test_a_training_shorter_than_its_first_log_ends_well_and_tells_what_is_owed(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    training_folder(tmp_path, steps=3)
    done = potstill(tmp_path, "train", "train.toml")
    assert done.returncode == 0, done.stderr
    assert "owed: Not found in the student's folder: Give a copy of the licence" in done.stderr


def test_help_tells_what_the_commands_do() -> None:
    runner = CliRunner()
    assert "--resume" in runner.invoke(train, ["--help"]).output
    assert "held-out" in runner.invoke(evaluate, ["--help"]).output


def test_the_commands_are_imported_without_torch() -> None:
    code = "import sys, trainer.cli; assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
