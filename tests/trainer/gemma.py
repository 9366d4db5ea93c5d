"""Recorded labels of Gemma 3 270M (176 texts of 40 tokens, top 12) as a table, another tokenizer for them."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from storage.codec import Labels, log_tail
from storage.rows import Row
from storage.table import Table
from tests.trainer.synthetic import DATA, make_row
from trainer.tokenizer import TokenizerDefinition, read_tokenizer

PROMPT = 8
END = "<|end|>"


def gemma_tokenizer() -> bytes:
    """The part of Gemma's vocabulary that the recorded texts and candidates need."""
    with np.load(DATA / "gemma_labels.npz") as recorded:
        return recorded["vocabulary"].tobytes()


def gemma_rows(digest: str, *, k: int = 12) -> list[Row]:
    """The recorded rows; with k = 0 the log-probabilities of the realised tokens alone."""
    tokenizer = read_tokenizer(gemma_tokenizer()).build()
    with np.load(DATA / "gemma_labels.npz") as recorded:
        columns = {name: recorded[name] for name in ("tokens", "top_ids", "top_logprobs", "token_logprobs")}
    rows = []
    for number, (ids, top_ids, top, realised) in enumerate(zip(*columns.values(), strict=True)):
        after = slice(PROMPT - 1, None)
        top = top[after, :k].astype(np.float32)
        labels = Labels(
            token_ids=ids[PROMPT:].astype(np.int32),
            token_logprobs=realised[after].astype(np.float32),
            token_ranks=np.zeros(len(ids) - PROMPT, dtype=np.int32),
            top_ids=top_ids[after, :k].astype(np.int32),
            top_logprobs=top,
            log_tail=log_tail(top),
        )
        fields = {
            "prompt": tokenizer.decode(ids[:PROMPT].tolist()),
            "completion": tokenizer.decode(ids[PROMPT:].tolist()),
        }
        fields |= {"prompt_token_ids": ids[:PROMPT].astype(np.int32)}
        fields |= {"tokenizer_sha256": digest, "mode": "score"}
        rows.append(make_row(number, labels, **fields))
    return rows


def gemma_table(folder: Path, *, k: int = 12) -> Table:
    table = Table.create(folder)
    table.append(gemma_rows(table.save_tokenizer(gemma_tokenizer()), k=k), writer="gemma", sequence=0)
    return table


def byte_level(texts: list[str], size: int = 600) -> TokenizerDefinition:
    """A byte-level BPE tokenizer trained on texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return read_tokenizer(tokenizer.to_str().encode()).with_eos(END)


def prefixed(definition: bytes) -> TokenizerDefinition:
    """A SentencePiece vocabulary that puts a space before a text, as Llama 2 does."""
    return read_tokenizer(json.dumps(json.loads(definition) | {"add_space_prefix": True}).encode())
