"""`potstill train`: audit, student, alignment proof, training, student folder, record; in that order, nothing skipped.

The table version is pinned at the start and kept by every checkpoint, so a table may grow while a student trains on it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from policies.decision import Decision
from policies.identity import Signal
from storage.table import Table
from trainer.align import AlignmentProof
from trainer.card import still_owed, write_card
from trainer.checkpoint import ResumeRefused, TrainingState, check_resume, last_checkpoint, remove_checkpoints
from trainer.config import TrainConfig
from trainer.documents import prove_documents
from trainer.errors import TrainError
from trainer.forward import DistilledStudent
from trainer.gate import gate
from trainer.invariance import check_splits
from trainer.loop import DEFAULTS, DistillationTrainer, Progress, training_arguments
from trainer.prepare import make_guide, make_stream, make_student, prove
from trainer.student import Student, save_student

Tell = Callable[[str], None]
LEAST_FREE = 1_000_000
RECORD_FILE = "training.json"
"""The training record in the student's folder; the table keeps the same one."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a training left: the folder of the student, its record and the digest of the record in the table."""

    out: Path
    record: dict[str, Any]
    digest: str


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    tell: Tell = lambda line: None,
    progress: Callable[[int, int, dict[str, float]], None] = lambda step, steps, logs: None,
) -> Training:
    """Train the student that the settings describe.

    Args:
        resume: go on from the last finished checkpoint in `config.out`, on the table version it names.
        tell: gets lines for a person.
        progress: gets the step, the number of steps and the log of the last ones.

    Raises TrainError, PolicyError or StorageError: exit 3 when the policies refuse the use, 5 when they cannot judge.
    """
    started = time.monotonic()
    arguments = training_arguments(
        config.training, out=config.out, seed=config.data.seed, from_scratch=config.student.from_ == "config"
    )
    objective = config.loss.objective()
    sequences = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    found = _checkpoint(config, resume, sequences)
    table = Table.open(config.table, found[1].table_version if found else config.version)
    table = Table.open(config.table, table.version)  # pinned from here on
    decision = _audited(config, table)
    tell(f"audit of version {table.version}: {decision.verdict}, decision {decision.digest[:12]}")
    student = make_student(config, table)
    for line in _describe(student):
        tell(line)
    prove_documents(student.model, pack=config.data.pack and config.student.task != "classification")
    stream = make_stream(
        config,
        table,
        student,
        split="train",
        batch_size=arguments.per_device_train_batch_size * arguments.world_size,
        rank=arguments.process_index,
        world=arguments.world_size,
    )
    proof = prove(config, table, student)
    for line in proof.lines():
        tell(line)
    provenance = TrainingState(str(config.table), table.version, decision.digest, config.digest, sequences, 0, {})
    with _written_to(config.out):
        trainer = DistillationTrainer(
            DistilledStudent(student.model, objective, make_guide(config, table, student)),
            arguments,
            stream,
            provenance=provenance,
            callbacks=[Progress(progress)],
        )
        if trainer.args.should_save:
            _announce(config, table, decision)
        _run(trainer, found, tell)
        record = _record(config, table, decision, student, proof, trainer, time.monotonic() - started)
        training = _finish(config, table, decision, student, record, trainer)
    if training.digest:
        for line in _ending(config, training.out, decision):
            tell(line)
    return training


def _ending(config: TrainConfig, out: Path, decision: Decision) -> list[str]:
    """What its maker still has to do for the student, and how to have the folder read again."""
    owed = still_owed(out, decision)
    if not any(duty.due for duty in decision.obligations):
        return owed
    waived = "".join(f" --waiver {file}" for file in config.waivers)
    again = f"potstill audit {config.table} --use {config.use} --student {out}{waived}"
    whole = out / "LICENSE-OBLIGATIONS.md"
    return [*owed, f"all that is owed for {decision.action} is in {whole}; `{again}` reads the folder again"]


def _run(trainer: DistillationTrainer, found: tuple[Path, TrainingState] | None, tell: Tell) -> None:
    """All steps, from the checkpoint that was found or from the first."""
    if found:
        trainer.stream.load_state_dict(found[1].stream)
        tell(f"resuming at step {found[1].step} from {found[0].name}")
    elif trainer.args.should_save and (removed := remove_checkpoints(trainer.out)):
        tell(f"removed {removed} checkpoints of an earlier training in {trainer.out}")
    trainer.train(resume_from_checkpoint=str(found[0]) if found else None)


def check(config: TrainConfig, *, tell: Tell = lambda line: None) -> dict[str, float]:
    """The first step's gradient under other splits of its batch; written to check.json in `config.out`.

    Audits and proves the alignment first, as a training does. Raises SplitMatters when a split changes the gradient.
    """
    table = Table.open(config.table, config.version)
    _audited(config, table)
    student = make_student(config, table)
    for line in prove(config, table, student).lines():
        tell(line)
    size = int(config.training.get("per_device_train_batch_size", DEFAULTS["per_device_train_batch_size"]))
    batch = next(iter(make_stream(config, table, student, split="train", batch_size=size)))
    guide = make_guide(config, table, student)
    differences = check_splits(DistilledStudent(student.model, config.loss.objective(), guide), batch)
    config.out.mkdir(parents=True, exist_ok=True)
    record = {"table_version": table.version, "config_digest": config.digest, "gradient_difference": differences}
    (config.out / "check.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    return differences


def _audited(config: TrainConfig, table: Table) -> Decision:
    """The gate; following a teacher's hidden states is the use of another signal than the table's labels."""
    signal: Signal | None = "hidden_states" if config.hidden_teacher else None
    return gate(table, config.use, config.waivers, signal=signal, gates=config.gates)


@contextmanager
def _written_to(out: Path) -> Iterator[None]:
    """Errors of writing as one sentence; a full disk also shows as a RuntimeError of torch's writer."""
    try:
        yield
    except OSError as error:
        raise TrainError(f"{error.filename or out} cannot be written: {error.strerror or error}.") from error
    except (SafetensorError, RuntimeError) as error:
        if shutil.disk_usage(out).free > LEAST_FREE and not isinstance(error, SafetensorError):
            raise
        raise TrainError(f"{out} cannot be written: {error}. Free some space, then go on with --resume.") from error


def _checkpoint(config: TrainConfig, resume: bool, sequences: int) -> tuple[Path, TrainingState] | None:
    if not resume:
        return None
    found = last_checkpoint(config.out)
    if found is None:
        raise ResumeRefused(f"There is no finished checkpoint in {config.out}; train without --resume.")
    check_resume(found[1], found[0], table=config.table, config=config.digest, sequences_per_step=sequences)
    return found


def _describe(student: Student) -> list[str]:
    facts, use = student.facts(), student.vocabulary.use
    made = (
        f"student from {facts['origin']}: {facts['architecture']}, {facts['parameters']:,} parameters, "
        f"vocabulary {facts['vocabulary']:,} ({facts['vocabulary_kind']}; "
        f"{facts['mass_lost_to_trimming']:.1%} of the teacher's mass moves to the tail)"
    )
    return [made] if use is None else [made, use.line()]


def _announce(config: TrainConfig, table: Table, decision: Decision) -> None:
    """Tell the table before the first step: a takedown must reach the checkpoints of a training that never ended."""
    record = {"outcome": "started", "table_version": table.version, "decision": decision.digest}
    settings = {"config": config.model_dump(mode="json", by_alias=True), "config_digest": config.digest}
    Table.open(config.table).save_training(record | settings)


def _record(
    config: TrainConfig,
    table: Table,
    decision: Decision,
    student: Student,
    proof: AlignmentProof,
    trainer: DistillationTrainer,
    seconds: float,
) -> dict[str, Any]:
    """The bill of materials: what went in, under which terms, and what came out."""
    return {
        "outcome": "finished",
        "table": str(config.table),
        "table_version": table.version,
        "decision": decision.digest,
        "verdict": decision.verdict,
        "use": decision.facts,
        "materials": [material.model_dump(mode="json") for material in table.materials()],
        "left_out": trainer.stream.index.left_out,
        "unreadable": {"row_groups": trainer.stream.index.damage.names, "rows": trainer.stream.index.damage.lost},
        "config": config.model_dump(mode="json", by_alias=True),
        "config_digest": config.digest,
        "student": student.facts(),
        "alignment": proof.to_record(),
        "steps": trainer.state.global_step,
        "stream": trainer.stream.state_dict(),
        "log": trainer.state.log_history,
        "seconds": round(seconds, 1),
    }


def _finish(
    config: TrainConfig,
    table: Table,
    decision: Decision,
    student: Student,
    record: dict[str, Any],
    trainer: DistillationTrainer,
) -> Training:
    if not trainer.args.should_save:
        return Training(config.out, record, "")
    save_student(trainer.student, student.vocabulary, config.out)
    write_card(config.out, record, decision)
    (config.out / RECORD_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
    digest = Table.open(config.table).save_training(record)
    return Training(config.out, record, digest)
