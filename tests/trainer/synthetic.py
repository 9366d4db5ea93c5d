"""Small real parts to test with: a piece of Gemma's vocabulary, and tables of a teacher whose distributions are known.

The teacher is a Markov chain over words: the next word depends on the last one alone, so a small student can learn it
and every distribution is known exactly.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from storage.codec import Labels, log_tail
from storage.rows import Row, Sampling, TeacherRecord
from storage.table import Table
from trainer.reading import column_batches
from trainer.student_vocabulary import Batches
from trainer.tokenizer import TokenizerDefinition, read_tokenizer
from trainer.vocabulary import COUNT_COLUMNS

DATA = Path(__file__).parent / "data"
GEMMA = TeacherRecord(model="google/gemma-3-270m", revision="gguf-q4_k_m", provider="llamacpp", access_path="self_host")
EOS = 1
FIRST_WORD = 2


def gemma_part() -> tuple[dict[str, Any], list[int]]:
    """Every token of Gemma 3 that the recorded text could be built of, and the ids that they have in Gemma."""
    part = json.loads((DATA / "gemma_vocabulary_part.json").read_text(encoding="utf-8"))
    return part["record"], part["ids"]


def gemma_definition() -> TokenizerDefinition:
    return read_tokenizer(json.dumps(gemma_part()[0]).encode())


def batches_of(table: Table) -> Batches:
    """The rows of a table, as a student is made from them."""
    return lambda columns: column_batches(table, columns or COUNT_COLUMNS)


def make_row(number: int, labels: Labels, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "key": hashlib.sha256(f"row {number}".encode()).hexdigest(),
        "mode": "generate",
        "run_id": "synthetic-000000000000",
        "prompt_id": f"p{number:05}",
        "collected_at": datetime(2026, 11, 1, tzinfo=UTC),
        "teacher": GEMMA,
        "terms": ("gemma-tou@2025-03-24",),
        "policy_bundle": "2026-11-24.000000000000",
        "collect_verdict": "conditional",
        "decision": "d" * 64,
        "labels": labels,
        "logprob_space": "raw",
        "prompt_licence": "CC0-1.0",
        "sampling": Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=number),
    }
    return Row(**(values | changes))


class MarkovTeacher:
    """p(next | last) = softmax of a fixed random matrix over `words` words; token 0 is [UNK], 1 is </s>."""

    def __init__(self, words: int = 48, sharpness: float = 2.0, seed: int = 0) -> None:
        self.size = words + FIRST_WORD
        logits = np.random.default_rng(seed).normal(size=(self.size, self.size)) * sharpness
        logits[:, :FIRST_WORD] = -np.inf
        self.log_p: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def tokenizer(self) -> bytes:
        names = ["[UNK]", "</s>", *(f"w{i}" for i in range(self.size - FIRST_WORD))]
        tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens(["[UNK]", "</s>"])
        return tokenizer.to_str().encode()

    def rows(self, count: int, *, length: int = 24, k: int = 8, seed: int = 0, **changes: Any) -> list[Row]:
        """Sequences sampled from the chain, each after a prompt of two words, labelled with the top k."""
        random = np.random.default_rng(seed)
        rows = []
        for number in range(count):
            ids = list(random.integers(FIRST_WORD, self.size, size=2))
            for _ in range(length):
                ids.append(random.choice(self.size, p=np.exp(self.log_p[ids[-1]])))
            text = [f"w{i - FIRST_WORD}" for i in ids]
            fields = {"prompt": " ".join(text[:2]), "completion": " ".join(text[2:]), "finish_reason": "length"}
            fields |= {"prompt_token_ids": np.asarray(ids[:2], dtype=np.int32)}
            rows.append(make_row(number + 10_000 * seed, self.labels(ids[1:], k), **(fields | changes)))
        return rows

    def labels(self, ids: list[int], k: int) -> Labels:
        """Labels of ids[1:], each given the one before it."""
        log_p = self.log_p[ids[:-1]]
        order = np.argsort(-log_p, axis=1, kind="stable")
        top = np.take_along_axis(log_p, order[:, :k], axis=1)
        targets = np.asarray(ids[1:])
        return Labels(
            token_ids=targets.astype(np.int32),
            token_logprobs=log_p[np.arange(len(targets)), targets].astype(np.float32),
            token_ranks=(np.argmax(order == targets[:, None], axis=1) + 1).astype(np.int32),
            top_ids=order[:, :k].astype(np.int32),
            top_logprobs=top.astype(np.float32),
            log_tail=log_tail(top),
        )

    def table(self, folder: Path, count: int = 60, **options: Any) -> Table:
        """A table of `count` rows, its tokenizer saved with it."""
        table = Table.create(folder)
        digest = table.save_tokenizer(self.tokenizer())
        table.append(self.rows(count, tokenizer_sha256=digest, **options), writer="synthetic", sequence=0)
        return table


ALLOWED = """
action = "distribute_student"
[student]
name = "markov-small"
licence = "LicenseRef-scancode-gemma-tou-2025-03-24"
init_from = "scratch"
kind = "general_llm"
distributed = true
intent_similar = true
[organisation]
domicile = "US"
deploys_in = ["US"]
commercial = true
annual_revenue_usd = 50_000_000
monthly_active_users = 1_000_000
[data]
signal = "top_k_logprobs"
"""
REFUSED = ALLOWED.replace("LicenseRef-scancode-gemma-tou-2025-03-24", "Apache-2.0")


def training_folder(folder: Path, *, use: str = ALLOWED, settings: str = "", steps: int = 40, seed: int = 0) -> Path:
    """train.toml and use.toml for a tiny student of the table in `folder`/table; `settings` are added; → train.toml."""
    (folder / "use.toml").write_text(use, encoding="utf-8")
    text = f"""
table = "table"
use = "use.toml"
out = "student"
[student]
hidden_size = 32
layers = 1
heads = 2
key_value_heads = 1
intermediate_size = 64
[data]
sequence_length = 64
holdout = 0.25
seed = {seed}
[training]
max_steps = {steps}
per_device_train_batch_size = 8
learning_rate = 5e-3
logging_steps = 10
save_steps = 20
use_cpu = true
{settings}
"""
    (folder / "train.toml").write_text(text, encoding="utf-8")
    return folder / "train.toml"
