"""A student's own small vocabulary: the teacher's tokenizer cut down to the tokens that a table needs.

Kept are the tokens that occur, those that carry teacher's probability, the ones with a role, and every piece from which
the tokenizer builds them; so the same text still gives the same tokens. What is dropped falls into the tail of the
labels: the share of the mass that moves there is bounded and reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.codec import list_values
from trainer.tokenizer import TokenizerDefinition, TokenizerError

TEXT_COLUMNS = ("prompt", "completion")
COUNT_COLUMNS = ("prompt_token_ids", "token_ids", "k", "top_ids", "top_logprobs", *TEXT_COLUMNS)


@dataclass(frozen=True, slots=True)
class TokenUse:
    """What a table asks of a vocabulary, by teacher id (all arrays of the vocabulary's size)."""

    occurs: NDArray[np.bool_]  # in a prompt, as a target, or in the tokens of the stored text
    mass: NDArray[np.float64]  # teacher's probability summed over positions
    positions: int


@dataclass(frozen=True, slots=True)
class TrimmedVocabulary:
    """A smaller tokenizer and where each teacher id went."""

    definition: TokenizerDefinition
    id_map: NDArray[np.int32]  # teacher id -> student id, −1 = dropped
    lost_mass: float  # mean probability per position that moves into the tail

    @property
    def size(self) -> int:
        """Tokens kept."""
        return int((self.id_map >= 0).sum())


def count_tokens(
    batches: Iterable[pa.RecordBatch], definition: TokenizerDefinition, *, of_texts_alone: bool = False
) -> TokenUse:
    """Reads the columns COUNT_COLUMNS once; `of_texts_alone`: labels are no tokens. Raises TokenizerError for an id
    outside the tokenizer."""
    size, tokenizer = definition.size(), definition.build()
    occurs, mass, positions = np.zeros(size, dtype=bool), np.zeros(size), 0
    for batch in batches:
        for name in () if of_texts_alone else ("prompt_token_ids", "token_ids"):
            values = list_values(batch.column(name))[1]
            if values.size and values.max() >= size:
                raise TokenizerError(
                    f"The table holds token id {values.max()}, but its tokenizer has {size} tokens; "
                    "the rows were collected with another tokenizer."
                )
            occurs[values[values >= 0]] = True  # −1: a token that is not known
        for name in TEXT_COLUMNS:
            texts = [text for text in batch.column(name).to_pylist() if text]
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=of_texts_alone):
                occurs[encoding.ids] = True
        if of_texts_alone:
            continue
        positions += list_values(batch.column("token_ids"))[1].size
        ids, logprobs = (list_values(batch.column(name))[1] for name in ("top_ids", "top_logprobs"))
        known = ids >= 0
        mass += np.bincount(ids[known], weights=np.exp(logprobs[known].astype(np.float64)), minlength=size)
    return TokenUse(occurs, mass, positions)


def trim_vocabulary(definition: TokenizerDefinition, use: TokenUse, *, candidate_loss: float) -> TrimmedVocabulary:
    """The smallest vocabulary that keeps what occurs and loses at most `candidate_loss` of the teacher's mass.

    Candidates are kept by falling mass until what is left over is at most `candidate_loss` per position. Ids keep their
    order. Raises TokenizerError for a tokenizer whose pieces cannot be traced.
    """
    vocabulary = definition.vocabulary()
    strings = {index: token for token, index in vocabulary.items()}
    keep = use.occurs | _candidates(use, candidate_loss)
    template = definition.chat_template or ""
    roles = {*definition.role_tokens(), *definition.template_tokens()}
    for added in definition.content["added_tokens"]:
        if added["content"] in roles or (added["special"] and added["content"] in template):
            keep[added["id"]] = True
    kept = {strings[int(index)] for index in np.flatnonzero(keep) if int(index) in strings}
    kept |= _pieces(definition, kept)
    order = sorted(kept, key=vocabulary.__getitem__)
    id_map = np.full(definition.size(), -1, dtype=np.int32)
    id_map[[vocabulary[token] for token in order]] = np.arange(len(order), dtype=np.int32)
    lost = float(use.mass[id_map < 0].sum()) / max(use.positions, 1)
    return TrimmedVocabulary(_restricted(definition, id_map, kept), id_map, lost)


class OtherTokens(TokenizerError):
    """The student's tokenizer cuts texts into other tokens than the teacher's."""


def match_vocabulary(
    teacher: TokenizerDefinition, student: TokenizerDefinition, batches: Iterable[pa.RecordBatch]
) -> TrimmedVocabulary:
    """Where each teacher id is in a student's own tokenizer: the token of the same string, if the texts agree.

    Reads COUNT_COLUMNS. Raises OtherTokens when the two cut the table's texts into different tokens, or when a token
    of the table is missing in the student: labels of one tokenizer say nothing about the tokens of another.
    """
    ours = student.vocabulary()
    id_map = np.full(teacher.size(), -1, dtype=np.int32)
    for token, index in teacher.vocabulary().items():
        id_map[index] = ours.get(token, -1)
    use = count_tokens(_same_tokens(batches, teacher, student, id_map), teacher)
    missing = int((use.occurs & (id_map < 0)).sum())
    if missing:
        raise OtherTokens(
            f"The student's tokenizer lacks {missing} of the {int(use.occurs.sum())} tokens that the table uses; "
            'take a student with the teacher\'s tokenizer, or from = "config" with a trimmed vocabulary.'
        )
    lost = float(use.mass[id_map < 0].sum()) / max(use.positions, 1)
    return TrimmedVocabulary(student, id_map, lost)


def _same_tokens(
    batches: Iterable[pa.RecordBatch],
    teacher: TokenizerDefinition,
    student: TokenizerDefinition,
    id_map: NDArray[np.int32],
) -> Iterator[pa.RecordBatch]:
    """The batches again, each proved to have the same tokens under both tokenizers."""
    theirs, ours = teacher.build(), student.build()
    for batch in batches:
        for name in TEXT_COLUMNS:
            for text in batch.column(name).to_pylist():
                expected = id_map[theirs.encode(text, add_special_tokens=False).ids].tolist() if text else []
                if text and ours.encode(text, add_special_tokens=False).ids != expected:
                    raise OtherTokens(
                        "The student's tokenizer cuts the table's texts into other tokens than the teacher's; "
                        'take a student with the teacher\'s tokenizer, or from = "config" with a trimmed vocabulary.'
                    )
        yield batch


def _candidates(use: TokenUse, candidate_loss: float) -> NDArray[np.bool_]:
    order = np.argsort(use.mass, kind="stable")
    droppable = np.cumsum(np.where(use.occurs[order], 0.0, use.mass[order])) <= candidate_loss * use.positions
    keep = np.empty(use.mass.size, dtype=bool)
    keep[order] = ~droppable
    return keep & (use.mass > 0)


def _pieces(definition: TokenizerDefinition, kept: set[str]) -> set[str]:
    """What a tokenizer needs to build `kept`: bytes, single letters and the results of the merges on the way."""
    model = definition.content["model"]
    added = {token["content"] for token in definition.content["added_tokens"]}
    if model["type"] != "BPE":
        return set()
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise TokenizerError('This tokenizer marks parts of words, so it cannot be trimmed; set vocabulary = "full".')
    if model.get("byte_fallback"):
        pieces = {f"<0x{byte:02X}>" for byte in range(256)}
    else:
        pieces = {token for token in model["vocab"] if len(token) == 1}
    ranks = {pair: rank for rank, pair in enumerate(_merge_pairs(model))}
    for token in kept - added:
        pieces |= _derivation(token, ranks)
    return {piece for piece in pieces if piece in model["vocab"]}


def _merge_pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges as pairs; older files write them as one string with a space between."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _derivation(token: str, ranks: dict[tuple[str, str], int]) -> set[str]:
    """All pieces that byte-pair encoding passes on its way to `token`.

    Merges inside a token's span never depend on what stands around it, since none crossed its borders; so the tokens of
    any text whose pieces are kept come out the same from the smaller vocabulary.
    """
    parts, seen = list(token), set(token)
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        if pairs[best] not in ranks:
            break
        parts[best : best + 2] = ["".join(pairs[best])]
        seen.add(parts[best])
    return seen


def _restricted(definition: TokenizerDefinition, id_map: NDArray[np.int32], kept: set[str]) -> TokenizerDefinition:
    content, model = definition.content, dict(definition.content["model"])
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [entry for entry in vocab if entry[0] in kept]
        if model.get("unk_id") is not None:
            model["unk_id"] = int(id_map[model["unk_id"]])
    else:
        model["vocab"] = {token: int(id_map[index]) for token, index in vocab.items() if token in kept}
    if model["type"] == "BPE":
        merges = _merge_pairs(model)
        model["merges"] = [pair for pair in merges if kept.issuperset((*pair, "".join(pair)))]
    added = [{**token, "id": int(id_map[token["id"]])} for token in content["added_tokens"] if token["content"] in kept]
    post = _renumbered(content.get("post_processor"), id_map)
    smaller = {**content, "model": model, "added_tokens": added, "post_processor": post}
    return replace(definition, content=smaller)


def _renumbered(processor: dict[str, Any] | None, id_map: NDArray[np.int32]) -> dict[str, Any] | None:
    """A post-processor with the new ids of its special tokens."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_renumbered(part, id_map) for part in processor["processors"]]}
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return {**processor} | {end: [processor[end][0], int(id_map[processor[end][1]])] for end in ("sep", "cls")}
    if processor["type"] != "TemplateProcessing":
        return processor
    special = {
        name: {**token, "ids": [int(id_map[index]) for index in token["ids"]]}
        for name, token in processor["special_tokens"].items()
    }
    return {**processor, "special_tokens": special}
