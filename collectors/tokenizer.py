"""Which tokenizer a teacher's ids belong to: its stored form, the hash of that form, and the bytes behind each id.

A tokenizer.json is stored as it is. A GGUF model's tokenizer is stored as canonical JSON of its metadata, so that the
same vocabulary has the same hash whatever quantisation it came in. No tokenizer library is needed for an id's bytes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from collectors.errors import CollectError
from collectors.gguf import read_metadata

GGUF_FORMAT = "gguf-tokenizer-1"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_GGUF_LITERAL = (3, 4)  # control and user-defined tokens stand for their own text


class TokenizerError(CollectError):
    """The teacher's tokenizer cannot be read."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True)
class Tokenizer:
    """A teacher's tokenizer. `data` is what the table keeps and `sha256` its hash: the tokenizer's identity.

    vocabulary: one more than the largest id. adds_bos: whether its own rule puts BOS before a text; None = not said.
    template_sha256: of the chat template that came with it, None when there is none.
    """

    data: bytes
    vocabulary: int
    bos_token_id: int | None
    eos_token_id: int | None
    adds_bos: bool | None
    template_sha256: str | None

    @cached_property
    def sha256(self) -> str:
        """Hex sha256 of `data`."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def token_bytes(self) -> tuple[bytes | None, ...]:
        """The bytes that each id stands for in a text; None where an id is unused or stands for nothing."""
        record = json.loads(self.data)
        pieces = _gguf_bytes(record) if record.get("format") == GGUF_FORMAT else _huggingface_bytes(record)
        return tuple(pieces.get(token_id) for token_id in range(self.vocabulary))

    @cached_property
    def _id_of_bytes(self) -> dict[bytes, int | None]:
        found: dict[bytes, int | None] = {}
        for token_id, piece in enumerate(self.token_bytes):
            if piece:
                found[piece] = None if piece in found else token_id
        return found

    def id_of(self, piece: bytes) -> int | None:
        """The only id that stands for these bytes; None when there is none, or more than one."""
        return self._id_of_bytes.get(piece)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a .gguf model or of a tokenizer.json, whose chat template may lie beside it.

    Raises TokenizerError or GgufError when the file is missing or is neither.
    """
    return _from_gguf(path) if path.suffix == ".gguf" else _from_huggingface(path)


def stored_tokenizer(data: bytes) -> Tokenizer:
    """A tokenizer as the table keeps it: enough to read answers, without what lay beside a tokenizer.json."""
    record = json.loads(data)
    gguf = record.get("format") == GGUF_FORMAT
    vocabulary = len(record["tokens"]) if gguf else 1 + max(dict(_learned(record) + _added(record)).values())
    return Tokenizer(data, vocabulary, record.get("bos_token_id"), record.get("eos_token_id"), None, None)


def template_digest(template: str) -> str:
    """Hex sha256 of a chat template's text."""
    return hashlib.sha256(template.encode()).hexdigest()


def _from_gguf(path: Path) -> Tokenizer:
    metadata = read_metadata(path)

    def get(name: str) -> Any:
        return metadata.get(f"tokenizer.{name}")

    tokens = get("ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise TokenizerError(f"{path} carries no vocabulary: give the teacher's tokenizer.json in [teacher] tokenizer.")
    names = ("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id")
    flags = ("add_bos_token", "add_eos_token", "add_space_prefix")
    lists = {"tokens": tokens, "scores": get("ggml.scores"), "token_type": get("ggml.token_type")}
    record = {"format": GGUF_FORMAT, "model": get("ggml.model"), "pre": get("ggml.pre"), **lists}
    record |= {name: get(f"ggml.{name}") for name in ("merges", *names, *flags)}
    record["chat_template"] = get("chat_template")
    data = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    template = record["chat_template"]
    return Tokenizer(
        data=data,
        vocabulary=len(tokens),
        bos_token_id=record["bos_token_id"],
        eos_token_id=record["eos_token_id"],
        adds_bos=record["add_bos_token"],
        template_sha256=None if template is None else template_digest(template),
    )


def _from_huggingface(path: Path) -> Tokenizer:
    try:
        data = path.read_bytes()
        record = json.loads(data)
        ids = dict(_learned(record) + _added(record))
        vocabulary = 1 + max(ids.values())
    except OSError as error:
        raise TokenizerError(f"The teacher's tokenizer {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{path} is no tokenizer.json of Hugging Face tokenizers: {error!r}.") from error
    config = _json_beside(path, "tokenizer_config.json")
    bos, eos = (ids.get(_content(config.get(name)) or "") for name in ("bos_token", "eos_token"))
    template = _template(path, config)
    return Tokenizer(
        data=data,
        vocabulary=vocabulary,
        bos_token_id=bos,
        eos_token_id=eos,
        adds_bos=_adds_bos(record, config, bos),
        template_sha256=None if template is None else template_digest(template),
    )


def _json_beside(path: Path, name: str) -> Mapping[str, Any]:
    beside = path.with_name(name)
    if not beside.is_file():
        return {}
    try:
        found = json.loads(beside.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{beside} is not valid JSON: mend it, or move tokenizer.json away from it.") from error
    return found if isinstance(found, dict) else {}


def _template(path: Path, config: Mapping[str, Any]) -> str | None:
    beside = path.with_name("chat_template.jinja")
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    template = config.get("chat_template")
    return template if isinstance(template, str) else None


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _adds_bos(record: Mapping[str, Any], config: Mapping[str, Any], bos: int | None) -> bool | None:
    """What the post-processor does decides; `add_bos_token` is only believed where there is no post-processor."""
    if bos is None:
        return None
    processors = _steps(record.get("post_processor"), "processors")
    templates = [step for step in processors if step.get("type") == "TemplateProcessing"]
    if not templates:
        return config.get("add_bos_token")
    first = (templates[0].get("single") or [{}])[0].get("SpecialToken", {}).get("id")
    ids = templates[0].get("special_tokens", {}).get(first, {}).get("ids", [])
    return bos in ids


def _steps(step: Any, name: str) -> list[Mapping[str, Any]]:
    """A step of a tokenizer.json, or the steps of a Sequence of them."""
    if not isinstance(step, dict):
        return []
    return list(step.get(name, [])) if step.get("type") == "Sequence" else [step]


def _added(record: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(token["content"], token["id"]) for token in record.get("added_tokens") or []]


def _learned(record: Mapping[str, Any]) -> list[tuple[str, int]]:
    vocabulary = record["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return list(vocabulary.items())
    return [(text, token_id) for token_id, (text, _) in enumerate(vocabulary)]  # unigram


def _huggingface_bytes(record: Mapping[str, Any]) -> dict[int, bytes]:
    decoders = [step.get("type") for step in _steps(record.get("decoder"), "decoders")]
    if "ByteLevel" in decoders:
        turn = _byte_level
    elif "ByteFallback" in decoders or "Metaspace" in decoders:
        turn = _sentencepiece
    else:
        raise TokenizerError(
            "The teacher's tokenizer.json is neither byte-level nor SentencePiece: its tokens cannot be told by bytes, "
            "so the endpoint must give token ids."
        )
    return {i: turn(text) for text, i in _learned(record)} | {i: text.encode() for text, i in _added(record)}


def _gguf_bytes(record: Mapping[str, Any]) -> dict[int, bytes]:
    turn = {"llama": _sentencepiece, "gpt2": _byte_level}.get(record["model"])
    if turn is None:
        raise TokenizerError(f"Tokens of a {record['model']!r} vocabulary cannot be told by bytes: ask for token ids.")
    types = record["token_type"] or [1] * len(record["tokens"])
    return {
        i: text.encode() if kind in _GGUF_LITERAL else turn(text)
        for i, (text, kind) in enumerate(zip(record["tokens"], types, strict=True))
    }


def _sentencepiece(text: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that are printable stand for themselves, the others for U+0100 and above."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def _byte_level(text: str) -> bytes:
    """A token that uses letters outside the alphabet was added as plain text and stands for that."""
    try:
        return bytes(_BYTE_ALPHABET[letter] for letter in text)
    except KeyError:
        return text.encode()
