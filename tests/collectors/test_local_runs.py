import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from click.testing import CliRunner  # noqa: E402 - after the skips

from collectors.cli import collect  # noqa: E402
from collectors.config import read_run  # noqa: E402
from collectors.gate import signal  # noqa: E402
from policies.settings import ConfigError  # noqa: E402
from storage.query import sql  # noqa: E402
from storage.table import Table  # noqa: E402
from storage.verify import verify  # noqa: E402
from tests.collectors.tiny_models import TEXTS, save_causal, save_masked  # noqa: E402
from trainer.losses import SoftTargets, distillation_loss, student_logits  # noqa: E402
from trainer.objective import Objective  # noqa: E402
from trainer.stream import SoftLabelStream  # noqa: E402

RUN = """
table = "{table}"
[teacher]
model = "ibm-granite/granite-tiny"
[endpoint]
kind = "local"
model_path = "{model}"
dtype = "float32"
[prompts]
path = "prompts.jsonl"
licence = "CC0-1.0"
[ask]
max_tokens = 6
{ask}
"""
NewRun = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models as transformers saves them, and prompts."""
    folder = tmp_path_factory.mktemp("runs")
    save_causal(folder / "causal")
    save_masked(folder / "masked")
    lines = [{"id": f"p{n}", "prompt": " ".join(TEXTS[n % 4 :] + TEXTS[: n % 4])} for n in range(4)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run(folder: Path, request: pytest.FixtureRequest) -> NewRun:
    def make(ask: str, model: str = "causal") -> Path:
        path = folder / f"{request.node.name.partition('[')[0]}-{abs(hash(ask))}.toml"
        path.write_text(RUN.format(table=path.stem, model=model, ask=ask))
        return path

    return make


def collected(path: Path) -> list[dict[str, Any]]:
    done = CliRunner().invoke(collect, [str(path)])
    assert done.exit_code == 0, (done.output, done.exception)
    table = read_run(path).table
    assert verify(table).problems == ()
    return sql(table, "SELECT * FROM soft_labels ORDER BY prompt_id, sample_index").to_pylist()


def batch_of(path: Path, **fields: Any) -> dict[str, Any]:
    """The first batch that the trainer would get, all rows in it."""
    table = Table.open(read_run(path).table)
    stream = SoftLabelStream(
        table, sequence_length=64, batch_size=64, pack=False, seed=0, holdout=0.0, split="train", repeat=False, **fields
    )
    assert stream.index.left_out == {}
    return next(iter(stream))


@pytest.mark.parametrize("mode", ["generate", "score"])
@pytest.mark.parametrize("estimator", ["top_k", "sampled", "full"])
def test_a_folder_of_transformers_labels_a_table(run: NewRun, folder: Path, mode: str, estimator: str) -> None:
    sums = "" if estimator == "sampled" else "tail_sums = [2.0, 4.0]"
    path = run(f'mode = "{mode}"\ntop_k = 4\nestimator = "{estimator}"\ndraws = 8\n{sums}')
    rows = collected(path)
    assert len(rows) == 4 and all(row["estimator"] == estimator and row["mode"] == mode for row in rows)
    assert all(row["tokenizer_sha256"] and row["logprob_space"] == "raw" for row in rows)
    vocabulary = json.loads((folder / "causal" / "config.json").read_text())["vocab_size"]
    for row in rows:
        mass = np.exp(np.reshape(row["top_logprobs"], (-1, row["k"]))).sum(axis=1) + np.exp(row["log_tail"])
        assert mass == pytest.approx(1, abs=2e-2)
        assert row["k"] == {"top_k": 4, "full": vocabulary}.get(estimator, row["k"])
        assert [one["temperature"] for one in row["tail_sums"] or []] == ([] if estimator == "sampled" else [2.0, 4.0])
        weights = row["top_weights"]
        assert (weights is None) == (estimator != "sampled")
        if weights is not None:
            assert np.reshape(weights, (-1, row["k"])).sum(axis=1) == pytest.approx(1, abs=1e-5)
    temperature = 1.0 if estimator == "sampled" else 2.0
    batch = batch_of(path, temperature=temperature)
    assert int(batch["tokens"]) == sum(len(row["token_ids"]) for row in rows)
    assert ("top_weights" in batch) == (estimator == "sampled") and ("tail_sum" in batch) == (temperature != 1)
    assert signal(read_run(path)) == ("logits" if estimator == "full" else "top_k_logprobs")


def test_a_perfect_student_of_stored_labels_has_no_loss(run: NewRun, folder: Path) -> None:
    """The teacher as its own student, through table and stream: at T = 2 only exact tail sums make that 0."""
    from transformers import AutoModelForCausalLM

    path = run('mode = "score"\ntop_k = 4\ntail_sums = [2.0]')
    collected(path)
    batch = batch_of(path, temperature=2.0)
    model = AutoModelForCausalLM.from_pretrained(folder / "causal")
    mask = (batch["document_ids"] > 0).long()
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=mask).logits.flatten(0, 1)[batch["loss_index"]]
    targets = SoftTargets.from_batch(batch)

    def loss(logits_NV: torch.Tensor) -> float:
        return distillation_loss(
            student_logits(logits_NV, targets, 2.0), targets, Objective(temperature=2.0)
        ).loss.item()

    assert abs(loss(logits)) < 2e-3 and loss(logits.flip(0)) > 0.1


def test_a_masked_model_labels_a_table(run: NewRun) -> None:
    path = run('mode = "mask"\ntop_k = 4\nsamples = 2\ntail_sums = [2.0]', "masked")
    rows = collected(path)
    assert len(rows) == 8
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["target_positions"] != second["target_positions"]
    batch = batch_of(path)
    assert int(batch["tokens"]) == sum(len(row["target_positions"]) for row in rows)
    seen = batch["input_ids"].flatten()[batch["loss_index"]]
    assert set(seen.tolist()) == {4}  # each target is read where its mask stands


def test_a_model_classifies_into_a_table(run: NewRun) -> None:
    rows = collected(run('mode = "classify"\nlabels = ["yes", "no", "a dog"]'))
    assert all(sorted(row["top_ids"]) == [0, 1, 2] and row["label_set"] == ["yes", "no", "a dog"] for row in rows)
    assert all(np.exp(row["top_logprobs"]).sum() == pytest.approx(1, abs=1e-2) for row in rows)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ('estimator = "sampled"\ntail_sums = [2.0]', "sampled labels serve T = 1 alone"),
        ("tail_sums = [1.0]", "not 1"),
        ("tail_sums = [2.0, 2.0]", "different temperatures"),
        ("tail_sums = [0.0]", "tail_sums"),
        ('mode = "classify"\nlabels = ["a", "b"]\nestimator = "full"', "kept anyway"),
        ('estimator = "all"', "estimator"),
        ("draws = 0", "draws"),
    ],
)
def test_what_makes_no_sense_is_refused(run: NewRun, ask: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_run(run(ask))


def test_what_no_server_sends_is_refused(tmp_path: Path) -> None:
    for ask in ('estimator = "full"', "tail_sums = [2.0]"):
        path = tmp_path / "run.toml"
        text = RUN.format(table="t", model="m", ask=ask).replace('model_path = "m"\ndtype = "float32"', "")
        path.write_text(text.replace('"local"', '"vllm"\nbase_url = "http://127.0.0.1:1"'))
        with pytest.raises(ConfigError, match=r"need endpoint\.kind = 'local'"):
            read_run(path)
