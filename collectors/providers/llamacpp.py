"""llama.cpp's server, its own `/completion` for texts and token ids, its chat shape for messages.

The prompt is tokenized by the server first and asked by ids: the answer names no prompt ids, so this is the only way to
know what the teacher saw, at the price of one small exchange more. Seen with build 11549.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from collectors.config import AskSettings
from collectors.errors import Rejected
from collectors.http import Request
from collectors.normalise import Received
from collectors.plan import Item
from collectors.providers import Engine, Reading, Setup
from collectors.providers.answer import Answer, decode, reading
from storage.rows import Usage

_FINISH = {"eos": "stop", "word": "stop", "limit": "length"}
_SPLIT = "llama.cpp leaves out the log-probabilities of tokens that end inside a character"


class Candidate(msgspec.Struct, gc=False):
    """One candidate; `logprob` is null or −3.4e38 where the probability is 0."""

    id: int
    logprob: float | None


class Position(msgspec.Struct, gc=False):
    """One realised token and its candidates, best first; the end-of-sequence token is among them, without bytes."""

    id: int
    logprob: float | None
    top_logprobs: list[Candidate]


class _Completion(msgspec.Struct):
    content: str
    tokens: list[int]
    tokens_evaluated: int
    stop_type: str
    model: str | None = None
    truncated: bool = False
    completion_probabilities: list[Position] = []


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Logprobs(msgspec.Struct):
    content: list[Position] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chat(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage
    id: str | None = None
    model: str | None = None


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Rendered(msgspec.Struct):
    prompt: str


class _Settings(msgspec.Struct):
    n_ctx: int | None = None


class _Props(msgspec.Struct):
    default_generation_settings: _Settings | None = None
    model_alias: str | None = None
    chat_template: str | None = None
    build_info: str | None = None


class _Meta(msgspec.Struct):
    n_vocab: int | None = None


class _Model(msgspec.Struct):
    meta: _Meta | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


_COMPLETION = msgspec.json.Decoder(_Completion)
_CHAT = msgspec.json.Decoder(_Chat)
_TOKENS = msgspec.json.Decoder(_Tokens)
_RENDERED = msgspec.json.Decoder(_Rendered)
_PROPS = msgspec.json.Decoder(_Props)
_MODELS = msgspec.json.Decoder(_Models)


def sampling(ask: AskSettings, item: Item) -> dict[str, Any]:
    """Every sampling parameter the server knows: its defaults are temperature 0.8, top_k 40, top_p 0.95, min_p 0.05.

    Temperature comes first in the chain, as other engines have it, so that the same settings mean the same sampling.
    """
    return {
        "seed": item.seed,
        "temperature": ask.temperature,
        "top_k": ask.sampling_top_k,
        "top_p": ask.top_p,
        "min_p": ask.min_p,
        "samplers": ["temperature", "top_k", "top_p", "min_p"],
        "typical_p": 1.0,
        "top_n_sigma": -1.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "dry_multiplier": 0.0,
        "xtc_probability": 0.0,
        "dynatemp_range": 0.0,
        "mirostat": 0,
        "logit_bias": [],
        "ignore_eos": False,
        "stop": [],
        "cache_prompt": False,
        "stream": False,
    }


class LlamaCpp:
    """Requests and responses of a llama.cpp server. Mode `generate` only: its `echo` is silently ignored."""

    kind = "llamacpp"
    about = (Request("GET", "/props"), Request("GET", "/v1/models"))

    def __init__(self, setup: Setup) -> None:
        self._ask = setup.ask
        self._model = setup.model
        self._space = setup.logprob_space
        self._vocabulary = setup.vocabulary
        self._bos = setup.bos_token_id

    def prepare(self, item: Item) -> Request | None:
        """Messages are rendered, then the text is tokenized, both by the server as it does for itself."""
        if item.prompt_token_ids is not None:
            return None
        if item.prompt is not None:
            body: dict[str, Any] = {"content": item.prompt, "add_special": True, "parse_special": True}
            return _post("/tokenize", body)
        return _post("/apply-template", {"messages": item.messages})

    def prepared(self, item: Item, body: bytes) -> Item:
        """The item with its rendered prompt, or with the prompt's token ids."""
        if item.prompt is None:
            return replace(item, prompt=decode(_RENDERED, body).prompt)
        ids = decode(_TOKENS, body).tokens
        if self._ask.bos == "add" and self._bos is not None and ids[:1] != [self._bos]:
            ids = [self._bos, *ids]
        if not ids:
            raise Rejected("empty_prompt", "the prompt has no tokens and the teacher's tokenizer adds no BOS")
        return replace(item, prompt_token_ids=tuple(ids))

    def request(self, item: Item) -> Request:
        """`/v1/chat/completions` for messages, `/completion` with token ids for all else."""
        body = sampling(self._ask, item)
        if self._by_chat(item):
            body |= {"model": self._model, "messages": item.messages, "max_tokens": item.max_tokens, "n": 1}
            body |= {"logprobs": True, "top_logprobs": self._ask.top_k} if self._ask.top_k else {}
            return _post("/v1/chat/completions", body)
        body |= {"prompt": item.prompt_token_ids, "n_predict": item.max_tokens, "return_tokens": True}
        body |= {"n_probs": self._ask.top_k, "post_sampling_probs": False}
        return _post("/completion", body)

    def read(self, item: Item, body: bytes) -> Reading:
        """The labels, the end-of-sequence token included where the teacher ended by it. Raises Rejected."""
        return reading(
            self.answer(item, body), k=self._ask.top_k, vocabulary=self._vocabulary, logprob_space=self._space
        )

    def answer(self, item: Item, body: bytes) -> Answer:
        """The response as it was sent. Raises Rejected when it is none, or is about another prompt."""
        return self._chat(item, body) if self._by_chat(item) else self._completion(item, body)

    def engine(self, bodies: Sequence[bytes | None]) -> Engine:
        """From /props and /v1/models; the context is that of one slot."""
        props, models = bodies
        said = decode(_PROPS, props) if props is not None else _Props()
        listed = decode(_MODELS, models).data if models is not None else []
        meta = (listed[0].meta if listed else None) or _Meta()
        return Engine(
            name="llama.cpp",
            version=said.build_info,
            served_model=said.model_alias,
            context_length=said.default_generation_settings.n_ctx if said.default_generation_settings else None,
            vocabulary=meta.n_vocab,
            template=said.chat_template,
        )

    def _by_chat(self, item: Item) -> bool:
        """The chat shape keeps reasoning apart, but renders by itself: a BOS of ours cannot enter there."""
        return item.messages is not None and self._ask.bos == "server"

    def _completion(self, item: Item, body: bytes) -> Answer:
        found = decode(_COMPLETION, body)
        _check_prompt(item, found.tokens_evaluated)
        positions = found.completion_probabilities
        if self._ask.top_k and [position.id for position in positions] != found.tokens:
            raise Rejected(
                "length_mismatch", f"{len(found.tokens)} tokens, {len(positions)} with log-probabilities: {_SPLIT}"
            )
        return Answer(
            text=found.content,
            finish_reason=_FINISH.get(found.stop_type),
            received=received(positions) if self._ask.top_k else _bare(found.tokens),
            prompt_token_ids=item.prompt_token_ids,
            usage=Usage(prompt_tokens=found.tokens_evaluated, completion_tokens=len(found.tokens)),
            model=found.model,
            flags=("context_full",) if found.truncated else (),
        )

    def _chat(self, item: Item, body: bytes) -> Answer:
        found = decode(_CHAT, body)
        if len(found.choices) != 1:
            raise Rejected("wrong_shape", f"{len(found.choices)} choices came where one was asked for")
        _check_prompt(item, found.usage.prompt_tokens)
        choice = found.choices[0]
        positions = (choice.logprobs.content if choice.logprobs else None) or []
        if self._ask.top_k and len(positions) != found.usage.completion_tokens:
            raise Rejected(
                "length_mismatch",
                f"{found.usage.completion_tokens} tokens, {len(positions)} with log-probabilities: {_SPLIT}",
            )
        return Answer(
            text=choice.message.content or "",
            reasoning=choice.message.reasoning_content,
            finish_reason=choice.finish_reason,
            received=received(positions) if self._ask.top_k else None,
            prompt_token_ids=item.prompt_token_ids,
            usage=Usage(prompt_tokens=found.usage.prompt_tokens, completion_tokens=found.usage.completion_tokens),
            response_id=found.id,
            model=found.model,
        )


def received(positions: list[Position]) -> Received:
    """Positions of the wire as flat columns."""
    return Received(
        token_ids=[position.id for position in positions],
        token_logprobs=[position.logprob for position in positions],
        counts=[len(position.top_logprobs) for position in positions],
        candidate_ids=[candidate.id for position in positions for candidate in position.top_logprobs],
        candidate_logprobs=[candidate.logprob for position in positions for candidate in position.top_logprobs],
    )


def _bare(token_ids: list[int]) -> Received:
    """Token ids without labels (k = 0)."""
    none = [None] * len(token_ids)
    return Received(
        token_ids=token_ids, token_logprobs=none, counts=[0] * len(none), candidate_ids=[], candidate_logprobs=[]
    )


def _check_prompt(item: Item, seen: int) -> None:
    """The server must have read exactly the tokens that the row will name."""
    if item.prompt_token_ids is None:
        raise ValueError("read() needs the item that prepared() completed")
    if seen != len(item.prompt_token_ids):
        raise Rejected(
            "prompt_mismatch", f"the server read {seen} prompt tokens, the row would name {len(item.prompt_token_ids)}"
        )


def _post(path: str, body: dict[str, Any]) -> Request:
    return Request(method="POST", path=path, body=msgspec.json.encode(body))
