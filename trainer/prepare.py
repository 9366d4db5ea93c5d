"""What a training and its evaluation have in common: the student, its rows, the proof, the teacher that it follows.

Each is a function of the settings and the table alone, so that both get the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.table import Table
from trainer.align import AlignmentProof, prove_alignment
from trainer.config import TrainConfig
from trainer.hidden import HiddenTeacher, HiddenTeacherRefused, check_widths
from trainer.reading import TableUnfit, column_batches, table_labels, table_templates, table_tokenizer
from trainer.stream import SoftLabelStream
from trainer.student import Student, create_student, load_student, own_tokenizer
from trainer.task import TASKS, task_of
from trainer.tokenizer import read_tokenizer
from trainer.vocabulary import COUNT_COLUMNS


def make_student(config: TrainConfig, table: Table) -> Student:
    """The student before its first step; the same settings and table give the same weights."""
    settings, where, lost = config.student, config.data.where, config.data.quarantine
    modes = TASKS[settings.task].modes
    classifies = settings.task == "classification"
    labels = table_labels(table, where, quarantine=lost) if classifies else ()
    tokenizer = None
    if not classifies or (settings.tokenizer is None and settings.from_ == "config"):
        tokenizer = table.tokenizer(table_tokenizer(table, modes, where, quarantine=lost))

    def batches(columns: Sequence[str]) -> Iterable[pa.RecordBatch]:
        return column_batches(table, columns or COUNT_COLUMNS, modes, quarantine=lost)

    return create_student(
        settings,
        tokenizer,
        batches,
        sequence_length=config.data.sequence_length,
        seed=config.data.seed,
        labels=labels,
    )


def make_stream(
    config: TrainConfig, table: Table, student: Student, *, batch_size: int, pack: bool | None = None, **options: Any
) -> SoftLabelStream:
    """The rows of the table as batches for this student; `options` as SoftLabelStream takes them.

    Texts that are classified are never packed: a classifier gives one answer a sequence.
    """
    vocabulary, data = student.vocabulary, config.data
    objective = config.loss.objective()
    packed = data.pack if pack is None else pack
    return SoftLabelStream(
        table,
        sequence_length=data.sequence_length,
        batch_size=batch_size,
        pack=packed and config.student.task != "classification",
        seed=data.seed,
        holdout=data.holdout,
        id_map=None if vocabulary.rewriter else vocabulary.id_map,
        unknown_id=vocabulary.definition.vocabulary().get(vocabulary.definition.unk or ""),
        left_out=_keys(data.leave_out),
        where=data.where,
        source_weights=data.source_weights,
        quarantine=data.quarantine,
        temperature=objective.temperature if objective.needs_tail_sum else 1.0,
        modes=TASKS[config.student.task].modes,
        rewriter=vocabulary.rewriter,
        **options,
    )


def _keys(path: Path | None) -> frozenset[str]:
    """The keys in a file, a line each. Raises TableUnfit when it cannot be read."""
    if path is None:
        return frozenset()
    try:
        return frozenset(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise TableUnfit(
            f"[data] leave_out {path} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error


def prove(config: TrainConfig, table: Table, student: Student) -> AlignmentProof:
    """The alignment proof on the training rows. Raises NotAligned."""
    batches = make_stream(config, table, student, split="train", batch_size=8, repeat=False)
    vocabulary, task = student.vocabulary, config.student.task
    how = "the same ids" if vocabulary.id_map is None else f"mapped, {vocabulary.kind}"
    if vocabulary.rewriter is not None:
        named = "the student's own, of texts" if task == "classification" else "the student's own, by byte offsets"
    else:
        named = f"{_tokenizer_of(config, table)[:12]} ({how})"
    mask = vocabulary.definition.mask
    return prove_alignment(
        batches,
        vocabulary=student.model.config.vocab_size,
        tokenizer=named,
        templates=table_templates(table, quarantine=config.data.quarantine),
        task=task,
        mask_id=None if mask is None else vocabulary.definition.vocabulary()[mask],
        classes=student.model.config.num_labels if task == "classification" else None,
    )


def _tokenizer_of(config: TrainConfig, table: Table) -> str:
    modes, data = TASKS[config.student.task].modes, config.data
    return table_tokenizer(table, modes, data.where, quarantine=data.quarantine)


def make_guide(config: TrainConfig, table: Table, student: Student) -> HiddenTeacher | None:
    """The local teacher whose hidden states are followed, if the settings name one.

    Raises HiddenTeacherRefused when its tokens are not those of the table, or its width is not the student's.
    """
    folder = config.hidden_teacher
    if folder is None:
        return None
    model = load_student(folder)
    if task_of(model) != config.student.task:
        raise HiddenTeacherRefused(
            f"{folder} is no {config.student.task} model, as the student is; name another teacher."
        )
    check_widths(student.model, model, folder)
    if student.vocabulary.rewriter is not None:
        raise HiddenTeacherRefused(
            "The student has a tokenizer of its own, so its hidden states stand at other tokens than the teacher's; "
            "set cosine_weight = 0, or take a student with the teacher's tokenizer."
        )
    stored = read_tokenizer(
        table.tokenizer(table_tokenizer(table, TASKS[config.student.task].modes, config.data.where))
    )
    if own_tokenizer(folder, model).vocabulary() != stored.vocabulary():
        raise HiddenTeacherRefused(
            f"The tokenizer in {folder} has other tokens than the table's labels; it is not the teacher of this table."
        )
    return HiddenTeacher(model, weight=config.loss.cosine_weight, id_map=student.vocabulary.id_map)
