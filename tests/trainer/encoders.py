"""A tiny masked teacher tables of its labels, and texts with a class: for masked students and classifiers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForMaskedLM

from storage.codec import Labels, log_tail
from storage.rows import Row
from storage.table import Table
from tests.trainer.synthetic import make_row
from trainer.tokenizer import read_tokenizer

WORDS = [f"w{i}" for i in range(24)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASSES = ("dry", "wet", "hot")


def tokenizer_bytes() -> bytes:
    names = [*SPECIAL, *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str().encode()


def masked_teacher(folder: Path, *, hidden_size: int = 32) -> Any:
    """A masked model whose answers depend on its text, saved with its tokenizer."""
    config = AutoConfig.for_model(
        "bert", vocab_size=len(SPECIAL) + len(WORDS), hidden_size=hidden_size, num_hidden_layers=4,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=64, pad_token_id=0, eos_token_id=3,
        initializer_range=0.3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(3)
    model = AutoModelForMaskedLM.from_config(config).eval()
    model.bert.embeddings.position_embeddings.weight.data *= 4  # so that a mask's answer depends on its place
    model.save_pretrained(folder)
    read_tokenizer(tokenizer_bytes()).save(folder, model_max_length=64)
    return model


def labels_of(log_p: np.ndarray[Any, Any], targets: list[int], k: int) -> Labels:
    order = np.argsort(-log_p, axis=1, kind="stable")
    top = np.take_along_axis(log_p, order[:, :k], axis=1)
    return Labels(
        token_ids=np.asarray(targets, dtype=np.int32),
        token_logprobs=log_p[np.arange(len(targets)), targets].astype(np.float32),
        token_ranks=(np.argmax(order == np.asarray(targets)[:, None], axis=1) + 1).astype(np.int32),
        top_ids=order[:, :k].astype(np.int32),
        top_logprobs=top.astype(np.float32),
        log_tail=log_tail(top) if k < log_p.shape[1] else np.full(len(targets), -np.inf, dtype=np.float32),
    )


@torch.no_grad()
def masked_table(folder: Path, teacher: Any, count: int = 80, k: int = 8) -> Table:
    """Texts of words with three masks each; the realised words are drawn from the teacher."""
    table = Table.create(folder)
    digest = table.save_tokenizer(tokenizer_bytes())
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for number in range(count):
        ids = [2, *random.integers(len(SPECIAL), len(SPECIAL) + len(WORDS), size=10).tolist(), 3]
        places = sorted(random.choice(range(1, 11), size=3, replace=False).tolist())
        for place in places:
            ids[place] = 4
        log_p = teacher(torch.tensor([ids])).logits[0, places].double().log_softmax(-1).numpy()
        drawn = [int(random.choice(len(p), p=np.exp(p) / np.exp(p).sum())) for p in log_p]
        rows.append(
            make_row(
                number,
                labels_of(log_p, drawn, k),
                mode="mask",
                tokenizer_sha256=digest,
                prompt_token_ids=np.asarray(ids, dtype=np.int32),
                target_positions=np.asarray(places, dtype=np.int32),
                prompt=" ".join(WORDS[i - 5] if i > 4 else "w0" for i in ids[1:-1]),
            )
        )
    table.append(rows, writer="masked", sequence=0)
    return table


def class_rows(count: int, seed: int = 0, **changes: Any) -> list[Row]:
    """Texts whose class probabilities follow from their words; the label is the likeliest, seldom the only likely."""
    random = np.random.default_rng(seed)
    weights = np.random.default_rng(7).normal(size=(len(WORDS), len(CLASSES))) * 0.4
    rows = []
    for number in range(count):
        words = random.integers(len(WORDS), size=random.integers(4, 9))
        scores = weights[words].sum(axis=0)
        log_p = (scores - np.log(np.exp(scores).sum()))[None]
        labels = labels_of(log_p, [int(log_p.argmax())], len(CLASSES))
        text = " ".join(WORDS[i] for i in words)
        fields = {"prompt": text, "label_set": CLASSES, "mode": "classify", "completion": CLASSES[int(log_p.argmax())]}
        fields |= {"prompt_token_ids": np.empty(0, dtype=np.int32)}
        rows.append(make_row(number + 10_000 * seed, labels, **(fields | changes)))
    return rows
