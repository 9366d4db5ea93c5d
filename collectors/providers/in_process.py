"""A teacher in this process, asked by the same requests and journalled answers as one behind HTTP.

So a run, its journal and its resume need to know nothing of it. Arrays travel as base64 blocks inside JSON; the model
itself, and torch with it, is in collectors.providers.local.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from collectors.errors import Rejected
from collectors.http import Request
from collectors.normalise import Received
from collectors.plan import Item
from collectors.providers import Engine, Reading, Setup
from collectors.providers.answer import Answer, decode
from storage.codec import Labels
from storage.rows import TailSum, Usage


class Question(msgspec.Struct, kw_only=True, frozen=True):
    """What is asked of the teacher in this process; exactly one of prompt, messages and prompt_token_ids is given."""

    mode: str
    k: int
    estimator: str = "top_k"
    draws: int = 0
    tail_sums: tuple[float, ...] = ()
    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    completion: str | None = None
    labels: tuple[str, ...] = ()
    add_bos: bool = False
    max_tokens: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0


class Told(msgspec.Struct, kw_only=True):
    """The teacher's answer: T targets with k candidates, little-endian blocks, best first, −1 and −inf where missing.

    prompt_token_ids: None where the teacher has no tokens. tail_sums: temperature and log Σ over the tail of
    p^{1/temperature}, one number a target. top_weights: of an estimator `sampled`, see storage.rows.Row.
    """

    text: str
    prompt_token_ids: list[int] | None
    finish_reason: str | None = None
    k: int
    token_ids: bytes  # int32 (T)
    token_logprobs: bytes  # float32 (T)
    token_ranks: bytes  # int32 (T)
    top_ids: bytes  # int32 (T, k)
    top_logprobs: bytes  # float32 (T, k)
    log_tail: bytes  # float32 (T)
    target_positions: bytes | None = None  # int32 (T)
    tail_sums: list[tuple[float, bytes]] = []
    top_weights: bytes | None = None  # float32 (T, k)


class About(msgspec.Struct):
    """What a teacher in this process says of itself."""

    engine: str
    version: str
    model: str
    vocabulary: int
    context_length: int | None = None
    template: str | None = None


_TOLD = msgspec.json.Decoder(Told)
_ABOUT = msgspec.json.Decoder(About)


class InProcess:
    """Requests to and answers of a teacher in this process; its numbers are raw and its tail exact."""

    kind = "local"
    about = (Request("GET", "/about"),)

    def __init__(self, setup: Setup) -> None:
        self._ask = setup.ask

    def prepare(self, item: Item) -> Request | None:
        """Nothing: the answer names the prompt's tokens."""
        return None

    def prepared(self, item: Item, body: bytes) -> Item:
        """Never called, since `prepare` asks for nothing."""
        return item

    def request(self, item: Item) -> Request:
        """One question, all sampling parameters in it."""
        ask = self._ask
        messages = None
        if item.messages is not None:
            messages = tuple({"role": one.role, "content": one.content} for one in item.messages)
        question = Question(
            mode=ask.mode,
            k=ask.top_k,
            estimator=ask.estimator,
            draws=ask.draws if ask.estimator == "sampled" else 0,
            tail_sums=ask.tail_sums,
            prompt=item.prompt,
            messages=messages,
            prompt_token_ids=item.prompt_token_ids,
            completion=item.completion,
            labels=ask.labels,
            add_bos=ask.bos == "add",
            max_tokens=item.max_tokens,
            temperature=ask.temperature,
            top_p=ask.top_p,
            top_k=ask.sampling_top_k,
            min_p=ask.min_p,
            seed=item.seed,
        )
        return Request("POST", "/ask", msgspec.json.encode(question))

    def read(self, item: Item, body: bytes) -> Reading:
        """The labels as the model gave them; tokens alone where nothing else was asked for. Raises Rejected."""
        found = decode(_TOLD, body)
        labels = _labels(found)
        estimator = self._ask.estimator
        if labels.k == 0 and estimator == "top_k":
            unknown = np.full(len(labels), np.nan, dtype=np.float32)
            labels = replace(labels, token_logprobs=unknown, token_ranks=np.zeros(len(labels), dtype=np.int32))
        weights = None if found.top_weights is None else _block(found.top_weights, np.float32)
        positions = None if found.target_positions is None else _block(found.target_positions, np.int32)
        sums = tuple(TailSum(temperature=t, log_sums=_block(block, np.float32)) for t, block in found.tail_sums)
        return Reading(
            text=found.text,
            finish_reason=found.finish_reason,
            labels=labels,
            prompt_token_ids=_prompt_ids(found),
            target_positions=positions,
            tail_sums=sums or None,
            top_weights=None if weights is None else _reshaped(weights, labels.top_ids.shape),
            estimator=estimator,
            logprob_space="raw",
            usage=_usage(found, len(labels)),
            model=None,
        )

    def answer(self, item: Item, body: bytes) -> Answer:
        """The same numbers as they would have come over a wire."""
        found = decode(_TOLD, body)
        labels = _labels(found)
        return Answer(
            text=found.text,
            finish_reason=found.finish_reason,
            received=Received(
                token_ids=labels.token_ids.tolist(),
                token_logprobs=labels.token_logprobs.tolist(),
                counts=[labels.k] * len(labels),
                candidate_ids=labels.top_ids.reshape(-1).tolist(),
                candidate_logprobs=labels.top_logprobs.reshape(-1).tolist(),
            ),
            prompt_token_ids=_prompt_ids(found),
            usage=_usage(found, len(labels)),
        )

    def engine(self, bodies: Sequence[bytes | None]) -> Engine:
        """What the process knows of its model."""
        if bodies[0] is None:
            return Engine()
        said = decode(_ABOUT, bodies[0])
        return Engine(
            name=said.engine,
            version=said.version,
            served_model=said.model,
            context_length=said.context_length,
            vocabulary=said.vocabulary,
            template=said.template,
        )


def _usage(found: Told, targets: int) -> Usage:
    return Usage(prompt_tokens=len(found.prompt_token_ids or ()), completion_tokens=targets)


def _prompt_ids(found: Told) -> tuple[int, ...] | None:
    return None if found.prompt_token_ids is None else tuple(found.prompt_token_ids)


def _labels(found: Told) -> Labels:
    token_ids = _block(found.token_ids, np.int32)
    shape = (token_ids.size, found.k)
    labels = Labels(
        token_ids=token_ids,
        token_logprobs=_block(found.token_logprobs, np.float32),
        token_ranks=_block(found.token_ranks, np.int32),
        top_ids=_reshaped(_block(found.top_ids, np.int32), shape),
        top_logprobs=_reshaped(_block(found.top_logprobs, np.float32), shape),
        log_tail=_block(found.log_tail, np.float32),
    )
    if not labels.token_logprobs.size == labels.token_ranks.size == labels.log_tail.size == token_ids.size:
        raise Rejected("length_mismatch", "the blocks of an answer are not of the same length")
    return labels


def _block(raw: bytes, dtype: Any) -> NDArray[Any]:
    try:
        return np.frombuffer(raw, dtype=np.dtype(dtype).newbyteorder("<")).astype(dtype)
    except ValueError as error:
        raise Rejected("wrong_shape", "a block of an answer is not of whole numbers") from error


def _reshaped(block: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if block.size != shape[0] * shape[1]:
        raise Rejected("length_mismatch", f"{block.size} candidates came for {shape[0]} targets of {shape[1]}")
    return block.reshape(shape)


def told_labels(question: Question, prompt: list[int] | None, logprobs: NDArray[np.float64]) -> Told:
    """A distribution over the question's labels [L] as an answer of one target: ids are places in the label set."""
    order = np.argsort(-logprobs, kind="stable")
    return Told(
        text=question.labels[int(order[0])],
        prompt_token_ids=prompt,
        k=len(order),
        token_ids=order[:1].astype("<i4").tobytes(),
        token_logprobs=logprobs[order[:1]].astype("<f4").tobytes(),
        token_ranks=np.ones(1, dtype="<i4").tobytes(),
        top_ids=np.where(np.isneginf(logprobs[order]), -1, order).astype("<i4").tobytes(),
        top_logprobs=logprobs[order].astype("<f4").tobytes(),
        log_tail=np.full(1, -np.inf, dtype="<f4").tobytes(),
    )
