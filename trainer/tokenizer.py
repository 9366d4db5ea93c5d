"""The teacher's tokenizer, rebuilt from the bytes that the table stores.

A table keeps either a Hugging Face tokenizer.json or the record of a GGUF's vocabulary. Both become one tokenizer.json
here, so that trimming and saving know one form. Merges of a SentencePiece vocabulary come from looking up every split
of every token (two seconds for 262k tokens), where the library's own conversion takes a minute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trainer.errors import TrainError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # llama.cpp's llama_token_type, as GGUF stores it
SPACE = "\u2581"  # SentencePiece writes a space as a lower block

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPLITS = {  # GGUF's tokenizer.ggml.pre -> how text is cut before merging (llama.cpp, src/llama-vocab.cpp)
    "gpt-2": [_GPT2],
    "llama-bpe": [rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"],
    "qwen2": [rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"],
    "smollm": [r"\p{N}", _GPT2],
}
_IGNORE_MERGES = {"llama-bpe"}  # a whole word that is a token is taken as it is
_EOS_NAMES = ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "[SEP]")
_MASK_NAMES = ("[MASK]", "<mask>")
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>")


class TokenizerError(TrainError):
    """The tokenizer stored in the table cannot be used."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class TokenizerDefinition:
    """A tokenizer.json as data, with the roles of its special tokens (None = it has none)."""

    content: dict[str, Any]
    bos: str | None
    eos: str | None
    unk: str | None
    pad: str | None
    chat_template: str | None
    mask: str | None = None

    def build(self) -> Tokenizer:
        """The fast tokenizer. Raises TokenizerError when the library refuses the definition."""
        try:
            return Tokenizer.from_str(json.dumps(self.content, ensure_ascii=False))
        except Exception as error:  # the Rust side raises bare Exception
            raise TokenizerError(f"The tokenizer stored in the table cannot be built ({error}).") from error

    def vocabulary(self) -> dict[str, int]:
        """Token string -> id, added tokens included."""
        model = self.content["model"]
        vocab = model["vocab"]
        tokens = {token: index for index, (token, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
        return tokens | {added["content"]: added["id"] for added in self.content["added_tokens"]}

    def size(self) -> int:
        """One more than the largest id."""
        return max(self.vocabulary().values()) + 1

    def with_eos(self, token: str | None) -> TokenizerDefinition:
        """The same tokenizer with another end-of-sequence token; None keeps it as it is."""
        return self if token is None else replace(self, eos=token)

    def role_tokens(self) -> tuple[str, ...]:
        """The strings of the tokens that play a role, without repeats."""
        return tuple(dict.fromkeys(token for token in (self.bos, self.eos, self.unk, self.pad, self.mask) if token))

    def template_tokens(self) -> set[str]:
        """The strings of the tokens that the post-processor puts around a text."""
        found: set[str] = set()
        for processor in _flattened(self.content.get("post_processor")):
            if processor["type"] == "TemplateProcessing":
                found.update(processor["special_tokens"])
            elif processor["type"] in ("BertProcessing", "RobertaProcessing"):
                found.update((processor["sep"][0], processor["cls"][0]))
        return found

    def save(self, folder: Path, *, model_max_length: int) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which plain AutoTokenizer reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(self.content, ensure_ascii=False), encoding="utf-8")
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
            "clean_up_tokenization_spaces": False,
            "bos_token": self.bos,
            "eos_token": self.eos,
            "unk_token": self.unk,
            "pad_token": self.pad or self.eos,
            "mask_token": self.mask,
        }
        if self.chat_template:
            settings["chat_template"] = self.chat_template
        settings = {name: value for name, value in settings.items() if value is not None}
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8"
        )


@lru_cache(maxsize=2)
def read_tokenizer(data: bytes) -> TokenizerDefinition:
    """The definition in `data`: a tokenizer.json, or the canonical record of a GGUF's vocabulary.

    Kept between calls, since a training and its twin need the same one; its content is not to be changed.
    Raises TokenizerError when it is neither, or of a kind that is not known here.
    """
    try:
        record = json.loads(data)
    except ValueError as error:
        raise TokenizerError("The tokenizer stored in the table is not JSON.") from error
    if isinstance(record, dict) and record.get("format") == "gguf-tokenizer-1":
        return _from_gguf(record)
    if isinstance(record, dict) and "model" in record and "added_tokens" in record:
        return _from_tokenizer_json(record)
    raise TokenizerError("The tokenizer stored in the table is neither a tokenizer.json nor a GGUF vocabulary.")


def _from_tokenizer_json(content: dict[str, Any]) -> TokenizerDefinition:
    special = {added["content"]: added["id"] for added in content["added_tokens"] if added["special"]}
    content = {**content, "truncation": None, "padding": None}
    return TokenizerDefinition(
        content=content,
        bos=_template_start(content.get("post_processor")),
        eos=next((name for name in _EOS_NAMES if name in special), None),
        unk=_unknown(content["model"]),
        pad=next((name for name in _PAD_NAMES if name in special), None),
        mask=next((name for name in _MASK_NAMES if name in special), None),
        chat_template=None,
    )


def _unknown(model: dict[str, Any]) -> str | None:
    unk_id = model.get("unk_id")
    return model["vocab"][unk_id][0] if unk_id is not None else model.get("unk_token")


def _template_start(post_processor: dict[str, Any] | None) -> str | None:
    """The special token that a post-processor puts before the text."""
    for processor in _flattened(post_processor):
        if processor["type"] == "TemplateProcessing" and "SpecialToken" in processor["single"][0]:
            return str(processor["single"][0]["SpecialToken"]["id"])
    return None


def _flattened(processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if processor is None:
        return
    if processor["type"] == "Sequence":
        for part in processor["processors"]:
            yield from _flattened(part)
    else:
        yield processor


def _from_gguf(record: dict[str, Any]) -> TokenizerDefinition:
    tokens: list[str] = record["tokens"]
    if len(set(tokens)) != len(tokens):
        raise TokenizerError("The GGUF vocabulary names a token twice; store the teacher's tokenizer.json instead.")
    readers = {"llama": _sentencepiece, "gpt2": _byte_level}
    if record["model"] not in readers:
        raise TokenizerError(
            f"GGUF vocabularies of kind {record['model']!r} are not read (llama and gpt2 are); "
            "store the teacher's tokenizer.json instead."
        )

    def name(role: str) -> str | None:
        token_id = record.get(f"{role}_token_id")
        return None if token_id is None else tokens[token_id]

    bos, eos = name("bos"), name("eos")
    added = [
        {"id": token_id, "content": token, "special": kind != USER_DEFINED, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for token_id, (token, kind) in enumerate(zip(tokens, record["token_type"], strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    content: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    content |= readers[record["model"]](record)
    starts = [bos] if bos and record.get("add_bos_token") else []
    ends = [eos] if eos and record.get("add_eos_token") else []
    content["post_processor"] = _template(starts, ends, {token: tokens.index(token) for token in [*starts, *ends]})
    return TokenizerDefinition(content, bos, eos, name("unknown"), name("padding"), record.get("chat_template"))


def _template(starts: list[str], ends: list[str], ids: dict[str, int]) -> dict[str, Any]:
    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before = [{"SpecialToken": {"id": token, "type_id": type_id}} for token in starts]
        after = [{"SpecialToken": {"id": token, "type_id": type_id}} for token in ends]
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in ids.items()},
    }


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **settings: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    defaults |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **defaults, **settings, "vocab": vocab, "merges": [list(pair) for pair in merges]}


def _sentencepiece(record: dict[str, Any]) -> dict[str, Any]:
    """SentencePiece BPE: spaces as ▁, bytes for what has no token, merges ranked by the merged token's score."""
    tokens, scores, unknown = record["tokens"], record["scores"], record.get("unknown_token_id")
    prefix = bool(record.get("add_space_prefix", True))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizers = [{"type": "Prepend", "prepend": SPACE}, spaces] if prefix else [spaces]
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            {token: index for index, token in enumerate(tokens)},
            _merges_by_score(tokens, scores, record["token_type"]),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _merges_by_score(tokens: list[str], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, the best score of the result first (SentencePiece's greedy order)."""
    ids = {token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == NORMAL}
    merges = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-scores[index], ids[left], ids[right], left, right))
    merges.sort()
    return [merge[3:] for merge in merges]


def _byte_level(record: dict[str, Any]) -> dict[str, Any]:
    """GPT-2's byte-level BPE: text is cut into words by a pattern, bytes are written as letters, merges are listed."""
    pre = "gpt-2" if record.get("pre") in (None, "default") else record["pre"]
    if pre not in _SPLITS:
        known = ", ".join(_SPLITS)
        raise TokenizerError(
            f"The GGUF vocabulary cuts words by {pre!r}, which is not known here ({known}); "
            "store the teacher's tokenizer.json instead."
        )
    isolated = {"type": "Split", "behavior": "Isolated", "invert": False}
    splits = [{**isolated, "pattern": {"Regex": pattern}} for pattern in _SPLITS[pre]]
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    left_right = [merge.split(" ") for merge in record["merges"] or []]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, letters]},
        "decoder": letters,
        "model": _bpe(
            {token: index for index, token in enumerate(record["tokens"])},
            [(left, right) for left, right in left_right],
            ignore_merges=pre in _IGNORE_MERGES,
        ),
    }
