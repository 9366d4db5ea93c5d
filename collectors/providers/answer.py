"""What every HTTP provider finds in a response, before the numbers are checked; and the way from there to a Reading."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

import msgspec
import numpy as np

from collectors.errors import Rejected
from collectors.normalise import Received, normalise
from collectors.plan import Item
from collectors.providers import Reading
from storage.codec import Labels
from storage.rows import Usage

T = TypeVar("T")

PROMPT_LOGITS = 2**30
"""Tokens × vocabulary of a scored text, at most: 4 GB of float32. Longer ones have taken whole engines down with them
(vllm#5907), and every answer in flight with it. 4,096 tokens of 262k, 8,192 of 128k."""

_LARGEST_VOCABULARY = 2**18  # of the common ones, where nothing tells
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One decoded response. `received` is None where it has no token ids; then `token_bytes` may hold the bytes.

    model: the server's name for what answered.
    """

    text: str
    reasoning: str | None = None
    finish_reason: str | None = None
    received: Received | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    token_bytes: tuple[bytes, ...] | None = None
    usage: Usage
    response_id: str | None = None
    model: str | None = None
    flags: tuple[str, ...] = ()


def reading(answer: Answer, *, k: int, vocabulary: int | None, logprob_space: str, truncated: bool = False) -> Reading:
    """The answer with its numbers checked and put in order. Raises Rejected."""
    labels, flags = None, answer.flags
    if answer.received is not None:
        normalised = normalise(answer.received, k=k, vocabulary=vocabulary, truncated=truncated)
        labels = normalised.labels
        if k and normalised.masked:
            flags = (*flags, f"masked={normalised.masked}")
    return Reading(
        text=answer.text,
        reasoning=answer.reasoning,
        finish_reason=answer.finish_reason,
        labels=labels,
        prompt_token_ids=answer.prompt_token_ids,
        token_bytes=answer.token_bytes if labels is None else None,
        logprob_space=logprob_space if labels is not None else "unknown",
        usage=answer.usage,
        response_id=answer.response_id,
        model=answer.model,
        flags=flags,
    )


def prompt_logits(item: Item, vocabulary: int | None) -> int:
    """Logits that a server computes to score an item: its tokens, or one a byte where they are not known, × vocabulary.

    What is scored behind a prompt counts as plain text, since only the prompt's tokens are asked for.
    """
    tokens = item.prompt_bytes
    if item.prompt_token_ids is not None:
        tokens = len(item.prompt_token_ids) + len((item.completion or "").encode()) // _BYTES_PER_TOKEN
    return tokens * (vocabulary or _LARGEST_VOCABULARY)


def check_scorable(item: Item, vocabulary: int | None) -> None:
    """Raise Rejected for a text whose scoring could take the server's memory."""
    if prompt_logits(item, vocabulary) > PROMPT_LOGITS:
        size = vocabulary or _LARGEST_VOCABULARY
        raise Rejected(
            "prompt_too_long",
            f"scoring it would take more than {PROMPT_LOGITS // size:,} tokens × {size:,} logits of the server's "
            "memory: split the text",
        )


def over_label_set(log_weights: Sequence[float]) -> Labels:
    """One target's distribution over a label set from unnormalised log-weights [L]; ids are places in the set."""
    weights = np.asarray(log_weights, dtype=np.float64)
    logprobs = weights - np.logaddexp.reduce(weights)
    order = np.argsort(-logprobs, kind="stable").astype(np.int32)
    return Labels(
        token_ids=order[:1],
        token_logprobs=logprobs[order[:1]].astype(np.float32),
        token_ranks=np.ones(1, dtype=np.int32),
        top_ids=order[None, :],
        top_logprobs=logprobs[order][None, :].astype(np.float32),
        log_tail=np.full(1, -np.inf, dtype=np.float32),
    )


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body as the decoder's type; Rejected (broken_json, wrong_shape) when it is none."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Rejected("wrong_shape", f"the response is not what this endpoint sends: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("broken_json", f"the response is no valid JSON: {error}") from error


def first_target(item: Item, ids: Sequence[int]) -> tuple[int, tuple[str, ...]]:
    """Where the targets begin among the tokens of the whole text.

    Without a completion at the second token: the first has no context. With one, where the tokens stop being those of
    the prompt alone; a token that reaches over the boundary is a target, and the row is flagged.
    """
    if item.completion is None:
        return 1, ()
    prompt = item.prompt_token_ids
    if prompt is None:
        raise ValueError("read() needs the item that prepared() completed")
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False)))
    return max(1, common), () if common == len(prompt) else ("boundary_inside_token",)
