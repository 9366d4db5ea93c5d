"""Trimming: the same tokens for the table's texts, a stated share of mass in the tail, plain tokenizer files."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from storage.codec import Labels, log_tail
from storage.rows import rows_to_arrow
from tests.trainer.synthetic import gemma_definition, make_row
from trainer.tokenizer import TokenizerDefinition, TokenizerError, read_tokenizer
from trainer.vocabulary import count_tokens, match_vocabulary, trim_vocabulary

TEXTS = [
    "The still was charged at noon",
    " heads ran clear. 今日は良い日です 🦊",
    "def distil(x):\n    return x ** 0.5\n",
]
CORPUS = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 10


def table_of(definition: TokenizerDefinition, texts: list[str], top: list[list[float]] | None = None) -> pa.Table:
    """One row per text: the text is the completion, its tokens are the targets; candidates are ids 0, 1, 2, …"""
    tokenizer, rows = definition.build(), []
    for number, text in enumerate(texts):
        ids = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        probabilities = np.asarray(top[number] if top else [0.5, 0.25], dtype=np.float64)
        logs = np.tile(np.log(probabilities), (len(ids), 1))
        labels = Labels(
            token_ids=ids,
            token_logprobs=np.full(len(ids), np.nan, dtype=np.float32),
            token_ranks=np.zeros(len(ids), dtype=np.int32),
            top_ids=np.tile(np.arange(logs.shape[1], dtype=np.int32), (len(ids), 1)),
            top_logprobs=logs.astype(np.float32),
            log_tail=log_tail(logs),
        )
        rows.append(make_row(number, labels, completion=text))
    return rows_to_arrow(rows)


def trim(definition: TokenizerDefinition, texts: list[str], candidate_loss: float = 0.0) -> TokenizerDefinition:
    use = count_tokens(table_of(definition, texts).to_batches(), definition)
    return trim_vocabulary(definition, use, candidate_loss=candidate_loss).definition


def trained(kind: str) -> TokenizerDefinition:
    unk = {"unk_token": "[UNK]"}
    model, trainer = {
        "bpe": (models.BPE(**unk), trainers.BpeTrainer),
        "wordpiece": (models.WordPiece(**unk), trainers.WordPieceTrainer),
        "unigram": (models.Unigram(), trainers.UnigramTrainer),
    }[kind]
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"special_tokens": ["[UNK]", "[SEP]"], "vocab_size": 120, "show_progress": False}
    tokenizer.train_from_iterator(CORPUS, trainer(**special, **(unk if kind == "unigram" else {})))
    return read_tokenizer(tokenizer.to_str().encode())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([word for text in TEXTS for word in text.split(" ")]), min_size=1, max_size=8))
def test_trimmed_tokenizer_gives_the_same_tokens_on_the_tables_texts(words: list[str]) -> None:
    definition, text = gemma_definition(), " ".join(words)
    use = count_tokens(table_of(definition, [text]).to_batches(), definition)
    trimmed = trim_vocabulary(definition, use, candidate_loss=0.0)
    whole, small = definition.build(), trimmed.definition.build()
    assert small.encode(text).ids == trimmed.id_map[whole.encode(text).ids].tolist()
    assert small.decode(small.encode(text).ids) == text
    assert trimmed.size < definition.size()


def test_a_piece_that_is_left_out_changes_the_tokens() -> None:
    """What the closure is for: without the pieces on the way a token cannot be built."""
    definition = gemma_definition()
    trimmed = trim(definition, [" charged"])
    content = json.loads(json.dumps(trimmed.content))
    token = next(t for t in content["model"]["vocab"] if t == "▁charged")
    assert len(trimmed.build().encode(" charged", add_special_tokens=False)) == 1
    content["model"]["merges"] = [m for m in content["model"]["merges"] if "".join(m) == token]
    assert len(read_tokenizer(json.dumps(content).encode()).build().encode(" charged", add_special_tokens=False)) > 1


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_each_kind_of_model_keeps_its_tokens(kind: str) -> None:
    definition = trained(kind)
    texts = ["the lazy fox", "jugs"]
    trimmed = trim(definition, texts)
    for text in texts:
        assert trimmed.build().encode(text).tokens == definition.build().encode(text).tokens
    assert trimmed.size() < definition.size()
    assert [trimmed.vocabulary()[token] for token in ("[UNK]", "[SEP]")] == [0, 1]


def test_mass_that_moves_to_the_tail_is_bounded_and_told() -> None:
    definition = gemma_definition()
    table = table_of(definition, ["The"], top=[[0.3] + [0.01] * 40])
    use = count_tokens(table.to_batches(), definition)
    losses = {}
    for allowed in (0.0, 0.05, 0.5):
        trimmed = trim_vocabulary(definition, use, candidate_loss=allowed)
        losses[allowed] = (trimmed.lost_mass, trimmed.size)
        assert trimmed.lost_mass <= allowed + 1e-6
        assert trimmed.lost_mass == pytest.approx(use.mass[trimmed.id_map < 0].sum() / use.positions)
    assert losses[0.0][0] == 0.0
    assert losses[0.05][1] < losses[0.0][1] and losses[0.5][1] < losses[0.05][1]


def test_an_id_outside_the_tokenizer_is_refused() -> None:
    table = table_of(gemma_definition(), ["The still"])
    with pytest.raises(TokenizerError, match="another tokenizer"):
        count_tokens(table.to_batches(), trained("bpe"))


def test_trimmed_tokenizer_loads_by_plain_transformers(tmp_path: Path) -> None:
    trimmed = trim(gemma_definition(), TEXTS)
    trimmed.save(tmp_path, model_max_length=64)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded(TEXTS[1])["input_ids"]
    assert loaded.decode(ids, skip_special_tokens=True) == TEXTS[1]
    assert ids[0] == loaded.bos_token_id == trimmed.vocabulary()["<bos>"]


def test_a_students_own_tokenizer_is_mapped_by_strings() -> None:
    definition = gemma_definition()
    student = trim(definition, TEXTS)
    table = table_of(definition, TEXTS, top=[[0.5, 0.25]] * 3)
    match = match_vocabulary(definition, student, table.to_batches())
    whole, small = definition.build(), student.build()
    assert small.encode(TEXTS[0]).ids == match.id_map[whole.encode(TEXTS[0]).ids].tolist()


def test_a_student_that_cuts_text_otherwise_is_refused() -> None:
    definition = gemma_definition()
    student = trim(definition, ["The still was"])
    table = table_of(definition, TEXTS)
    with pytest.raises(TokenizerError, match=r"other tokens|lacks"):
        match_vocabulary(definition, student, table.to_batches())
