"""A row of the table as Python sees it, and the way to Arrow and back.

Numbers travel as numpy arrays; only the small columns are built from Python values. Each row is checked on the way in,
so that a wrong row is refused here by name and not found by a training run.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.codec import MANTISSA_BITS, Labels, entropy, labels_from_arrow, list_column, round_mantissa
from storage.errors import InvalidRow
from storage.invariants import check_row
from storage.schema import SOFT_LABELS, table_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecord:
    """Which teacher answered, by which path, through which engine."""

    model: str
    provider: str
    access_path: str
    revision: str | None = None
    served_by: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    endpoint_card: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Every sampling parameter that was sent; None = not sent."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one request took."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TailSum:
    """log Σ over the tail of p^{1/temperature}, one per target: what the top k alone cannot give."""

    temperature: float
    log_sums: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One teacher sequence with its labels; `labels` is None for text whose token ids are not known."""

    key: str
    mode: str
    run_id: str
    prompt_id: str
    collected_at: datetime
    teacher: TeacherRecord
    terms: tuple[str, ...]
    policy_bundle: str
    collect_verdict: str
    decision: str
    sample_index: int = 0
    labels: Labels | None = None
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    completion: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    prompt_token_ids: NDArray[np.int32] | None = None
    token_bytes: tuple[bytes, ...] | None = None
    target_positions: NDArray[np.int32] | None = None
    label_set: tuple[str, ...] | None = None
    logprob_space: str = "unknown"
    estimator: str = "top_k"
    top_weights: NDArray[np.float32] | None = None
    tail_sums: tuple[TailSum, ...] | None = None
    tokenizer_sha256: str | None = None
    template_sha256: str | None = None
    sampling: Sampling | None = None
    response_id: str | None = None
    raw_sha256: str | None = None
    usage: Usage | None = None
    prompt_source: str | None = None
    prompt_licence: str | None = None
    flags: tuple[str, ...] = field(default=())
    reference: str | None = None
    domain: str | None = None


def signal(row: Row) -> str:
    """What of the teacher this row holds, in the words of the terms: text, top_k_logprobs or logits."""
    labels = row.labels
    if labels is None or (labels.k == 0 and bool(np.isnan(labels.token_logprobs).all())):
        return "text"
    return "logits" if row.estimator == "full" else "top_k_logprobs"


def audit_group(row: Row) -> str:
    """Digest of what a licence audit asks of a row: teacher, access path, who served, signal, terms, prompt licence."""
    teacher = row.teacher
    facts = [
        teacher.model,
        teacher.revision,
        teacher.access_path,
        teacher.served_by,
        signal(row),
        sorted(row.terms),
        row.prompt_licence,
    ]
    text = json.dumps(facts, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def rows_to_arrow(rows: Sequence[Row], *, mantissa_bits: int = MANTISSA_BITS) -> pa.Table:
    """Rows as a table of the schema SOFT_LABELS, checked; `top_logprobs` rounded to `mantissa_bits` (23 = lossless).

    Raises InvalidRow for the first row that breaks an invariant.
    """
    for row in rows:
        check_row(row)
    columns = _number_columns(rows, mantissa_bits) | _quality_columns(rows)
    columns["audit_group"] = [audit_group(row) for row in rows]
    columns["k"] = [row.labels.k if row.labels is not None else 0 for row in rows]
    columns["teacher"] = [_record(row.teacher) for row in rows]
    columns["sampling"] = [_record(row.sampling) for row in rows]
    columns["usage"] = [_record(row.usage) for row in rows]
    columns["messages"] = [None if row.messages is None else [_record(m) for m in row.messages] for row in rows]
    columns["tail_sums"] = [None if row.tail_sums is None else [_record(t) for t in row.tail_sums] for row in rows]
    arrays = []
    for column in SOFT_LABELS:
        values = columns[column.name] if column.name in columns else [getattr(row, column.name) for row in rows]
        arrays.append(values if isinstance(values, pa.Array) else _array(values, column))
    return pa.Table.from_arrays(arrays, schema=SOFT_LABELS.with_metadata(table_metadata(mantissa_bits)))


def _array(values: list[Any], column: pa.Field) -> pa.Array:
    try:
        return pa.array(values, column.type)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise InvalidRow(f"Rows were not written: a value does not fit the column {column.name} ({error}).") from error


def _number_columns(rows: Sequence[Row], mantissa_bits: int) -> dict[str, Any]:
    every = [row.labels for row in rows]
    columns: dict[str, Any] = {}
    for name in ("token_ids", "token_logprobs", "token_ranks", "top_ids", "log_tail"):
        columns[name] = list_column(
            [None if labels is None else getattr(labels, name) for labels in every], SOFT_LABELS.field(name).type
        )
    rounded = [None if labels is None else round_mantissa(labels.top_logprobs, mantissa_bits) for labels in every]
    columns["top_logprobs"] = list_column(rounded, SOFT_LABELS.field("top_logprobs").type)
    for name in ("prompt_token_ids", "target_positions", "top_weights"):
        columns[name] = list_column([getattr(row, name) for row in rows], SOFT_LABELS.field(name).type)
    return columns


def _quality_columns(rows: Sequence[Row]) -> dict[str, Any]:
    columns: dict[str, list[float | None]] = {"mean_entropy": [], "mean_tail_mass": [], "nll": []}
    for row in rows:
        labels = row.labels
        known = labels.token_logprobs[~np.isnan(labels.token_logprobs)] if labels is not None else np.empty(0)
        columns["nll"].append(float(-known.mean(dtype=np.float64)) if known.size else None)
        soft = labels if labels is not None and labels.k and len(labels) else None
        columns["mean_entropy"].append(
            None if soft is None else float(entropy(soft.top_logprobs, soft.log_tail).mean())
        )
        columns["mean_tail_mass"].append(
            None if soft is None else float(np.exp(soft.log_tail, dtype=np.float64).mean())
        )
    return columns


def _record(value: Any) -> dict[str, Any] | None:
    return None if value is None else {f.name: getattr(value, f.name) for f in fields(value)}


def rows_from_arrow(batch: pa.RecordBatch | pa.Table) -> list[Row]:
    """Rows of soft_labels again; computed columns (audit_group, quality) are left out, since writing computes them."""
    numbers = ("prompt_token_ids", "target_positions", "top_weights")
    computed = ("audit_group", "k", "mean_entropy", "mean_tail_mass", "nll")
    labelled = ("token_ids", "token_logprobs", "token_ranks", "top_ids", "top_logprobs", "log_tail")
    small = batch.select([n for n in batch.schema.names if n not in numbers + computed + labelled]).to_pylist()
    labels = labels_from_arrow(batch)
    arrays = {name: batch.column(name) for name in numbers}
    rows = []
    for i, values in enumerate(small):
        for name, column in arrays.items():
            scalar = column[i]
            values[name] = scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None
        if values["top_weights"] is not None and labels[i] is not None:
            values["top_weights"] = values["top_weights"].reshape(labels[i].top_ids.shape)  # type: ignore[union-attr]
        rows.append(Row(labels=labels[i], **_nested(values)))
    return rows


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    values["teacher"] = TeacherRecord(**values["teacher"])
    for name, record in {"sampling": Sampling, "usage": Usage}.items():
        values[name] = None if values[name] is None else record(**values[name])
    if values["messages"] is not None:
        values["messages"] = tuple(Message(**message) for message in values["messages"])
    if values["tail_sums"] is not None:
        values["tail_sums"] = tuple(
            TailSum(temperature=t["temperature"], log_sums=np.asarray(t["log_sums"], dtype=np.float32))
            for t in values["tail_sums"]
        )
    for name in ("terms", "flags", "token_bytes", "label_set"):
        values[name] = None if values[name] is None else tuple(values[name])
    return values
