"""Soft labels beat hard ones on a teacher that is known exactly; the measures are what they say; the page is safe."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.table import Table
from tests.trainer.synthetic import MarkovTeacher, training_folder
from trainer.config import read_config
from trainer.evaluate import NothingToEvaluate, Report, evaluate
from trainer.fit import train
from trainer.measure import calibration_error, interval, summary, token_measures
from trainer.prepare import make_stream, make_student
from trainer.report import page
from trainer.student import load_student

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("evaluated")
    MarkovTeacher().table(folder / "table", 80)
    config = read_config(training_folder(folder, steps=60))
    train(config)
    return folder, evaluate(config)


def test_the_report_compares_untrained_soft_and_hard(evaluated: tuple[Path, Report]) -> None:
    folder, report = evaluated
    content = json.loads((folder / "student" / "report.json").read_text(encoding="utf-8"))
    kl = {name: model["kl"] for name, model in content["models"].items()}
    assert list(kl) == ["untrained", "student", "hard_twin"]
    assert kl["student"] < kl["hard_twin"] < kl["untrained"]
    assert content["tokens"] == content["rows"] * 24
    assert content["gap_closed"] == pytest.approx(1 - kl["student"] / kl["hard_twin"])
    assert [line.split()[0] for line in report.lines()[1:4]] == list(kl)


def test_the_twin_saw_the_same_rows_and_steps(evaluated: tuple[Path, Report]) -> None:
    folder, _ = evaluated
    records = [json.loads((folder / "student" / part / "training.json").read_text()) for part in ("", "hard-twin")]
    assert records[0]["stream"] == records[1]["stream"]
    assert records[0]["steps"] == records[1]["steps"]
    assert records[0]["decision"] == records[1]["decision"]


def test_an_evaluation_again_does_not_train_again(evaluated: tuple[Path, Report]) -> None:
    folder, report = evaluated
    before = (folder / "student" / "hard-twin" / "model.safetensors").stat().st_mtime_ns
    again = evaluate(read_config(folder / "train.toml"))
    assert (folder / "student" / "hard-twin" / "model.safetensors").stat().st_mtime_ns == before
    assert again.content["models"]["student"]["kl"] == report.content["models"]["student"]["kl"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_soft_labels_beat_hard_ones_in_every_seed(tmp_path: Path, seed: int) -> None:
    MarkovTeacher(seed=seed).table(tmp_path / "table", 80, seed=seed)
    config = read_config(training_folder(tmp_path, steps=60, seed=seed))
    train(config)
    models = evaluate(config).content["models"]
    assert models["student"]["kl"] < 0.8 * models["hard_twin"]["kl"]


def test_the_measured_kl_is_the_one_computed_by_hand(evaluated: tuple[Path, Report]) -> None:
    """Against the teacher's exact distributions, from the logits of a plain forward."""
    folder, report = evaluated
    teacher, config = MarkovTeacher(), read_config(folder / "train.toml")
    table = Table.open(folder / "table", 1)
    student = make_student(config, table)
    model = load_student(config.out)
    id_map = student.vocabulary.id_map
    assert id_map is not None
    divergences = []
    for batch in make_stream(config, table, student, split="holdout", batch_size=1, repeat=False, pack=False):
        log_q = model(batch["input_ids"]).logits[0].log_softmax(-1).double().detach().numpy()
        back = {int(new): old for old, new in enumerate(id_map) if new >= 0}
        for index in batch["loss_index"].tolist():
            log_p = teacher.log_p[back[int(batch["input_ids"][0, index])]]
            top = np.argsort(-log_p, kind="stable")[:8]
            kept = [i for i in top if id_map[i] >= 0]
            p, q = np.exp(log_p[kept]), np.exp(log_q[index][id_map[kept]])
            divergences.append((p * np.log(p / q)).sum() + (1 - p.sum()) * np.log((1 - p.sum()) / (1 - q.sum())))
    assert report.content["models"]["student"]["kl"] == pytest.approx(np.mean(divergences), abs=2e-3)
    assert len(divergences) == report.content["tokens"]


def test_a_students_loss_parts_add_up(evaluated: tuple[Path, Report]) -> None:
    for model in evaluated[1].content["models"].values():
        assert model["kl"] == pytest.approx(model["head_loss"] + model["tail_loss"], abs=1e-5)
        assert model["kl_low"] <= model["kl"] <= model["kl_high"]
        assert model["perplexity"] == pytest.approx(math.exp(model["nll"]))
        assert 0 <= model["acceptance"] <= 1 and 0 <= model["calibration_error"] <= 1


def test_calibration_error_is_zero_for_honest_and_large_for_boastful_confidence() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(size=200_000)
    hit = (random.uniform(size=confidence.size) < confidence).astype(float)
    assert calibration_error(confidence, hit) < 0.01
    assert calibration_error(np.minimum(confidence + 0.3, 1.0), hit) > 0.2


def test_the_interval_is_over_rows_not_tokens() -> None:
    """Ten rows of a hundred equal tokens tell no more than ten numbers."""
    values = np.repeat(np.arange(10.0), 100)
    low, high = interval(np.repeat(np.arange(10.0), 100), values)
    assert high - low > 2.5
    low, high = interval(np.arange(1000.0), values)
    assert high - low < 0.5


def test_text_only_rows_give_no_kl_but_a_likelihood() -> None:
    nan = np.full(4, np.nan)
    tokens = dict.fromkeys(("kl", "head", "tail", "acceptance", "agrees"), nan)
    found = summary({**tokens, "row": np.arange(4.0), "nll": np.ones(4), "confidence": np.ones(4), "hit": np.ones(4)})
    assert math.isnan(found["kl"]) and found["nll"] == 1.0


def test_untrained_students_are_measured_as_they_start(evaluated: tuple[Path, Report]) -> None:
    folder, report = evaluated
    config, table = read_config(folder / "train.toml"), Table.open(folder / "table", 1)
    student = make_student(config, table)
    batches = make_stream(config, table, student, split="holdout", batch_size=8, repeat=False, pack=False)
    assert summary(token_measures(student.model, batches))["kl"] == pytest.approx(
        report.content["models"]["untrained"]["kl"], abs=1e-6
    )


class Page(HTMLParser):
    """Tags and what they ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_all_it_shows(evaluated: tuple[Path, Report]) -> None:
    found = Page((evaluated[0] / "student" / "report.html").read_text(encoding="utf-8"))
    assert found.addresses == [] and "link" not in found.tags
    assert found.tags.count("script") == 3 and found.tags.count("figure") >= 4
    assert "twin (hard labels only)" in found.text


def test_model_text_cannot_become_markup(evaluated: tuple[Path, Report]) -> None:
    content = json.loads(json.dumps(evaluated[1].content))
    evil = '</script><script>alert(1)</script>"\x1b[31m'
    example = content["examples"][0]
    example["prompt"] = evil
    example["tokens"][0] |= {"text": evil, "candidates": [[evil, 0.5]]}
    content["student"]["origin"] = evil
    content["groups"]["domain"] = [content["groups"]["domain"][0] | {"name": evil + str(n)} for n in range(2)]
    text = page(content)
    assert Page(text).tags.count("script") == 3 and "\x1b" not in text
    assert "&lt;script&gt;" in text and "u003cscript" in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page_file: Path, profile: Path) -> tuple[str, list[str], set[str]]:
    """(the page after its scripts ran, console lines, hosts that were asked for) in a headless browser without network.

    A host that no page names is the browser's own business; that one of a page is seen is tried beside it.
    """
    assert CHROMIUM is not None
    log = profile.with_suffix(".net.json")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", f"--user-data-dir={profile}", "--enable-logging=stderr", f"--log-net-log={log}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([*command, page_file.as_uri()], capture_output=True, text=True, timeout=200, check=True)
    hosts = set(re.findall(r'"url":"https?://([^/"]+)', log.read_text(encoding="utf-8", errors="replace")))
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], hosts


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
def test_a_browser_draws_the_page_without_network_or_errors(evaluated: tuple[Path, Report], tmp_path: Path) -> None:
    written = evaluated[0] / "student" / "report.html"
    dom, console, hosts = browse(written, tmp_path / "profile")
    figures = Page(written.read_text(encoding="utf-8")).tags.count("figure")
    assert console == [] and Page(dom).tags.count("svg") == figures
    bad = tmp_path / "bad.html"
    bad.write_text('<script>console.error("x"); fetch("https://report.invalid/")</script>', encoding="utf-8")
    _, noticed, asked = browse(bad, tmp_path / "other")
    assert noticed and "report.invalid" in asked - hosts


def test_examples_show_what_each_model_thought(evaluated: tuple[Path, Report]) -> None:
    examples = evaluated[1].content["examples"]
    assert len(examples) == 4
    token = examples[0]["tokens"][0]
    assert set(token["probability"]) == {"teacher", "untrained", "student", "hard_twin"}
    assert all(0 <= p <= 1 for p in token["probability"].values())
    assert token["text"].strip().startswith("w") and len(token["candidates"]) == 5


def test_without_a_twin_only_two_are_compared(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 30)
    config = read_config(training_folder(tmp_path, steps=2, settings="[evaluate]\nhard_twin = false"))
    train(config)
    assert list(evaluate(config).content["models"]) == ["untrained", "student"]
    assert not (tmp_path / "student" / "hard-twin").exists()


def test_nothing_trained_or_other_settings_are_refused(evaluated: tuple[Path, Report], tmp_path: Path) -> None:
    with pytest.raises(NothingToEvaluate, match="potstill train"):
        evaluate(read_config(training_folder(tmp_path)))
    other = evaluated[0] / "other.toml"
    text = (evaluated[0] / "train.toml").read_text(encoding="utf-8")
    other.write_text(text.replace("max_steps = 60", "max_steps = 61"), encoding="utf-8")
    with pytest.raises(NothingToEvaluate, match="other settings"):
        evaluate(read_config(other))
