"""Students from other models: layers taken, adapters trained and merged, all with a lower KL than their hard twins."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.trainer.synthetic import MarkovTeacher, batches_of, training_folder
from trainer.config import LoraSettings, StudentSettings, read_config
from trainer.evaluate import evaluate
from trainer.fit import check, train
from trainer.forward import DistilledStudent
from trainer.invariance import SplitMatters, check_splits
from trainer.objective import Objective
from trainer.reading import table_tokenizer
from trainer.stream import SoftLabelStream
from trainer.student import create_student
from trainer.surgery import SurgeryRefused, add_adapters, every_nth_layer
from trainer.tokenizer import read_tokenizer

torch.set_num_threads(1)
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def model(kind: str = "llama", layers: int = 5, **options: Any) -> Any:
    config = AutoConfig.for_model(kind, vocab_size=50, num_hidden_layers=layers, **{**SIZES, **options})
    torch.manual_seed(0)
    make: Any = AutoModelForCausalLM.from_config
    return make(config, dtype=torch.float32).eval()


def base_folder(folder: Path, layers: int = 4) -> Path:
    """A local model with the teacher's tokenizer, as a user has one."""
    teacher = MarkovTeacher()
    definition = read_tokenizer(teacher.tokenizer())
    definition.save(folder, model_max_length=64)
    base = model(layers=layers, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=1, pad_token_id=1)
    base.save_pretrained(folder)
    return folder


def student_settings(path: Path, text: str) -> Path:
    """train.toml with another [student] section."""
    before, rest = path.read_text(encoding="utf-8").split("[student]")
    path.write_text(f"{before}[student]\n{text}\n[data]{rest.split('[data]')[1]}", encoding="utf-8")
    return path


@pytest.mark.parametrize(("every", "kept"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3])])
def test_every_nth_layer_is_taken(every: int, kept: list[int]) -> None:
    teacher = model()
    student = every_nth_layer(teacher, every)
    assert student.config.num_hidden_layers == len(kept)
    for new, old in enumerate(kept):
        for name, tensor in student.model.layers[new].state_dict().items():
            assert torch.equal(tensor, teacher.model.layers[old].state_dict()[name])
    assert torch.equal(student.model.embed_tokens.weight, teacher.model.embed_tokens.weight)


def test_all_layers_make_the_same_model() -> None:
    teacher, ids = model(), torch.arange(8)[None]
    torch.testing.assert_close(every_nth_layer(teacher, 1)(ids).logits, teacher(ids).logits)


def test_layer_kinds_go_with_their_layers() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    teacher = model("gemma3_text", num_key_value_heads=1, head_dim=16, layer_types=kinds, sliding_window=4)
    student = every_nth_layer(teacher, 2)
    assert student.config.layer_types == kinds[::2]
    assert student(torch.arange(8)[None]).logits.shape == (1, 8, 50)


def test_a_model_of_other_names_is_cut_too() -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=50, n_embd=32, n_layer=4, n_head=2)
    assert every_nth_layer(AutoModelForCausalLM.from_config(config), 2).config.n_layer == 2


def test_adapters_start_as_the_model_and_train_alone() -> None:
    base, ids = model(), torch.arange(8)[None]
    before = base(ids).logits
    adapted = add_adapters(base, LoraSettings(rank=4))
    torch.testing.assert_close(adapted(ids).logits, before)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad and "lora" not in name} == set()


def test_targets_that_do_not_exist_are_refused() -> None:
    with pytest.raises(SurgeryRefused, match="refused by peft"):
        add_adapters(model(), LoraSettings(targets=("no_such_layer",)))


@pytest.mark.parametrize(
    "settings",
    [{"from": "teacher-layers"}, {"from": "config", "teacher": "x"}, {"from": "config", "lora": {}}],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    from trainer.config import TrainConfig

    with pytest.raises(ValidationError):
        TrainConfig.model_validate({"table": "t", "use": "u", "out": "o", "student": settings})


@pytest.mark.parametrize(
    "text",
    [
        'from = "base"\n[student.lora]\nrank = 8',
        'from = "teacher-layers"\nteacher = "base"\nevery = 2',
        'from = "base"',
    ],
    ids=["lora", "teacher-layers", "folder"],
)
def test_each_origin_ends_nearer_to_the_teacher_than_its_hard_twin(tmp_path: Path, text: str) -> None:
    MarkovTeacher().table(tmp_path / "table", 60)
    base_folder(tmp_path / "base")
    config = read_config(student_settings(training_folder(tmp_path, steps=60), text))
    record = train(config).record
    models = evaluate(config).content["models"]
    assert models["student"]["kl"] < models["hard_twin"]["kl"] < models["untrained"]["kl"]
    assert AutoModelForCausalLM.from_pretrained(config.out).config.num_hidden_layers == (2 if "layers" in text else 4)
    assert (record["student"]["trained_parameters"] < record["student"]["parameters"]) == ("lora" in text)


def test_adapters_are_resumed(tmp_path: Path) -> None:
    results = []
    for name in ("whole", "resumed"):
        folder = tmp_path / name
        MarkovTeacher().table(folder / "table", 40)
        base_folder(folder / "base")
        path = student_settings(training_folder(folder, steps=40), 'from = "base"\n[student.lora]\nrank = 4')
        config = read_config(path)
        if name == "resumed":
            with pytest.raises(KeyboardInterrupt):
                train(config, progress=_interrupt)
        results.append(load_file(train(config, resume=name == "resumed").out / "model.safetensors"))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, atol=1e-6, rtol=1e-5)


def _interrupt(step: int, steps: int, logs: dict[str, float]) -> None:
    if step >= 30:
        raise KeyboardInterrupt


def test_the_gradient_does_not_depend_on_the_split(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 40)
    config = read_config(training_folder(tmp_path))
    differences = check(config)
    assert set(differences) == {"sequences", "documents"} and max(differences.values()) < 1e-4
    saved = json.loads((config.out / "check.json").read_text(encoding="utf-8"))
    assert saved["gradient_difference"] == differences


def test_a_student_whose_documents_see_each_other_is_found(tmp_path: Path) -> None:
    table = MarkovTeacher().table(tmp_path / "table", 20)
    settings = StudentSettings.model_validate({"hidden_size": 32, "heads": 2, "layers": 1, "intermediate_size": 64})
    student = create_student(
        settings, table.tokenizer(table_tokenizer(table)), batches_of(table), sequence_length=64, seed=0
    )
    stream = SoftLabelStream(
        table, sequence_length=64, batch_size=4, pack=True, seed=0, holdout=0.0, split="train",
        id_map=student.vocabulary.id_map,
    )  # fmt: skip
    batch = next(iter(stream))
    leaking = {**batch, "document_ids": (batch["document_ids"] > 0).long()}
    distilled = DistilledStudent(student.model, Objective())
    assert max(check_splits(distilled, batch).values()) < 1e-4

    class Leaking(DistilledStudent):
        def forward(self, normaliser: Any = None, **given: Any) -> Any:
            return super().forward(normaliser, **{**given, "document_ids": (given["document_ids"] > 0).long()})

    assert not torch.equal(leaking["document_ids"], batch["document_ids"])
    with pytest.raises(SplitMatters, match="documents"):
        check_splits(Leaking(student.model, Objective()), batch)
