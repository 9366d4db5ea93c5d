"""Masked students and classifiers, through the same commands as causal ones."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from policies.settings import ConfigError
from storage.table import Table
from tests.trainer.encoders import CLASSES, WORDS, class_rows, masked_table, masked_teacher, tokenizer_bytes
from tests.trainer.synthetic import ALLOWED, training_folder
from trainer.align import NotAligned, prove_alignment
from trainer.classify import TextRows
from trainer.config import read_config
from trainer.errors import StreamRefused
from trainer.evaluate import evaluate
from trainer.fit import check, train
from trainer.hidden import HiddenTeacherRefused
from trainer.index import build_index
from trainer.reading import TableUnfit
from trainer.stream import SoftLabelStream
from trainer.student_vocabulary import StudentRefused
from trainer.tokenizer import read_tokenizer

torch.set_num_threads(1)
CLASSIFIER = ALLOWED.replace('kind = "general_llm"', 'kind = "classifier"')


def settings(
    folder: Path, student: str, *, steps: int = 60, use: str = ALLOWED, loss: str = "", data: str = ""
) -> Path:
    path = training_folder(folder, steps=steps, use=use)
    before, rest = path.read_text(encoding="utf-8").split("[student]")
    rest = rest.split("[data]")[1]
    data_section, training = rest.split("[training]")
    text = f"{before}[student]\n{student}\n[data]{data_section}{data}\n[loss]\n{loss}\n[training]{training}"
    path.write_text(text, encoding="utf-8")
    return path


MASKED = {
    "layers": 'task = "masked"\nfrom = "teacher-layers"\nteacher = "teacher"',
    "config": 'task = "masked"\nhidden_size = 32\nlayers = 1\nheads = 2\nkey_value_heads = 2\nintermediate_size = 64',
}


@pytest.mark.parametrize("origin", sorted(MASKED))
def test_a_masked_student_ends_nearer_to_its_teacher_than_its_hard_twin(tmp_path: Path, origin: str) -> None:
    masked_table(tmp_path / "table", masked_teacher(tmp_path / "teacher"))
    config = read_config(settings(tmp_path, MASKED[origin]))
    record = train(config).record
    assert record["student"]["task"] == "masked" and record["left_out"] == {}
    assert record["alignment"]["likelihood"]["+0"] > record["alignment"]["likelihood"]["+1"]
    models = evaluate(config).content["models"]
    assert models["student"]["kl"] < models["hard_twin"]["kl"] and models["student"]["kl"] < models["untrained"]["kl"]
    tokenizer, student = AutoTokenizer.from_pretrained(config.out), AutoModelForMaskedLM.from_pretrained(config.out)
    out = student(**tokenizer("w1 [MASK] w3", return_tensors="pt")).logits
    assert tokenizer.mask_token == "[MASK]" and out.shape == (1, 5, student.config.vocab_size)


def test_packed_masked_rows_give_the_gradient_of_rows_alone(tmp_path: Path) -> None:
    masked_table(tmp_path / "table", masked_teacher(tmp_path / "teacher"), 30)
    differences = check(read_config(settings(tmp_path, MASKED["layers"], loss="cosine_weight = 0.5")))
    assert max(differences.values()) < 1e-4


def test_positions_beside_their_masks_are_found(tmp_path: Path) -> None:
    table = masked_table(tmp_path / "table", masked_teacher(tmp_path / "teacher"), 20)
    stream = SoftLabelStream(
        table, sequence_length=64, batch_size=4, pack=True, seed=0, holdout=0.0, split="train", repeat=False
    )
    batches = list(stream)
    proof = prove_alignment(batches, vocabulary=29, tokenizer="t", task="masked", mask_id=4)
    assert proof.tokens == 60 and max(proof.likelihood, key=proof.likelihood.__getitem__) == 0
    moved = [{**batch, "loss_index": batch["loss_index"] + 1} for batch in batches]
    with pytest.raises(NotAligned, match="target_positions"):
        prove_alignment(moved, vocabulary=29, tokenizer="t", task="masked", mask_id=4)
    rolled = [
        {**b, **{name: torch.roll(b[name], 1, 0) for name in ("top_ids", "top_logprobs", "log_tail")}} for b in batches
    ]
    with pytest.raises(NotAligned, match="moved by"):
        prove_alignment(rolled, vocabulary=29, tokenizer="t", task="masked", mask_id=4)


def class_table(folder: Path, rows: int = 120, **changes: object) -> Table:
    table = Table.create(folder)
    digest = table.save_tokenizer(tokenizer_bytes())
    table.append(class_rows(rows, **({"tokenizer_sha256": digest} | changes)), writer="classes", sequence=0)
    return table


SMALL = "hidden_size = 32\nlayers = 1\nheads = 2\nkey_value_heads = 2\nintermediate_size = 64"


@pytest.mark.parametrize("origin", ["config", "lora"])
def test_a_classifier_ends_nearer_to_its_teacher_than_its_hard_twin(tmp_path: Path, origin: str) -> None:
    own = origin != "config"
    class_table(tmp_path / "table", **({"tokenizer_sha256": None} if own else {}))
    student = f'task = "classification"\n{SMALL}'
    if own:
        base_encoder(tmp_path / "base")
        student = 'task = "classification"\nfrom = "base"' + ("\n[student.lora]\nrank = 8" if origin == "lora" else "")
    config = read_config(settings(tmp_path, student, use=CLASSIFIER, steps=60))
    record = train(config).record
    assert record["student"]["task"] == "classification" and record["alignment"]["tokens"] >= 80
    models = evaluate(config).content["models"]
    assert models["student"]["kl"] < models["hard_twin"]["kl"] and models["student"]["kl"] < models["untrained"]["kl"]
    saved = AutoModelForSequenceClassification.from_pretrained(config.out)
    inputs = AutoTokenizer.from_pretrained(config.out)(["w1 w2 w3", "w4"], return_tensors="pt", padding=True)
    assert saved(**inputs).logits.shape == (2, 3)
    assert tuple(saved.config.id2label[i] for i in range(3)) == CLASSES


def base_encoder(folder: Path) -> None:
    config = AutoConfig.for_model(
        "bert", vocab_size=len(WORDS) + 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    read_tokenizer(tokenizer_bytes()).save(folder, model_max_length=64)


def test_texts_are_encoded_as_the_student_will_be_asked(tmp_path: Path) -> None:
    table = class_table(tmp_path / "table", 40)
    tokenizer = read_tokenizer(tokenizer_bytes()).build()

    def encode(texts):  # type: ignore[no-untyped-def]
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]

    options = {"sequence_length": 64, "batch_size": 4, "seed": 0, "holdout": 0.0, "split": "train", "repeat": False}
    stream = SoftLabelStream(
        table,
        pack=False,
        modes=("classify",),
        rewriter=TextRows(encode, name="words"),
        **options,  # type: ignore[arg-type]
    )
    batch = next(iter(stream))
    assert batch["loss_index"].tolist() == [
        n * batch["input_ids"].shape[1] + int((row > 0).sum()) - 1 for n, row in enumerate(batch["document_ids"])
    ]
    assert set(batch["input_ids"][:, 0].tolist()) == {2} and (batch["top_ids"] < 3).all()
    texts = {tuple(encode([row.prompt])[0]): row for row in class_rows(40)}
    for n, row in enumerate(batch["input_ids"]):
        known = texts[tuple(row[: int((batch["document_ids"][n] > 0).sum())].tolist())]
        assert known.labels is not None
        assert batch["top_ids"][n].tolist() == known.labels.top_ids[0].tolist()
    for refused in ({"pack": True}, {"rewriter": None}, {"modes": ("classify", "mask")}):
        good = {"pack": False, "modes": ("classify",), "rewriter": TextRows(encode, name="words")}
        with pytest.raises(StreamRefused, match="classify"):
            SoftLabelStream(table, **(options | good | refused))  # type: ignore[arg-type]


def test_two_label_sets_never_mix(tmp_path: Path) -> None:
    table = class_table(tmp_path / "table", 40)
    digest = table.save_tokenizer(tokenizer_bytes())
    other = class_rows(10, seed=1, label_set=(*CLASSES[:2], "cold"), tokenizer_sha256=digest)
    table.append(other, writer="other", sequence=0)
    student = f'task = "classification"\n{SMALL}'
    with pytest.raises(TableUnfit, match="2 label sets"):
        train(read_config(settings(tmp_path, student, use=CLASSIFIER)))
    rewriter = TextRows(lambda texts: [[1]] * len(texts), name="one")
    with pytest.raises(StreamRefused, match="label sets"):
        build_index(
            table.files(), sequence_length=8, holdout=0.0, held_out=False, modes=("classify",), rewriter=rewriter
        )
    chosen = settings(tmp_path, student, use=CLASSIFIER, steps=2, data="where = \"label_set[3] = 'hot'\"")
    assert train(read_config(chosen)).record["left_out"] == {"left out by the caller": 10}


def test_a_task_without_rows_or_tokens_is_one_sentence(tmp_path: Path) -> None:
    masked_table(tmp_path / "table", masked_teacher(tmp_path / "teacher"), 20)
    with pytest.raises(TableUnfit, match="no rows of classify"):
        train(read_config(settings(tmp_path, f'task = "classification"\n{SMALL}', use=CLASSIFIER)))
    with pytest.raises(TableUnfit, match="tokenizer"):
        train(read_config(settings(tmp_path, SMALL)))
    plain = read_tokenizer(tokenizer_bytes())
    content = {**plain.content, "added_tokens": [t for t in plain.content["added_tokens"] if t["content"] != "[MASK]"]}
    (tmp_path / "own.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(StudentRefused, match="mask token"):
        train(read_config(settings(tmp_path, f'task = "masked"\n{SMALL}\ntokenizer = "own.json"')))


def test_hidden_states_are_followed(tmp_path: Path) -> None:
    """DistilBERT's triple loss: the student's states turn to the teacher's, and the gate judges hidden states."""
    masked_table(tmp_path / "table", masked_teacher(tmp_path / "teacher"), 60)
    distances = {}
    for name, loss in {"with": "cosine_weight = 0.5\nhard_weight = 0.2", "without": "hard_weight = 0.2"}.items():
        path = settings(tmp_path, MASKED["layers"], steps=40, loss=loss)
        path.write_text(
            path.read_text(encoding="utf-8").replace('out = "student"', f'out = "{name}"'), encoding="utf-8"
        )
        config = read_config(path)
        record = train(config).record
        distances[name] = _distance(tmp_path / "teacher", config.out)
        signal = record["use"]["use"]["data"]["signal"]
        assert signal == ("hidden_states" if name == "with" else "top_k_logprobs")
    assert "cosine_distance" not in record["log"][0]
    assert distances["with"] < 0.8 * distances["without"]


def test_hidden_states_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    masked_table(tmp_path / "table", masked_teacher(tmp_path / "teacher"), 20)
    masked_teacher(tmp_path / "wide", hidden_size=64)
    masked_teacher(tmp_path / "other")
    changed = (tmp_path / "other" / "tokenizer.json").read_text(encoding="utf-8").replace('"w7"', '"w7x"')
    (tmp_path / "other" / "tokenizer.json").write_text(changed, encoding="utf-8")
    for folder, message in {"wide": "have 32 numbers and those of .*wide 64", "other": "not the teacher"}.items():
        loss = f'cosine_weight = 1.0\nteacher = "{folder}"'
        with pytest.raises(HiddenTeacherRefused, match=message):
            train(read_config(settings(tmp_path, MASKED["config"], loss=loss)))
    with pytest.raises(ConfigError, match="cosine_weight needs teacher"):
        read_config(settings(tmp_path, MASKED["config"], loss="cosine_weight = 1.0"))


@torch.no_grad()
def _distance(teacher: Path, student: Path) -> float:
    ids = torch.randint(5, 29, (8, 12), generator=torch.Generator().manual_seed(1))
    one, other = (AutoModelForMaskedLM.from_pretrained(f).bert(ids).last_hidden_state for f in (teacher, student))
    return float((1 - torch.cosine_similarity(one, other, dim=-1)).mean())
