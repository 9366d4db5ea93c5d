import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from collectors.gguf import GgufError, read_metadata
from collectors.providers.embedded import default_gguf
from collectors.tokenizer import Tokenizer, TokenizerError, load_tokenizer


def gguf_value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_string, value))
    layout = "i" if isinstance(value[0], int) else "f"
    return struct.pack(f"<IIQ{len(value)}{layout}", 9, 5 if layout == "i" else 6, len(value), *value)


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf(path: Path, **pairs: Any) -> Path:
    body = b"".join(gguf_string(name.replace("__", ".")) + gguf_value(value) for name, value in pairs.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + body)
    return path


@pytest.fixture(scope="module")
def gemma() -> Tokenizer:
    return load_tokenizer(default_gguf())


def test_the_real_model_has_a_canonical_record(gemma: Tokenizer) -> None:
    record = json.loads(gemma.data)
    assert record["format"] == "gguf-tokenizer-1" and len(record["tokens"]) == gemma.vocabulary == 262144
    assert (record["model"], record["add_bos_token"], record["chat_template"], record["merges"]) == (
        "llama",
        True,
        None,
        None,
    )
    assert (gemma.bos_token_id, gemma.eos_token_id, gemma.adds_bos, gemma.template_sha256) == (2, 1, True, None)
    assert gemma.sha256 == hashlib.sha256(gemma.data).hexdigest()
    again = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert again == gemma.data


def test_the_reader_agrees_with_the_gguf_library(tmp_path: Path) -> None:
    library = pytest.importorskip("gguf")
    model = gguf(
        tmp_path / "m.gguf",
        tokenizer__ggml__tokens=["a", "é🐺"],
        tokenizer__ggml__scores=[0.5, -1.25],
        tokenizer__ggml__token_type=[1, 6],
        general__count=3,
        general__flag=True,
        general__name="x",
    )
    reader = library.GGUFReader(str(model))
    assert read_metadata(model) == {
        name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }


def test_bytes_and_ids_of_sentencepiece(gemma: Tokenizer) -> None:
    assert gemma.token_bytes[506] == b" the" and gemma.id_of(b" the") == 506
    assert gemma.token_bytes[248706] == "🐺".encode() and gemma.token_bytes[1] == b"<eos>"
    assert gemma.token_bytes[238 + 0x2E] == b"." and gemma.id_of(b".") is None  # a byte token and a character share it
    assert gemma.id_of(b"no such token at all") is None


def test_bytes_of_a_byte_level_gguf(tmp_path: Path) -> None:
    path = gguf(
        tmp_path / "b.gguf",
        tokenizer__ggml__model="gpt2",
        tokenizer__ggml__tokens=["Ġa", "Ċ", "ðŁ", "<Ġend>", "日"],
        tokenizer__ggml__token_type=[1, 1, 1, 3, 4],
        tokenizer__ggml__merges=["Ġ a"],
        tokenizer__chat_template="{{x}}",
    )
    found = load_tokenizer(path)
    assert found.token_bytes == (b" a", b"\n", b"\xf0\x9f", "<Ġend>".encode(), "日".encode())
    assert json.loads(found.data)["merges"] == ["Ġ a"] and found.adds_bos is None
    assert found.template_sha256 == hashlib.sha256(b"{{x}}").hexdigest()


def hf(path: Path, config: dict[str, Any] | None = None, **changes: Any) -> Tokenizer:
    record = {
        "model": {"type": "BPE", "vocab": {"a": 0, "▁b": 1, "<0x0A>": 2}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]},
        "added_tokens": [{"id": 7, "content": "<s>"}],
    }
    (path / "tokenizer.json").write_text(json.dumps(record | changes))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(path / "tokenizer.json")


def test_a_tokenizer_json_is_its_own_identity(tmp_path: Path) -> None:
    found = hf(tmp_path)
    assert found.data == (tmp_path / "tokenizer.json").read_bytes()
    assert found.vocabulary == 8 and found.token_bytes == (b"a", b" b", b"\n", None, None, None, None, b"<s>")
    assert found.adds_bos is None and found.bos_token_id is None


def test_the_bos_rule_is_read_from_the_post_processor(tmp_path: Path) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [7]}},
    }
    config = {"bos_token": {"content": "<s>"}, "add_bos_token": False, "chat_template": "{{y}}"}
    found = hf(tmp_path, config, post_processor={"type": "Sequence", "processors": [template]})
    assert found.adds_bos is True and found.bos_token_id == 7
    assert found.template_sha256 == hashlib.sha256(b"{{y}}").hexdigest()
    assert hf(tmp_path, config, post_processor=template | {"single": [{"Sequence": {"id": "A"}}]}).adds_bos is False
    assert hf(tmp_path, config, post_processor=None).adds_bos is False
    (tmp_path / "chat_template.jinja").write_text("{{z}}")
    assert hf(tmp_path, config).template_sha256 == hashlib.sha256(b"{{z}}").hexdigest()


def test_the_bos_rule_and_bytes_agree_with_the_tokenizers_library(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(["the still, の 🐺 the still\n\t", "é the"] * 20, trainer)
    trained.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path / "tokenizer.json")
    text = "the still 🐺\n\té の"
    ids = trained.encode(text).ids
    assert b"".join(found.token_bytes[i] or b"" for i in ids) == text.encode()
    assert [found.id_of(found.token_bytes[i] or b"") for i in ids] == ids
    assert found.vocabulary == trained.get_vocab_size()


def test_unigram_vocabularies_are_lists(tmp_path: Path) -> None:
    found = hf(
        tmp_path,
        model={"type": "Unigram", "vocab": [["▁x", -1.0], ["y", -2.0]]},
        decoder={"type": "Metaspace"},
        added_tokens=None,
    )
    assert found.token_bytes == (b" x", b"y")


def test_what_cannot_be_told_by_bytes_says_so(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="must give token ids"):
        _ = hf(tmp_path, decoder={"type": "WordPiece"}).token_bytes
    path = gguf(tmp_path / "w.gguf", tokenizer__ggml__model="bert", tokenizer__ggml__tokens=["x"])
    with pytest.raises(TokenizerError, match="ask for token ids"):
        _ = load_tokenizer(path).token_bytes


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGUF\x03\0\0\0" + b"\xff" * 16,
        b"not a model at all",
        b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + b"\xff" * 8,
    ],
)
def test_a_damaged_gguf_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError):
        load_tokenizer(path)


def test_a_model_cut_short_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    whole = gguf(
        tmp_path / "w.gguf", tokenizer__ggml__tokens=["a", "bc"], tokenizer__ggml__scores=[0.5, 1.0]
    ).read_bytes()
    for length in range(1, len(whole)):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(GgufError):
            load_tokenizer(tmp_path / "cut.gguf")


def test_files_that_are_missing_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be read: No such file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(GgufError, match="cannot be read"):
        load_tokenizer(tmp_path / "m.gguf")
    for content in ("[]", "{}", '{"model": {"vocab": 5}}', "no json"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(TokenizerError, match=r"is no tokenizer\.json"):
            load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="carries no vocabulary"):
        load_tokenizer(gguf(tmp_path / "e.gguf", general__name="x"))
    with pytest.raises(TokenizerError, match="not valid JSON"):
        (tmp_path / "tokenizer_config.json").write_text("{")
        hf(tmp_path)
