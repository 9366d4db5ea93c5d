"""The student: made from a configuration, loaded from a local folder, or cut out of a local teacher.

What is saved is an ordinary transformers model with its tokenizer: a user of the student never needs this project.
Nothing is fetched from a hub: terms may bind what is downloaded, and the audit knows only what it was told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from trainer.config import StudentSettings
from trainer.student_vocabulary import (
    Batches,
    StudentRefused,
    Vocabulary,
    own_vocabulary,
    read_own,
    teachers_vocabulary,
)
from trainer.surgery import add_adapters, every_nth_layer
from trainer.task import TASKS, Task, task_of, task_of_folder
from trainer.tokenizer import TokenizerDefinition, read_tokenizer

REFUSALS = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Student:
    """A model to train and its vocabulary."""

    model: Any
    vocabulary: Vocabulary
    origin: str

    def facts(self) -> dict[str, Any]:
        """What was made, for people and records: parameters as numbers, embeddings apart."""
        embeddings = self.model.get_input_embeddings().weight.numel()
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {
            "origin": self.origin,
            "task": task_of(self.model),
            "architecture": self.model.config.model_type,
            "parameters": parameters,
            "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "non_embedding_parameters": parameters - embeddings,
            "vocabulary": self.model.config.vocab_size,
            "vocabulary_kind": self.vocabulary.kind,
            "mass_lost_to_trimming": self.vocabulary.lost_mass,
            **({} if self.vocabulary.use is None else {"across_tokenizers": self.vocabulary.use.to_record()}),
        }


def create_student(
    settings: StudentSettings,
    tokenizer: bytes | None,
    batches: Batches,
    *,
    sequence_length: int,
    seed: int,
    labels: tuple[str, ...] = (),
) -> Student:
    """The student that the settings ask for, with weights that depend on `seed` alone.

    Args:
        tokenizer: the teacher's, as the table stores it; a classifier with a tokenizer of its own needs none.
        batches: rows of the table, read where a vocabulary is trimmed or compared.
        labels: of a classifier, in the order of the table's label set.

    Raises StudentRefused (or TokenizerError) when the student does not fit the table.
    """
    _no_bars()
    teacher = None if tokenizer is None else read_tokenizer(tokenizer)
    folder = settings.teacher or settings.from_
    if isinstance(folder, Path):
        with _seeded(seed):
            model = _load(folder, settings.task, labels)
        vocabulary = own_vocabulary(settings, own_tokenizer(folder, model), teacher, batches, folder)
        if model.config.pad_token_id is None:
            definition = vocabulary.definition
            model.config.pad_token_id = definition.vocabulary()[definition.pad or definition.eos or ""]
        return _altered(Student(model, vocabulary, folder.name), settings, seed)
    if settings.tokenizer is not None:
        vocabulary = own_vocabulary(settings, read_own(settings.tokenizer), teacher, batches)
    else:
        assert teacher is not None
        vocabulary = teachers_vocabulary(settings, teacher, batches)
    model = _from_config(settings, vocabulary.definition, sequence_length, seed, labels)
    return Student(model, vocabulary, "config")


def _no_bars() -> None:
    """transformers draws bars of its own on stderr, one for each model that is read or written."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _from_config(
    settings: StudentSettings,
    definition: TokenizerDefinition,
    sequence_length: int,
    seed: int,
    labels: tuple[str, ...],
) -> Any:
    task = TASKS[settings.task]
    architecture, ids = settings.architecture or task.architecture, definition.vocabulary()
    options: dict[str, Any] = {
        "vocab_size": definition.size(),
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.key_value_heads,
        "head_dim": settings.hidden_size // settings.heads,
        "max_position_embeddings": max(sequence_length, 1024),
        "tie_word_embeddings": True,
        "bos_token_id": ids.get(definition.bos or ""),
        "eos_token_id": ids.get(definition.eos or ""),
        "pad_token_id": ids[definition.pad or definition.eos or ""],
    }
    try:
        default = AutoConfig.for_model(architecture)
        options |= {"hidden_dim": settings.intermediate_size} if hasattr(default, "hidden_dim") else {}
        options |= {"embedding_size": settings.hidden_size} if hasattr(default, "embedding_size") else {}
        options |= {name: None for name in ("cls_token_id", "sep_token_id") if hasattr(default, name)}
        config = AutoConfig.for_model(architecture, **options, **_label_options(labels))
        with _seeded(seed):
            return task.auto_class.from_config(config, dtype=torch.float32)
    except REFUSALS as error:
        raise StudentRefused(f"transformers cannot make the student {architecture!r}: {error}") from error


def _label_options(labels: tuple[str, ...]) -> dict[str, Any]:
    if not labels:
        return {}
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def _load(folder: Path, task: Task, labels: tuple[str, ...]) -> Any:
    """The model in a folder, with a new head where it has none for the task."""
    if not (folder / "config.json").is_file():
        raise StudentRefused(
            f"{folder} holds no model (config.json is missing); name a local folder of transformers files."
        )
    config = _config(folder)
    was = task_of_folder(config)
    if task == "masked" and was != "masked":
        raise StudentRefused(f"{folder} holds no masked language model ({config.architectures}); set [student] task.")
    if task == "classification" and was == "classification":
        _same_labels(folder, tuple(config.id2label[i] for i in range(config.num_labels)), labels)
    return _loaded(folder, task, **_label_options(labels))


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, *REFUSALS) as error:
        raise StudentRefused(f"The student in {folder} cannot be loaded: {error}") from error


def _same_labels(folder: Path, theirs: tuple[str, ...], labels: tuple[str, ...]) -> None:
    if theirs != labels:
        raise StudentRefused(
            f"The classifier in {folder} knows the labels {', '.join(theirs)}, and the table's are "
            f"{', '.join(labels)}; collect with its labels in its order, or start from a model without a classifier."
        )


def own_tokenizer(folder: Path, model: Any) -> TokenizerDefinition:
    """The tokenizer in a model's folder, with its special tokens' roles. Raises StudentRefused."""
    try:
        own = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise StudentRefused(f"The tokenizer in {folder} cannot be loaded: {error}") from error
    definition = read_tokenizer(own.backend_tokenizer.to_str().encode())
    roles = {role: getattr(own, f"{role}_token", None) for role in ("bos", "eos", "unk", "pad", "mask")}
    named: dict[str, Any] = {role: None if token is None else str(token) for role, token in roles.items()}
    definition = replace(definition, **named)
    if task_of(model) == "causal" and own.eos_token is None:
        raise StudentRefused(
            f"The tokenizer in {folder} has no end-of-sequence token; set eos_token in its tokenizer_config.json."
        )
    if definition.size() > model.config.vocab_size:
        raise StudentRefused(
            f"The tokenizer in {folder} has {definition.size()} tokens, but the model "
            f"{model.config.vocab_size}; resize its embeddings."
        )
    return definition


def _altered(student: Student, settings: StudentSettings, seed: int) -> Student:
    model, origin = student.model, student.origin
    if settings.from_ == "teacher-layers":
        model = every_nth_layer(model, settings.every)
        origin = f"layers 0, {settings.every}, … of {origin}"
    if settings.lora is not None:
        with _seeded(seed):
            model, origin = add_adapters(model, settings.lora), f"{origin} with adapters of rank {settings.lora.rank}"
    return Student(model, student.vocabulary, origin)


def load_student(folder: Path) -> Any:
    """The model in a folder that save_student wrote, or any other local one, in float32, with the head it names.

    Raises StudentRefused.
    """
    _no_bars()
    return _loaded(folder, task_of_folder(_config(folder)))


def _loaded(folder: Path, task: Task, **options: Any) -> Any:
    try:
        load = TASKS[task].auto_class.from_pretrained
        return load(folder, local_files_only=True, dtype=torch.float32, **options)
    except (OSError, RuntimeError, *REFUSALS) as error:
        raise StudentRefused(f"The student in {folder} cannot be loaded: {error}") from error


def save_student(model: Any, vocabulary: Vocabulary, folder: Path) -> None:
    """Writes safetensors, configuration and tokenizer, as plain AutoModel* and AutoTokenizer load them."""
    folder.mkdir(parents=True, exist_ok=True)
    _no_bars()
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    config = merged.config
    if task_of(merged) == "causal":
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(merged.generation_config, name, getattr(config, name))
    merged.save_pretrained(folder)
    if vocabulary.folder is not None:
        AutoTokenizer.from_pretrained(vocabulary.folder, local_files_only=True).save_pretrained(folder)
    else:
        vocabulary.definition.save(folder, model_max_length=config.max_position_embeddings)
