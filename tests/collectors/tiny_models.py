"""Transformers models of a few thousand weights, saved as a person saves theirs, with a tokenizer of their own."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

TEXTS = ["the still was charged at noon", "the first cut ran clear", "a husky is a dog", "yes no maybe"]


def save_tokenizer(folder: Path) -> int:
    """A tokenizer of the words of TEXTS; → its vocabulary."""
    trained = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "[MASK]"]
    trained.train_from_iterator(TEXTS, tokenizers.trainers.WordLevelTrainer(special_tokens=special))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, unk_token="[UNK]", pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]",
        mask_token="[MASK]",
    )  # fmt: skip
    fast.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    fast.save_pretrained(folder)
    return len(fast)


def save_causal(folder: Path) -> Path:
    """A Llama."""
    config = transformers.LlamaConfig(
        vocab_size=save_tokenizer(folder), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, bos_token_id=2, eos_token_id=3, pad_token_id=0, initializer_range=0.6,
    )  # fmt: skip
    return _save(transformers.LlamaForCausalLM, config, folder)


def save_absolute(folder: Path) -> Path:
    """A model that counts positions from the left end, where padding would shift them."""
    config = transformers.GPT2Config(
        vocab_size=save_tokenizer(folder), n_embd=32, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3,
        initializer_range=0.6,
    )  # fmt: skip
    return _save(transformers.GPT2LMHeadModel, config, folder)


def save_masked(folder: Path) -> Path:
    """A BERT."""
    config = transformers.BertConfig(
        vocab_size=save_tokenizer(folder), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, initializer_range=0.6,
    )  # fmt: skip
    return _save(transformers.BertForMaskedLM, config, folder)


def _save(kind: Any, config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return folder
