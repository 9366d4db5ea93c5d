"""The rebuilt tokenizers against llama.cpp's own answers and against the libraries that trained them."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from tests.trainer.synthetic import gemma_part
from trainer.tokenizer import TokenizerError, read_tokenizer

DATA = Path(__file__).parent / "data"
CORPUS = [
    "The still was charged at noon; the first cut ran clear.",
    "A hammer is used to drive 128 nails, isn't it?\n\n    indented = 3.5e-2",
    "Rivers don't run uphill — naïve café, 今日は良い日です 🦊.",
] * 20


def recorded_exchange() -> tuple[str, list[int]]:
    exchange = json.loads((DATA / "llamacpp_tokenize.json").read_text(encoding="utf-8"))
    return exchange["request"]["json"]["content"], [token["id"] for token in exchange["body"]["tokens"]]


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=["<|endoftext|>"], initial_alphabet=letters, show_progress=False
        ),
    )
    return tokenizer


def test_sentencepiece_gives_the_tokens_that_llamacpp_gave() -> None:
    record, ids = gemma_part()
    text, expected = recorded_exchange()
    definition = read_tokenizer(json.dumps(record).encode())
    tokens = definition.build().encode(text).ids
    assert [ids[token] for token in tokens] == expected
    assert definition.build().decode(tokens) == text


def test_special_tokens_have_their_roles() -> None:
    definition = read_tokenizer(json.dumps(gemma_part()[0]).encode())
    assert (definition.bos, definition.eos, definition.unk, definition.pad) == ("<bos>", "<eos>", "<unk>", "<pad>")
    assert definition.build().encode("x", add_special_tokens=False).ids == definition.build().encode("x").ids[1:]


def test_what_has_no_token_becomes_bytes_and_comes_back() -> None:
    tokenizer = read_tokenizer(json.dumps(gemma_part()[0]).encode()).build()
    text = "Ω≠\u0000 ÿ"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("prefix", [True, False])
def test_a_space_prefix_is_added_and_taken_away(prefix: bool) -> None:
    record, _ = gemma_part()
    tokenizer = read_tokenizer(json.dumps({**record, "add_space_prefix": prefix}).encode()).build()
    assert tokenizer.encode("still", add_special_tokens=False).tokens == (["▁still"] if prefix else ["still"])
    assert tokenizer.decode(tokenizer.encode("still was").ids) == "still was"


def test_byte_level_record_equals_the_tokenizer_that_was_trained() -> None:
    trained = byte_level_bpe()
    content = json.loads(trained.to_str())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    record = {"format": "gguf-tokenizer-1", "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "scores": None}
    record |= {"token_type": [3] + [1] * (len(tokens) - 1), "merges": [" ".join(m) for m in content["model"]["merges"]]}
    record |= {"bos_token_id": None, "eos_token_id": 0, "unknown_token_id": None, "padding_token_id": None}
    rebuilt = read_tokenizer(json.dumps(record).encode()).build()
    for text in [*CORPUS[:3], "unseen Ωmega 🦀 \t\r\n  x<|endoftext|>y"]:
        assert rebuilt.encode(text).ids == trained.encode(text).ids
        assert rebuilt.decode(rebuilt.encode(text).ids) == trained.decode(trained.encode(text).ids)


@pytest.mark.parametrize(
    ("pre", "expected"),
    [("llama-bpe", [["123", "45"], ["'S"]]), ("qwen2", [["1", "2", "3", "4", "5"], ["'S"]])],
)
def test_words_are_cut_as_the_named_family_does(pre: str, expected: list[list[str]]) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    record = {"format": "gguf-tokenizer-1", "model": "gpt2", "pre": pre, "tokens": letters, "merges": []}
    record |= {"token_type": [1] * len(letters)}
    tokenizer = read_tokenizer(json.dumps(record).encode()).build()
    assert tokenizer.pre_tokenizer is not None
    for text, words in zip(("12345", "'S"), expected, strict=True):
        assert [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == words


def test_tokenizer_json_is_read_with_its_roles() -> None:
    tokenizer = byte_level_bpe()
    definition = read_tokenizer(tokenizer.to_str().encode())
    assert (definition.bos, definition.eos) == (None, "<|endoftext|>")
    assert definition.build().encode(CORPUS[0]).ids == tokenizer.encode(CORPUS[0]).ids


def test_saved_tokenizer_loads_by_plain_transformers(tmp_path: Path) -> None:
    record, ids = gemma_part()
    text, expected = recorded_exchange()
    read_tokenizer(json.dumps(record).encode()).save(tmp_path, model_max_length=64)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert [ids[token] for token in loaded(text)["input_ids"]] == expected
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<bos>", "<eos>", "<pad>")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00", "not JSON"),
        (b"[1]", "neither"),
        (b'{"format": "gguf-tokenizer-1", "model": "t5", "tokens": []}', "'t5'"),
        (b'{"format": "gguf-tokenizer-1", "model": "llama", "tokens": ["a", "a"]}', "twice"),
        (b'{"format": "gguf-tokenizer-1", "model": "gpt2", "pre": "tekken", "tokens": [], "token_type": []}', "tekken"),
        (b'{"model": {"type": "BPE", "vocab": {}}, "added_tokens": [], "normalizer": 7}', "cannot be built"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(data: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer(data).build()
