"""Which tokens a student has, and how the rows of a table become its own: the same ids, mapped ids, or made again.

The nearest way that is exact is taken: the teacher's tokenizer or one cut down from it; another one that cuts the
table's texts alike; and only then chunks of text that both tokenizers bound alike (across.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.across import AcrossRows
from trainer.classify import TextRows
from trainer.config import StudentSettings
from trainer.errors import TrainError
from trainer.label_use import LabelUse, label_use
from trainer.rewriting import Rewriter
from trainer.tokenizer import TokenizerDefinition, read_tokenizer
from trainer.vocabulary import OtherTokens, count_tokens, match_vocabulary, trim_vocabulary

Batches = Callable[[Sequence[str]], Iterable[pa.RecordBatch]]
"""Columns → those of the rows that the student learns from, read anew at each call."""


class StudentRefused(TrainError):
    """The student cannot be made or loaded, or does not fit the table."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The student's tokenizer and where the teacher's ids went in it."""

    definition: TokenizerDefinition
    id_map: NDArray[np.int32] | None  # teacher id -> student id, −1 = none; None = the same ids, or none in common
    lost_mass: float = 0.0  # mean probability per position that falls into the tail for want of a token
    folder: Path | None = None  # the folder whose tokenizer files are kept as they are
    rewriter: Rewriter | None = None  # makes rows in the student's tokens, where ids cannot be mapped
    use: LabelUse | None = None  # what of the labels another tokenizer can use
    own: bool = False

    @property
    def kind(self) -> str:
        """trimmed, full or own: as reports call it."""
        return "own" if self.own else "full" if self.id_map is None else "trimmed"


def teachers_vocabulary(settings: StudentSettings, teacher: TokenizerDefinition, batches: Batches) -> Vocabulary:
    """The teacher's own tokenizer, whole or cut down to what the table needs."""
    if settings.eos_token is not None and settings.eos_token not in teacher.vocabulary():
        raise StudentRefused(f"[student] eos_token {settings.eos_token!r} is not a token of the teacher's tokenizer.")
    definition = checked(teacher.with_eos(settings.eos_token), settings)
    of_texts = settings.task == "classification"
    if settings.vocabulary == "full":
        vocabulary = Vocabulary(definition, None)
    else:
        use = count_tokens(batches(()), definition, of_texts_alone=of_texts)
        trimmed = trim_vocabulary(definition, use, candidate_loss=settings.candidate_loss)
        vocabulary = Vocabulary(trimmed.definition, trimmed.id_map, trimmed.lost_mass)
    return replace(vocabulary, rewriter=text_rows(vocabulary.definition)) if of_texts else vocabulary


def own_vocabulary(
    settings: StudentSettings,
    own: TokenizerDefinition,
    teacher: TokenizerDefinition | None,
    batches: Batches,
    folder: Path | None = None,
) -> Vocabulary:
    """A tokenizer that the student brings, given the teacher's (None for a classifier, whose labels are no tokens).

    Raises StudentRefused or TokenizerError when the rows cannot be had in its tokens.
    """
    own = checked(own.with_eos(settings.eos_token), settings)
    if settings.task == "classification":
        return Vocabulary(own, None, folder=folder, rewriter=text_rows(own), own=True)
    assert teacher is not None
    try:
        match = match_vocabulary(teacher, own, batches(()))
    except OtherTokens:
        if settings.task == "masked":
            raise  # what is behind a mask of one tokenizer is no token of the other
        rows = AcrossRows(teacher, own)
        use = label_use(rows, batches(rows.columns + rows.label_columns))
        if not use.usable:
            raise
        return Vocabulary(own, None, folder=folder, rewriter=rows, use=use, own=True)
    return Vocabulary(own, match.id_map, match.lost_mass, folder, own=True)


def text_rows(definition: TokenizerDefinition) -> TextRows:
    """Texts as a tokenizer makes them, with the special tokens that it puts around them."""
    tokenizer = definition.build()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]

    return TextRows(encode, name=json.dumps(definition.content, sort_keys=True))


def read_own(path: Path) -> TokenizerDefinition:
    """A tokenizer.json, or the one in a folder, with the roles that the tokenizer_config.json beside it names."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        definition = read_tokenizer(file.read_bytes())
    except OSError as error:
        raise StudentRefused(f"The student's tokenizer {file} cannot be read: {error.strerror}.") from error
    beside = file.with_name("tokenizer_config.json")
    if not beside.is_file():
        return definition
    roles = json.loads(beside.read_text(encoding="utf-8"))
    named = {role: roles.get(f"{role}_token") for role in ("bos", "eos", "unk", "pad", "mask")}
    texts = {role: token["content"] if isinstance(token, dict) else token for role, token in named.items()}
    known = definition.vocabulary()
    return replace(definition, **{role: token for role, token in texts.items() if token in known})


def checked(definition: TokenizerDefinition, settings: StudentSettings) -> TokenizerDefinition:
    """The tokenizer, when it has the special tokens that the task needs. Raises StudentRefused."""
    if settings.task == "causal" and definition.eos is None:
        raise StudentRefused(
            "The student's tokenizer does not say which token ends a sequence; name it as eos_token in [student]."
        )
    if settings.task == "masked" and definition.mask is None:
        raise StudentRefused(
            "The student's tokenizer has no mask token ([MASK] or <mask>), so the student could not be asked; "
            "add it as a special token."
        )
    if (definition.pad or definition.eos) is None:
        raise StudentRefused("The student's tokenizer has no token to pad with; add one ([PAD] or <pad>).")
    return definition
