"""Real trainings of a tiny student: gate, record, card, resume, and the loss's normaliser."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.table import Table
from tests.trainer.synthetic import REFUSED, MarkovTeacher, training_folder
from trainer.checkpoint import ResumeRefused, last_checkpoint
from trainer.config import read_config
from trainer.errors import TrainError
from trainer.fit import Training, train
from trainer.gate import TrainingNeedsReview, TrainingRefused
from trainer.loop import LossNotFinite, TrainingSettingsRefused

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training, list[str]]:
    folder = tmp_path_factory.mktemp("trained")
    MarkovTeacher().table(folder / "table")
    lines: list[str] = []
    return folder, train(read_config(training_folder(folder)), tell=lines.append), lines


def logged(training: Training, name: str) -> list[float]:
    return [log[name] for log in training.record["log"] if name in log]


def test_the_kl_falls(trained: tuple[Path, Training, list[str]]) -> None:
    divergence = logged(trained[1], "divergence")
    assert len(divergence) == 4
    assert divergence[-1] < 0.8 * divergence[0]


def test_the_log_tells_what_distillation_is_judged_by(trained: tuple[Path, Training, list[str]]) -> None:
    log = trained[1].record["log"][0]
    assert log["loss"] == pytest.approx(0.9 * log["divergence"] + 0.1 * log["cross_entropy"], rel=0.02)
    assert 0.5 < log["teacher_mass"] < 1 and 0 < log["student_mass"] < 1
    assert 0 <= log["data_wait_share"] <= 1 and log["tokens_per_second"] > 0


def test_what_is_told_names_audit_student_and_proof(trained: tuple[Path, Training, list[str]]) -> None:
    text = "\n".join(trained[2])
    assert "audit of version" in text and "conditional" in text
    assert "parameters, vocabulary" in text
    assert "shift -1" in text and "shift +0" in text


def test_the_student_loads_with_its_tokenizer(trained: tuple[Path, Training, list[str]]) -> None:
    folder = trained[0] / "student"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    out = model.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(out[0]).startswith("w1 w2")


def test_the_record_is_a_bill_of_materials(trained: tuple[Path, Training, list[str]]) -> None:
    folder, training, _ = trained
    table = Table.open(folder / "table")
    kept = table.trainings()[-1]
    record = json.loads((folder / "student" / "training.json").read_text(encoding="utf-8"))
    assert kept["config_digest"] == record["config_digest"] == read_config(folder / "train.toml").digest
    assert record["table_version"] == table.version
    assert table.decision(record["decision"]).verdict == "conditional"
    assert [(m["teacher"]["model"], m["rows"], m["terms"]) for m in record["materials"]] == [
        ("google/gemma-3-270m", 60, ["gemma-tou@2025-03-24"])
    ]
    assert record["alignment"]["tokens"] > 0 and record["stream"]["cursor"] > 0
    assert training.digest


def test_checkpoints_carry_version_decision_and_cursor(trained: tuple[Path, Training, list[str]]) -> None:
    found = last_checkpoint(trained[0] / "student")
    assert found is not None
    folder, state = found
    assert (folder.name, state.step) == ("checkpoint-40", 40)
    assert state.decision == trained[1].record["decision"]
    assert state.stream == trained[1].record["stream"]
    assert not list(folder.glob("training_args.bin"))


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        MarkovTeacher().table(tmp_path / name / "table")
    whole = train(read_config(training_folder(tmp_path / "whole")))
    config = read_config(training_folder(tmp_path / "resumed"))
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=interrupt_at(30))
    lines: list[str] = []
    # the table has grown meanwhile: the resume stays on its version
    Table.open(config.table).append(MarkovTeacher().rows(5, seed=9), writer="later", sequence=0)
    resumed = train(config, resume=True, tell=lines.append)
    assert any("resuming at step 20" in line for line in lines)
    weights = [load_file(training.out / "model.safetensors") for training in (whole, resumed)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-6, rtol=1e-5)
    assert resumed.record["stream"]["cursor"] == whole.record["stream"]["cursor"]


def interrupt_at(step: int):  # type: ignore[no-untyped-def]
    def progress(now: int, steps: int, logs: dict[str, float]) -> None:
        if now >= step:
            raise KeyboardInterrupt

    return progress


def test_a_step_does_not_depend_on_how_it_is_split(tmp_path: Path) -> None:
    """One batch of 8 and four of 2, accumulated, give the same first step."""
    results = []
    for name, split in {"one": (8, 1), "four": (2, 4)}.items():
        MarkovTeacher().table(tmp_path / name / "table")
        settings = f"gradient_accumulation_steps = {split[1]}\nwarmup_steps = 0\noptim = 'sgd'"
        path = training_folder(tmp_path / name, settings=settings, steps=1)
        size = f"per_device_train_batch_size = {split[0]}"
        text = path.read_text(encoding="utf-8").replace("per_device_train_batch_size = 8", size)
        path.write_text(text, encoding="utf-8")
        results.append(load_file(train(read_config(path)).out / "model.safetensors"))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, atol=1e-6, rtol=1e-5)


def test_a_refused_use_stops_before_the_first_step(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    with pytest.raises(TrainingRefused) as caught:
        train(read_config(training_folder(tmp_path, use=REFUSED)))
    assert caught.value.exit_code == 3
    assert "gemma-tou@2025-03-24" in str(caught.value) and "way out" in str(caught.value)
    assert not (tmp_path / "student").exists()


def test_a_use_that_says_too_little_needs_a_review(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    little = 'action = "distribute_student"\n'
    with pytest.raises(TrainingNeedsReview) as caught:
        train(read_config(training_folder(tmp_path, use=little)))
    assert caught.value.exit_code == 5


def test_a_pinned_version_is_audited_and_trained(tmp_path: Path) -> None:
    teacher = MarkovTeacher()
    table = teacher.table(tmp_path / "table", 40)
    pinned = table.version
    digest = table.save_tokenizer(teacher.tokenizer())
    table.append(teacher.rows(10, seed=5, tokenizer_sha256=digest), writer="later", sequence=0)
    path = training_folder(tmp_path, steps=2)
    path.write_text(f"version = {pinned}\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    record = train(read_config(path)).record
    assert (record["table_version"], record["materials"][0]["rows"]) == (pinned, 40)


def test_resume_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    with pytest.raises(ResumeRefused, match="no finished checkpoint"):
        train(read_config(training_folder(tmp_path)), resume=True)


def test_an_unfinished_checkpoint_is_passed_over(trained: tuple[Path, Training, list[str]], tmp_path: Path) -> None:
    (tmp_path / "checkpoint-60").mkdir()
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-40").symlink_to(trained[0] / "student" / "checkpoint-40")
    found = last_checkpoint(tmp_path)
    assert found is not None and found[0].name == "checkpoint-40"


def test_changed_settings_are_refused_on_resume(trained: tuple[Path, Training, list[str]]) -> None:
    path = trained[0] / "train.toml"
    original = path.read_text(encoding="utf-8")
    changed = trained[0] / "changed.toml"
    changed.write_text(original.replace("seed = 0", "seed = 1"), encoding="utf-8")
    with pytest.raises(ResumeRefused, match="settings have changed"):
        train(read_config(changed), resume=True)


def test_a_tracker_that_is_not_installed_is_told(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    with pytest.raises(TrainingSettingsRefused, match="transformers"):
        train(read_config(training_folder(tmp_path, settings='report_to = "no-such-tracker"')))


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    """Four sequences on each of two ranks are the eight of one: the same weights, up to the order of sums."""
    results = []
    for name, size in {"one": 8, "two": 4}.items():
        MarkovTeacher().table(tmp_path / name / "table", 40)
        path = training_folder(tmp_path / name, steps=10)
        text = path.read_text(encoding="utf-8").replace("batch_size = 8", f"batch_size = {size}")
        path.write_text(text, encoding="utf-8")
        if name == "one":
            train(read_config(path))
        else:
            _train_on_two_ranks(path)
        results.append(load_file(tmp_path / name / "student" / "model.safetensors"))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, atol=1e-6, rtol=1e-5)


def _train_on_two_ranks(settings: Path) -> None:
    script = settings.parent / "train_once.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom trainer.config import read_config\nfrom trainer.fit import train\n"
        "train(read_config(Path(sys.argv[1])))\n",
        encoding="utf-8",
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, str(script), str(settings)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_diverged_loss_stops_the_training(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    path = training_folder(tmp_path, settings="optim = 'sgd'\nmax_grad_norm = 0.0\nwarmup_steps = 0")
    path.write_text(path.read_text(encoding="utf-8").replace("5e-3", "1e12"), encoding="utf-8")
    with pytest.raises(LossNotFinite, match="learning_rate"):
        train(read_config(path))


def test_a_new_training_leaves_no_older_checkpoint_to_resume(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    train(read_config(training_folder(tmp_path, steps=40)))
    lines: list[str] = []
    train(read_config(training_folder(tmp_path, steps=20)), tell=lines.append)
    assert [folder.name for folder in (tmp_path / "student").glob("checkpoint-*")] == ["checkpoint-20"]
    assert any("removed 2 checkpoints" in line for line in lines)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 20)
    (tmp_path / "student").write_text("a file", encoding="utf-8")
    with pytest.raises(TrainError, match=r"student.* cannot be written"):
        train(read_config(training_folder(tmp_path, steps=20)))
