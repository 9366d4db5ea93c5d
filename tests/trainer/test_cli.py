"""`potstill train` and `potstill evaluate` as a user types them."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from potstill import main
from tests.trainer.synthetic import REFUSED, MarkovTeacher, training_folder
from trainer.cli import evaluate, train


def potstill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); import potstill; potstill.main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same in this process, which has imported torch already: → exit code, stdout, stderr."""

    def in_process(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        assert isinstance(left.value.code, int)
        return left.value.code, *capsys.readouterr()

    return in_process


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
    tmp_path: Path, run: Run, arguments: list[str], change: tuple[str, str], code: int, message: str
) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    path = training_folder(tmp_path, steps=20)
    path.write_text(path.read_text(encoding="utf-8").replace(*change, 1), encoding="utf-8")
    found, out, told = run(*arguments)
    assert (found, out) == (code, "")
    assert message in told and "Traceback" not in told


def test_a_refused_use_exits_3_with_the_section(tmp_path: Path, run: Run) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    training_folder(tmp_path, use=REFUSED)
    code, _, told = run("train", "train.toml")
    assert code == 3
    assert "gemma-tou@2025-03-24 s3" in told and "Traceback" not in told


def test_a_training_shorter_than_its_first_log_ends_well_and_tells_what_is_owed(tmp_path: Path, run: Run) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    training_folder(tmp_path, steps=3)
    code, _, told = run("train", "train.toml")
    assert code == 0, told
    assert "owed: Not found in the student's folder: Give a copy of the licence" in told


def test_help_tells_what_the_commands_do() -> None:
    runner = CliRunner()
    assert "--resume" in runner.invoke(train, ["--help"]).output
    assert "held-out" in runner.invoke(evaluate, ["--help"]).output


def test_the_commands_are_imported_without_torch() -> None:
    code = "import sys, trainer.cli; assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
