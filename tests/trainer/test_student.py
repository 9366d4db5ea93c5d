"""Students: sizes, vocabulary, attention within documents only, and folders that need nothing of ours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.trainer.synthetic import MarkovTeacher, batches_of, gemma_definition
from trainer.config import StudentSettings
from trainer.errors import TrainError
from trainer.forward import DistilledStudent, HeadNotSupported, check_head, loss_hidden, loss_logits
from trainer.objective import Objective
from trainer.reading import TableUnfit, table_tokenizer
from trainer.student import Student, StudentRefused, create_student, save_student
from trainer.tokenizer import TokenizerError

SMALL: dict[str, Any] = {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 1, "intermediate_size": 64}


def make(folder: Path, seed: int = 0, **settings: Any) -> Student:
    table = MarkovTeacher().table(folder / "table", 10)
    chosen = StudentSettings.model_validate(SMALL | settings)
    return create_student(
        chosen, table.tokenizer(table_tokenizer(table)), batches_of(table), sequence_length=64, seed=seed
    )


def tiny(architecture: str, attention: str) -> Any:
    options = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    if architecture == "gemma3_text":
        options |= {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
    config = AutoConfig.for_model(architecture, vocab_size=40, hidden_size=32, intermediate_size=64, **options)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()


def batch_of(documents: list[list[list[int]]]) -> dict[str, torch.Tensor]:
    """Rows of documents of token ids as a batch of the stream would hold them; every position is read."""
    length = max(sum(map(len, row)) for row in documents)
    ids, places, numbers = (torch.zeros(len(documents), length, dtype=torch.int64) for _ in range(3))
    for line, row in enumerate(documents):
        start = 0
        for number, document in enumerate(row, 1):
            end = start + len(document)
            ids[line, start:end] = torch.tensor(document)
            places[line, start:end] = torch.arange(len(document))
            numbers[line, start:end] = number
            start = end
    index = (numbers.flatten() > 0).nonzero()[:, 0]
    return {"input_ids": ids, "position_ids": places, "document_ids": numbers, "loss_index": index}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_packed_documents_do_not_see_each_other(architecture: str, attention: str) -> None:
    model = tiny(architecture, attention)
    first, second, third = [3, 4, 5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]
    packed = loss_hidden(model, batch_of([[first, second], [third]]))
    alone = torch.cat([loss_hidden(model, batch_of([[document]])) for document in (first, second, third)])
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_a_plain_forward_gives_the_same_logits(architecture: str) -> None:
    """Our mask, positions and head are the model's own where there is one document."""
    model, ids = tiny(architecture, "sdpa"), [3, 4, 5, 6, 7, 8, 9]
    torch.testing.assert_close(
        loss_logits(model, batch_of([[ids]])), model(torch.tensor([ids])).logits[0], atol=2e-5, rtol=1e-4
    )


def test_a_future_token_changes_nothing_before_it() -> None:
    model = tiny("llama", "sdpa")
    one, two = (loss_hidden(model, batch_of([[[3, 4, 5, last]]])) for last in (6, 7))
    torch.testing.assert_close(one[:3], two[:3])
    assert not torch.allclose(one[3], two[3])


def test_scaled_logits_are_refused() -> None:
    config = AutoConfig.for_model("cohere", vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(HeadNotSupported, match="logit_scale"):
        check_head(AutoModelForCausalLM.from_config(config))


def test_a_student_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a"), make(tmp_path / "b")
    other = make(tmp_path / "c", seed=1)
    weight = one.model.get_input_embeddings().weight
    assert torch.equal(weight, two.model.get_input_embeddings().weight)
    assert not torch.equal(weight, other.model.get_input_embeddings().weight)


def test_facts_say_what_was_made(tmp_path: Path) -> None:
    student = make(tmp_path)
    facts = student.facts()
    embeddings = facts["vocabulary"] * 32
    assert facts["vocabulary"] == student.model.config.vocab_size == student.vocabulary.definition.size()
    assert facts["parameters"] == facts["non_embedding_parameters"] + embeddings
    assert facts["vocabulary_kind"] == "trimmed"
    assert student.model.get_output_embeddings().weight is student.model.get_input_embeddings().weight


def test_a_full_vocabulary_keeps_the_teachers_ids(tmp_path: Path) -> None:
    student = make(tmp_path, vocabulary="full")
    assert student.vocabulary.id_map is None
    assert student.model.config.vocab_size == MarkovTeacher().size


def test_a_saved_student_loads_and_generates_without_us(tmp_path: Path) -> None:
    student = make(tmp_path)
    save_student(student.model, student.vocabulary, tmp_path / "out")
    code = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = tokenizer("w1 w2", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=5, do_sample=False)
assert out.shape[1] <= 7 and tokenizer.decode(out[0]).startswith("w1 w2"), tokenizer.decode(out[0])
assert tokenizer.eos_token == "</s>" and model.generation_config.eos_token_id == tokenizer.eos_token_id
assert not any(name.split(".")[0] in ("trainer", "storage", "policies") for name in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir() if path.suffix != ".json") == [".safetensors"]


def test_a_saved_student_is_a_folder_to_start_from(tmp_path: Path) -> None:
    student = make(tmp_path / "a")
    save_student(student.model, student.vocabulary, tmp_path / "base")
    again = make(tmp_path / "b", **{"from": str(tmp_path / "base")})
    assert torch.equal(again.model.get_input_embeddings().weight, student.model.get_input_embeddings().weight)
    assert again.vocabulary.id_map is not None and student.vocabulary.id_map is not None
    assert again.vocabulary.id_map.tolist() == student.vocabulary.id_map.tolist()
    save_student(again.model, again.vocabulary, tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").eos_token == "</s>"


def test_a_student_whose_tokens_cannot_be_laid_over_the_teachers_is_refused(tmp_path: Path) -> None:
    gemma_definition().save(tmp_path / "base", model_max_length=64)
    tiny_config = AutoConfig.for_model(
        "llama", vocab_size=700, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(tiny_config).save_pretrained(tmp_path / "base")
    with pytest.raises(TokenizerError, match="does not keep the bytes"):
        make(tmp_path, **{"from": str(tmp_path / "base")})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"from": "nowhere"}, "holds no model"),
        ({"architecture": "no-such-model"}, "no-such-model"),
        ({"eos_token": "<none>"}, "not a token"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudentRefused, match=message):
        make(tmp_path, **settings)


def without_special(**added: str) -> bytes:
    """The teacher's tokenizer with none of its special tokens, or with those that are given."""
    content = json.loads(MarkovTeacher().tokenizer())
    names = ["w0", "w1", "w2", *added.values()]
    content["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    content["model"]["unk_token"] = "w0"
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    content["added_tokens"] = [{"id": names.index(name), "content": name, **flags} for name in added.values()]
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("task", "tokenizer", "message"),
    [
        ("causal", without_special(), "does not say which token ends a sequence; name it as eos_token"),
        ("causal", without_special(pad="[PAD]"), "does not say which token ends a sequence; name it as eos_token"),
        ("masked", without_special(pad="[PAD]"), "has no mask token"),
        ("masked", without_special(mask="[MASK]"), "has no token to pad with"),
        ("classification", without_special(), "has no token to pad with"),
    ],
)
def test_a_tokenizer_without_its_special_tokens_is_refused(task: Any, tokenizer: bytes, message: str) -> None:
    chosen = StudentSettings.model_validate(SMALL | {"task": task, "vocabulary": "full"})
    with pytest.raises(StudentRefused, match=message):
        create_student(chosen, tokenizer, lambda columns: [], sequence_length=64, seed=0)


def test_a_folder_whose_tokenizer_ends_no_sequence_is_refused(tmp_path: Path) -> None:
    student = make(tmp_path / "a", vocabulary="full")
    save_student(student.model, student.vocabulary, tmp_path / "base")
    beside = tmp_path / "base" / "tokenizer_config.json"
    roles = json.loads(beside.read_text(encoding="utf-8"))
    beside.write_text(json.dumps({k: v for k, v in roles.items() if k != "eos_token"}), encoding="utf-8")
    with pytest.raises(StudentRefused, match=r"no end-of-sequence token; set eos_token in its tokenizer_config\.json"):
        make(tmp_path / "b", **{"from": str(tmp_path / "base")})


def test_rows_of_two_tokenizers_never_mix(tmp_path: Path) -> None:
    teacher = MarkovTeacher()
    table = teacher.table(tmp_path / "table", 3)
    table.append(teacher.rows(3, seed=1, tokenizer_sha256="b" * 64), writer="other", sequence=0)
    with pytest.raises(TableUnfit, match="2 tokenizers"):
        table_tokenizer(table)


def test_the_loss_inside_the_student_is_a_train_error_away_from_unknown_tails() -> None:
    with pytest.raises(TrainError, match="tail"):
        DistilledStudent(tiny("llama", "sdpa"), Objective(tail="flat"))  # type: ignore[arg-type]
