"""Rows to test with: synthetic ones, and real ones from the sample of Gemma 3 270M outputs."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from storage.codec import Labels, log_tail
from storage.rows import Message, Row, Sampling, TeacherRecord, Usage

GEMMA = TeacherRecord(model="google/gemma-3-270m", revision="gguf-q4_k_m", provider="llamacpp", access_path="self_host")
QWEN = TeacherRecord(model="Qwen/Qwen3-8B", provider="vllm", access_path="self_host", engine="vllm", engine_version="1")
START = datetime(2026, 11, 1, tzinfo=UTC)


def make_labels(targets: int, k: int, seed: int = 0, vocabulary: int = 1000) -> Labels:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(targets, vocabulary)) * 3
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.argsort(-logs, axis=1)
    top = np.take_along_axis(logs, order[:, :k], axis=1)
    rank = np.minimum(random.geometric(0.6, size=targets), vocabulary)
    ids = order[np.arange(targets), rank - 1]
    return Labels(
        token_ids=ids.astype(np.int32),
        token_logprobs=logs[np.arange(targets), ids].astype(np.float32),
        token_ranks=rank.astype(np.int32),
        top_ids=order[:, :k].astype(np.int32),
        top_logprobs=top.astype(np.float32),
        log_tail=log_tail(top),
    )


def make_row(number: int, *, targets: int = 8, k: int = 5, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "key": hashlib.sha256(f"row {number}".encode()).hexdigest(),
        "mode": "generate",
        "run_id": "run-000000000000",
        "prompt_id": f"p{number:06}",
        "sample_index": 0,
        "collected_at": START + timedelta(minutes=number),
        "messages": (Message(role="user", content=f"Question {number}?"),),
        "completion": f"Answer {number}.",
        "finish_reason": "stop",
        "prompt_token_ids": np.arange(4, dtype=np.int32) + number % 50,
        "labels": make_labels(targets, k, seed=number),
        "logprob_space": "raw",
        "teacher": GEMMA,
        "tokenizer_sha256": "a" * 64,
        "sampling": Sampling(temperature=1.0, top_p=1.0, seed=number, max_tokens=128),
        "usage": Usage(prompt_tokens=4, completion_tokens=targets, cost_usd=0.001),
        "prompt_source": "prompts.jsonl",
        "prompt_licence": "CC0-1.0",
        "terms": ("gemma-tou@2025-03-24",),
        "policy_bundle": "2026-11-24.0123456789ab",
        "collect_verdict": "conditional",
        "decision": "d" * 64,
    }
    return Row(**(values | changes))


def make_rows(first: int, count: int, **changes: Any) -> list[Row]:
    return [make_row(number, **changes) for number in range(first, first + count)]


def sample() -> dict[str, np.ndarray]:
    """A part of Gemma 3 270M's outputs: `ids` and `logprobs` (N, 64), `input_ids` (N,), `lse` (N,)."""
    with np.load(Path(__file__).parent / "data" / "gemma_top64.npz", allow_pickle=False) as data:
        return {name: data[name] for name in data.files}
