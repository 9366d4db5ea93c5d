import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from collectors.config import AskSettings, EndpointSettings, TeacherSettings, read_run
from collectors.errors import EndpointStopped
from collectors.plan import Item
from collectors.providers import Provider, Reading, local_sender
from collectors.providers.callable_teacher import CallableTeacher, load_callable
from collectors.providers.in_process_sender import InProcessSender
from policies.settings import ConfigError
from storage.query import sql
from storage.verify import verify

ROOT = Path(__file__).parents[2]
Make = Callable[..., Provider]
NewItem = Callable[..., Item]
TEACHER = """
import json
import numpy as np
from weights import WEIGHTS

def probabilities(texts, labels):
    scores = np.array([json.loads(text) for text in texts]) @ WEIGHTS
    return np.exp(scores / 2.0)
"""
RUN = """
table = "table"
[teacher]
model = "ibm-granite/granite-digits"
revision = "2026-11-24"
[endpoint]
kind = "local"
callable = "{spec}"
[prompts]
path = "prompts.jsonl"
licence = "CC0-1.0"
[ask]
mode = "classify"
labels = ["dog", "wolf", "fox"]
"""


def ask(teacher: CallableTeacher, one: Provider, *items: Item) -> list[Reading | str]:
    async def go() -> list[Reading | str]:
        sender = InProcessSender(teacher)
        answers = await asyncio.gather(*(sender.send(one.request(asked)) for asked in items))
        return [
            one.read(asked, answer.body) if answer.status == 200 else json.loads(answer.body)["error"]
            for asked, answer in zip(items, answers, strict=True)
        ]

    return asyncio.run(go())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run file with a function of two files beside it, and prompts that are feature vectors."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "teacher.py").write_text(TEACHER)
    (tmp_path / "deep" / "weights.py").write_text("WEIGHTS = [[2.0, 0.0, -1.0], [0.0, 2.0, 1.0]]\n")
    vectors = [[1.0, 0.5], [0.0, 3.0], [-1.0, -1.0]]
    lines = [{"id": f"p{i}", "prompt": json.dumps(vector)} for i, vector in enumerate(vectors)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(spec="deep.teacher:probabilities"))
    return path


def test_a_function_is_a_teacher(made: Make, item: NewItem) -> None:
    def function(texts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
        return [[8.7, 0.8, 0.5] if "husky" in text else [0, 0, 1] for text in texts]

    one = made("local", mode="classify", labels=("dog", "wolf", "fox"))
    dog, fox = ask(CallableTeacher(function, name="f"), one, item(prompt="a husky"), item(prompt="red"))
    assert isinstance(dog, Reading) and isinstance(fox, Reading) and dog.labels and fox.labels
    assert np.exp(dog.labels.top_logprobs[0]) == pytest.approx([0.87, 0.08, 0.05]) and dog.text == "dog"
    assert fox.labels.top_ids.tolist() == [[2, -1, -1]] and fox.text == "fox"
    for bad in ([[math.nan, 0, 1]], [[-1.0, 1, 1]], [[0.0, 0, 0]], [[1.0, 0]]):
        (refused,) = ask(CallableTeacher(lambda t, c, bad=bad: bad, name="f"), one, item(prompt="x"))
        assert isinstance(refused, str) and ("no_probabilities" in refused or "length_mismatch" in refused)
    (refused,) = ask(CallableTeacher(function, name="f"), made("local"), item(prompt="x"))
    assert isinstance(refused, str) and "mode_not_possible" in refused


def test_a_function_beside_the_run_file_labels_a_table(run: Path) -> None:
    """By the command, from another folder, in a process that never imports torch."""
    code = (
        "import sys; from potstill import main\n"
        "try: main(['collect', sys.argv[1]])\n"
        "finally: print('torch:', 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)],
        cwd=run.parent.parent, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = sql(run.parent / "table", "SELECT * FROM soft_labels ORDER BY prompt_id").to_pylist()
    assert [row["prompt_id"] for row in rows] == ["p0", "p1", "p2"]
    for row in rows:
        scores = np.array(json.loads(row["prompt"])) @ [[2.0, 0.0, -1.0], [0.0, 2.0, 1.0]] / 2
        p = np.exp(scores) / np.exp(scores).sum()
        assert row["top_ids"] == np.argsort(-p).tolist() and row["label_set"] == ["dog", "wolf", "fox"]
        assert np.exp(row["top_logprobs"]) == pytest.approx(np.sort(p)[::-1], abs=2e-2)
        assert row["completion"] == row["label_set"][row["top_ids"][0]] and row["prompt_token_ids"] is None
        assert row["teacher"]["engine"] == "python" and "sha256" in row["teacher"]["engine_version"]
    assert verify(run.parent / "table").problems == () and done.stdout.endswith("torch: False\n")


def test_other_code_is_another_card(run: Path) -> None:
    spec = read_run(run).pool[0].callable
    assert spec == f"{run.parent}/deep/teacher.py:probabilities"
    before = load_callable(spec).about()
    (run.parent / "deep" / "teacher.py").write_text(TEACHER + "\n")
    after = load_callable(spec).about()
    assert before.model == after.model == "teacher:probabilities" and before.version != after.version


@pytest.mark.parametrize(
    ("spec", "source", "said"),
    [
        ("missing:probabilities", "", "cannot be read"),
        ("deep.teacher:other", "", "no function 'other'"),
        ("deep.teacher:probabilities", "import nothing_of_this_name", "ModuleNotFoundError"),
        ("deep.teacher:probabilities", "probabilities = 3", "no function"),
    ],
)
def test_a_function_that_cannot_be_had_is_said(run: Path, spec: str, source: str, said: str) -> None:
    if source:
        (run.parent / "deep" / "teacher.py").write_text(source)
    run.write_text(RUN.format(spec=spec))
    with pytest.raises(EndpointStopped, match=said):
        local_sender(TeacherSettings(model="m"), read_run(run).pool[0], AskSettings())


@pytest.mark.parametrize("spec", ["teacher", "../teacher:f", "teacher.py:f/g", ":f", "a..b:f", "/abs:f"])
def test_a_function_is_named_as_module_and_function(run: Path, spec: str) -> None:
    run.write_text(RUN.format(spec=spec))
    with pytest.raises(ConfigError, match="module:function"):
        read_run(run)


def test_a_function_belongs_to_local_and_to_classify() -> None:
    for fields in ({"kind": "vllm", "base_url": "http://127.0.0.1:1"}, {"kind": "local", "model_path": "m"}):
        with pytest.raises(ValueError, match="callable"):
            EndpointSettings(callable="a:b", **fields)  # type: ignore[arg-type]
