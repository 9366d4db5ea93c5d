"""The bytes that each token stands for in a text, so that two tokenizations of one text can be laid over each other."""

from __future__ import annotations

import re
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from trainer.tokenizer import SPACE, TokenizerDefinition, TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]  # transformers ships it untyped


def token_bytes(definition: TokenizerDefinition) -> list[bytes | None]:
    """By id; None where an id is unused, or is special and stands for no text.

    Raises TokenizerError for a tokenizer that does not keep all bytes of a text (WordPiece and the like).
    """
    content = definition.content
    kinds = {step["type"] for step in _steps(content.get("decoder"))}
    if "ByteLevel" in kinds:
        turn = _byte_level
    elif kinds & {"ByteFallback", "Metaspace"}:
        turn = _sentencepiece
    else:
        raise TokenizerError(
            f"A {content['model']['type']} tokenizer that is neither byte-level nor SentencePiece does not keep the "
            "bytes of a text, so its tokens cannot be laid over those of another tokenizer."
        )
    special = {added["content"]: added["special"] for added in content["added_tokens"]}
    pieces: list[bytes | None] = [None] * definition.size()
    for token, index in definition.vocabulary().items():
        if token not in special:
            pieces[index] = None if token == definition.unk else turn(token) or None
        elif not special[token]:
            pieces[index] = token.encode()
    return pieces


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


def _byte_level(token: str) -> bytes:
    """A token with letters outside the byte alphabet stands for itself."""
    try:
        return bytes(_BYTE_OF[letter] for letter in token)
    except KeyError:
        return token.encode()


def ids_by_bytes(definition: TokenizerDefinition, pieces: list[bytes | None]) -> dict[bytes, int]:
    """The id that stands for some bytes; where a letter has its own token and one for its byte, its own."""
    names = {index: token for token, index in definition.vocabulary().items()}
    spelled = sorted(
        (bool(_BYTE_TOKEN.fullmatch(names[i])), i, piece) for i, piece in enumerate(pieces) if piece is not None
    )
    found: dict[bytes, int] = {}
    for _, index, piece in spelled:
        found.setdefault(piece, index)
    return found
