"""Bring a data set of another project into the table: judged like a collection, exactly once, rejects kept.

Whoever imports must say which teacher made the data and under which terms; the set itself does not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from policies.decision import Decision
from policies.documents import load_bundle
from policies.evaluate import evaluate
from policies.identity import Material, Teacher
from policies.use import Use
from storage.audit import demand
from storage.errors import ForeignDataError, InvalidRow
from storage.foreign import ForeignSequence, check_alignment, read_foreign
from storage.invariants import check_row
from storage.ledgers import Reject
from storage.rows import Row, TeacherRecord
from storage.table import Table

BATCH = 256


@dataclass(frozen=True, slots=True)
class Imported:
    """What came in."""

    rows: int
    duplicates: int
    rejects: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What an importer must know: the teacher, the terms ("ID@VERSION") its outputs are under, the prompts' licence."""

    teacher: Teacher
    terms: tuple[str, ...]
    prompt_licence: str | None = None
    tokenizer_sha256: str | None = None
    tokenizer: Path | None = None
    """The file itself, where the set has chats and no token ids; its chat template lies beside it."""


def import_labels(source: Path, table_path: Path | str, provenance: Provenance) -> Imported:
    """Import a DistillKit capture or an Axolotl set, raw or prepared. It may be repeated or go on after a kill.

    Raises ForeignDataError for a set that cannot be read or is shifted, Refused or NeedsReview by the policies.
    """
    kind, sequences = read_foreign(source, provenance.tokenizer)
    bundle = load_bundle()
    material = Material(
        teacher=provenance.teacher,
        signal="top_k_logprobs",
        prompt_licence=provenance.prompt_licence,
        terms=provenance.terms,
    )
    decision = evaluate([material], Use.collect_only(), bundle=bundle)
    demand(decision, "Importing these labels")
    batches = _batches(sequences)
    first = next(batches, [])
    if not first:
        raise ForeignDataError(f"{source} has no sequences.")
    check_alignment(first)
    table = Table.open_or_create(table_path)
    table.save_decision(decision)
    return _write(table, itertools.chain([first], batches), kind, source, provenance, decision)


def _batches(sequences: Iterator[ForeignSequence]) -> Iterator[list[ForeignSequence]]:
    while batch := list(itertools.islice(sequences, BATCH)):
        yield batch


def _write(
    table: Table,
    batches: Iterator[list[ForeignSequence]],
    kind: str,
    source: Path,
    provenance: Provenance,
    decision: Decision,
) -> Imported:
    facts = [kind, str(source.absolute()), provenance.teacher.label, sorted(provenance.terms)]
    run_id = f"import-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
    rows = duplicates = rejected = 0
    for number, batch in enumerate(batches):
        good, bad = [], []
        for sequence in batch:
            row = _row(sequence, run_id, kind, source, provenance, decision)
            problem = sequence.problem if row is None else _problem(row)
            if row is None or problem is not None:
                bad.append(_reject(sequence, run_id, str(problem)))
            else:
                good.append(row)
        done = table.append(good, writer=run_id, sequence=number)
        table.append_rejects(bad, writer=run_id, sequence=number)
        rows, duplicates, rejected = rows + done.written, duplicates + done.duplicates, rejected + len(bad)
    return Imported(rows, duplicates, rejected, table.version)


def _problem(row: Row) -> str | None:
    try:
        check_row(row)
    except InvalidRow as error:
        return str(error)
    return None


def _key(sequence: ForeignSequence, kind: str, provenance: Provenance) -> str:
    digest = hashlib.sha256()
    identity = {
        "mode": "score",
        "kind": kind,
        "model": provenance.teacher.name,
        "revision": provenance.teacher.revision,
    }
    identity["tokenizer_sha256"] = provenance.tokenizer_sha256
    digest.update(json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    digest.update(sequence.prompt_ids.tobytes() + b"|")
    if sequence.labels is None:
        digest.update(f"{sequence.number}".encode())
    else:
        digest.update(f"{sequence.labels.k}|".encode() + sequence.labels.token_ids.tobytes())
    return digest.hexdigest()


def _row(
    sequence: ForeignSequence, run_id: str, kind: str, source: Path, provenance: Provenance, decision: Decision
) -> Row | None:
    if sequence.labels is None:
        return None
    teacher = provenance.teacher
    record = TeacherRecord(
        model=teacher.name,
        revision=teacher.revision,
        provider=kind,
        access_path=teacher.access_path,
        served_by=teacher.served_by,
    )
    return Row(
        key=_key(sequence, kind, provenance),
        mode="score",
        run_id=run_id,
        prompt_id=f"{source.name}-{sequence.number}",
        collected_at=datetime.now(UTC),
        teacher=record,
        terms=provenance.terms,
        policy_bundle=decision.bundle,
        collect_verdict=decision.verdict,
        decision=decision.digest,
        labels=sequence.labels,
        prompt_token_ids=sequence.prompt_ids,
        tokenizer_sha256=provenance.tokenizer_sha256,
        prompt_source=source.name,
        prompt_licence=provenance.prompt_licence,
        flags=("imported",),
    )


def _reject(sequence: ForeignSequence, run_id: str, problem: str) -> Reject:
    return Reject(
        key=hashlib.sha256(f"{run_id} {sequence.number}".encode()).hexdigest(),
        run_id=run_id,
        prompt_id=str(sequence.number),
        reason="import",
        detail=problem,
        raw=sequence.prompt_ids.tobytes(),
        rejected_at=datetime.now(UTC),
    )
