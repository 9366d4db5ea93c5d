"""Each recipe as its README tells it: its commands run in a copy of the folder, offline; then what came out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.query import sql

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
NAMES = sorted(path.name for path in RECIPES.iterdir() if path.is_dir() and path.name != "__pycache__")
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}
Followed = tuple[Path, list[str]]
pytestmark = pytest.mark.timeout(600)


def commands(readme: str) -> list[tuple[str, int]]:
    """(command, the exit code that it is to end with) of the first sh block."""
    block = re.search(r"^```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block is not None, "no sh block"
    found = []
    for line in filter(None, block[1].splitlines()):
        code = re.search(r"# exit (\d+)$", line)
        found.append((line, int(code[1]) if code else 0))
    return found


def readme(name: str) -> str:
    return (RECIPES / name / "README.md").read_text(encoding="utf-8")


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One command as a reader types it: by bash, with this environment's programs first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**kept, **SURROUNDINGS, "PATH": path},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `python ../gemma.py ../teacher` makes, once for all recipes."""
    folder = tmp_path_factory.mktemp("gemma") / "teacher"
    done = run(f"python gemma.py {folder}", RECIPES)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Followed:
    """Follow a recipe's README in a copy of it: → its folder, what each command printed."""
    name, copy = request.param, tmp_path / "recipes"
    shutil.copytree(RECIPES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if "gemma.py" in readme(name):
        (copy / "teacher").symlink_to(request.getfixturevalue("gemma"))
    said = []
    for command, code in commands(readme(name)):
        done = run(command, copy / name)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout + done.stderr)
    return copy / name, said


def column(folder: Path, expression: str) -> list[Any]:
    """An expression of every row of the recipe's table."""
    return sql(folder / "soft_labels", f"SELECT {expression} AS it FROM soft_labels")["it"].to_pylist()


def report(folder: Path, *, rows: int) -> dict[str, Any]:
    """report.json, of at least so many held-out rows; soft labels came closer to the teacher than hard ones."""
    content: dict[str, Any] = json.loads((folder / "student" / "report.json").read_text(encoding="utf-8"))
    kl = {name: model["kl"] for name, model in content["models"].items()}
    assert kl["student"] < kl["hard_twin"], kl
    assert kl["student"] < kl["untrained"], kl
    assert content["rows"] >= rows
    return content


def trained_rows(folder: Path) -> int:
    """Rows that the training read."""
    record = json.loads((folder / "student" / "training.json").read_text(encoding="utf-8"))
    return int(record["stream"]["order"]["rows"])


def student_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "student" / "config.json").read_text(encoding="utf-8"))
    return found


def test_each_recipe_is_listed_and_short() -> None:
    listed = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert len(NAMES) == 8
    for name in NAMES:
        assert f"]({name})" in listed
        assert len(readme(name).splitlines()) <= 40
        assert commands(readme(name))


@pytest.mark.parametrize("recipe", ["1_soft_labels"], indirect=True)
def test_a_withheld_class_is_learned_from_soft_labels(recipe: Followed) -> None:
    folder, _ = recipe
    recalls = json.loads((folder / "recall.json").read_text(encoding="utf-8"))
    mean = {name: sum(values) / len(values) for name, values in recalls.items()}
    assert {len(values) for values in recalls.values()} == {10}
    assert mean["soft, T = 8"] >= 0.9
    assert min(recalls["soft, T = 8"]) >= 0.6
    assert mean["soft, T = 1"] <= 0.6
    assert mean["hard"] <= 0.01


@pytest.mark.parametrize("recipe", ["2_distilbert"], indirect=True)
def test_every_other_layer_of_a_masked_teacher(recipe: Followed) -> None:
    folder, _ = recipe
    found = report(folder, rows=50)
    assert set(column(folder, "mode")) == {"mask"}
    assert student_config(folder)["num_hidden_layers"] == 2
    for measure in ("top1_agreement", "acceptance"):
        assert found["models"]["student"][measure] > found["models"]["hard_twin"][measure]
    assert found["loss"]["cosine_weight"] > 0
    assert found["loss"]["hard_weight"] > 0


@pytest.mark.parametrize("recipe", ["3_tinyllama"], indirect=True)
def test_a_corpus_that_the_teacher_scored(recipe: Followed) -> None:
    folder, _ = recipe
    report(folder, rows=4)
    assert set(column(folder, "mode")) == {"score"}
    assert column(folder, "prompt_licence") == ["PSF-2.0"] * 40


@pytest.mark.parametrize("recipe", ["4_phi"], indirect=True)
def test_answers_are_filtered_before_they_are_learned(recipe: Followed) -> None:
    folder, _ = recipe
    held_out = report(folder, rows=2)["rows"]
    entropies = column(folder, "mean_entropy")
    kept = sum(entropy < 2.0 for entropy in entropies)
    assert 0 < trained_rows(folder) + held_out <= kept < len(entropies) == 24


@pytest.mark.parametrize("recipe", ["5_reasoning"], indirect=True)
def test_only_traces_that_were_found_right_are_learned(recipe: Followed) -> None:
    folder, said = recipe
    held_out = report(folder, rows=3)["rows"]
    wrong = set((folder / "wrong.txt").read_text(encoding="utf-8").split())
    keys = column(folder, "key")
    assert wrong < set(keys)
    assert trained_rows(folder) + held_out == len(keys) - len(wrong)
    counts = re.findall(r"^(?:sums|python): (\d+) right, (\d+) wrong$", "".join(said), re.MULTILINE)
    assert len(counts) == 2
    assert sum(int(right) for right, _ in counts) == len(keys) - len(wrong)


@pytest.mark.parametrize("recipe", ["6_refused"], indirect=True)
def test_what_must_be_refused(recipe: Followed) -> None:
    folder, said = recipe
    assert "openai-services-agreement@" in said[0]
    assert "anthropic-commercial@" in said[1]
    assert not (folder / "soft_labels").exists()


@pytest.mark.parametrize("recipe", ["7_classifier"], indirect=True)
def test_a_classifier_from_the_probabilities_of_words(recipe: Followed) -> None:
    folder, _ = recipe
    found = report(folder, rows=20)
    assert found["models"]["student"]["accuracy"]["value"] >= 0.8
    assert student_config(folder)["architectures"] == ["BertForSequenceClassification"]


@pytest.mark.parametrize("recipe", ["8_own_tokenizer"], indirect=True)
def test_labels_reach_another_tokenizer(recipe: Followed) -> None:
    folder, said = recipe
    report(folder, rows=2)
    assert student_config(folder)["vocab_size"] == 1000
    assert re.search(r"another tokenizer: (99|100)\.\d% of [\d,]+ labels are usable", "".join(said))
