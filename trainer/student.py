"""The student: made from a small configuration with its own trimmed vocabulary, or loaded from a local folder.

What is saved is an ordinary transformers model with its tokenizer: a user of the student never needs this project.
Nothing is fetched from a hub: terms may bind what is downloaded, and the audit knows only what it was told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from trainer.config import StudentSettings
from trainer.errors import TrainError
from trainer.surgery import add_adapters, every_nth_layer
from trainer.tokenizer import TokenizerDefinition, read_tokenizer
from trainer.vocabulary import TrimmedVocabulary, count_tokens, match_vocabulary, trim_vocabulary


class StudentRefused(TrainError):
    """The student cannot be made or loaded, or does not fit the table."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The student's tokenizer and where the teacher's ids went in it."""

    definition: TokenizerDefinition
    id_map: NDArray[np.int32] | None  # teacher id -> student id, −1 = none; None = the same ids
    lost_mass: float = 0.0  # mean probability per position that falls into the tail for want of a token
    folder: Path | None = None  # the folder whose tokenizer files are kept as they are

    @property
    def kind(self) -> str:
        """trimmed, full or own: as reports call it."""
        return "own" if self.folder else "full" if self.id_map is None else "trimmed"


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
            "architecture": self.model.config.model_type,
            "parameters": parameters,
            "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "non_embedding_parameters": parameters - embeddings,
            "vocabulary": self.model.config.vocab_size,
            "vocabulary_kind": self.vocabulary.kind,
            "mass_lost_to_trimming": self.vocabulary.lost_mass,
        }


def create_student(
    settings: StudentSettings, tokenizer: bytes, batches: Iterable[pa.RecordBatch], *, sequence_length: int, seed: int
) -> Student:
    """The student that the settings ask for, with weights that depend on `seed` alone.

    Args:
        tokenizer: the teacher's, as the table stores it.
        batches: rows of the table with COUNT_COLUMNS, read once where a vocabulary is trimmed or compared.

    Raises StudentRefused (or TokenizerError) when the student does not fit the table.
    """
    _no_bars()
    definition = read_tokenizer(tokenizer)
    folder = settings.teacher or settings.from_
    if isinstance(folder, Path):
        student = _load(folder, definition, batches)
        return _altered(student, settings, seed)
    if settings.eos_token is not None and settings.eos_token not in definition.vocabulary():
        raise StudentRefused(f"[student] eos_token {settings.eos_token!r} is not a token of the teacher's tokenizer.")
    vocabulary = _vocabulary(settings, definition, batches)
    return Student(_from_config(settings, vocabulary.definition, sequence_length, seed), vocabulary, "config")


def _no_bars() -> None:
    """transformers draws bars of its own on stderr, one for each model that is read or written."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _vocabulary(
    settings: StudentSettings, definition: TokenizerDefinition, batches: Iterable[pa.RecordBatch]
) -> Vocabulary:
    definition = definition.with_eos(settings.eos_token)
    if definition.eos is None:
        raise StudentRefused(
            "The teacher's tokenizer does not say which token ends a sequence; name it as eos_token in [student]."
        )
    if settings.vocabulary == "full":
        return Vocabulary(definition, None)
    use = count_tokens(batches, definition)
    trimmed: TrimmedVocabulary = trim_vocabulary(definition, use, candidate_loss=settings.candidate_loss)
    return Vocabulary(trimmed.definition, trimmed.id_map, trimmed.lost_mass)


def _from_config(settings: StudentSettings, definition: TokenizerDefinition, sequence_length: int, seed: int) -> Any:
    ids = definition.vocabulary()
    try:
        config = AutoConfig.for_model(
            settings.architecture,
            vocab_size=definition.size(),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.key_value_heads,
            head_dim=settings.hidden_size // settings.heads,
            max_position_embeddings=max(sequence_length, 1024),
            tie_word_embeddings=True,
            bos_token_id=ids.get(definition.bos or ""),
            eos_token_id=ids[definition.eos or ""],
            pad_token_id=ids[definition.pad or definition.eos or ""],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            make: Any = AutoModelForCausalLM.from_config
            return make(config, dtype=torch.float32)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudentRefused(f"transformers cannot make the student {settings.architecture!r}: {error}") from error


def _load(folder: Path, teacher: TokenizerDefinition, batches: Iterable[pa.RecordBatch]) -> Student:
    if not (folder / "config.json").is_file():
        raise StudentRefused(
            f"{folder} holds no model (config.json is missing); name a local folder of transformers files."
        )
    model = load_student(folder)
    try:
        own = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise StudentRefused(f"The tokenizer in {folder} cannot be loaded: {error}") from error
    if own.eos_token is None:
        raise StudentRefused(
            f"The tokenizer in {folder} has no end-of-sequence token; set eos_token in its tokenizer_config.json."
        )
    definition = read_tokenizer(own.backend_tokenizer.to_str().encode())
    if definition.size() > model.config.vocab_size:
        raise StudentRefused(
            f"The tokenizer in {folder} has {definition.size()} tokens, but the model "
            f"{model.config.vocab_size}; resize its embeddings."
        )
    match = match_vocabulary(teacher, definition, batches)
    return Student(model, Vocabulary(definition, match.id_map, match.lost_mass, folder), folder.name)


def _altered(student: Student, settings: StudentSettings, seed: int) -> Student:
    model, origin = student.model, student.origin
    if settings.from_ == "teacher-layers":
        model = every_nth_layer(model, settings.every)
        origin = f"layers 0, {settings.every}, … of {origin}"
    if settings.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, origin = add_adapters(model, settings.lora), f"{origin} with adapters of rank {settings.lora.rank}"
    return Student(model, student.vocabulary, origin)


def load_student(folder: Path) -> Any:
    """The causal model in a folder that save_student wrote, or any other local one, in float32.

    Raises StudentRefused.
    """
    _no_bars()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise StudentRefused(f"The student in {folder} cannot be loaded: {error}") from error


def save_student(model: Any, vocabulary: Vocabulary, folder: Path) -> None:
    """Writes safetensors, configuration and tokenizer, as plain AutoModelForCausalLM and AutoTokenizer load them."""
    folder.mkdir(parents=True, exist_ok=True)
    _no_bars()
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    config = merged.config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(merged.generation_config, name, getattr(config, name))
    merged.save_pretrained(folder)
    if vocabulary.folder is not None:
        AutoTokenizer.from_pretrained(vocabulary.folder, local_files_only=True).save_pretrained(folder)
    else:
        vocabulary.definition.save(folder, model_max_length=config.max_position_embeddings)
