"""Any endpoint that speaks OpenAI's chat or completions shape. Token ids are taken where the server gives them, else
found again from each token's bytes where exactly one id has them: never from its string, which byte tokens and special
tokens share. Without either the row holds text and no labels."""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from collectors.errors import Rejected
from collectors.http import Request
from collectors.normalise import Received
from collectors.plan import Item
from collectors.providers import Engine, Reading, Setup
from collectors.providers.answer import Answer, decode, reading
from storage.rows import Usage

_TOKEN_ID = "token_id:"  # vLLM's --return-tokens-as-token-ids
_MOST_DIGITS = 10


class _Entry(msgspec.Struct, gc=False):
    token: str | None = None
    bytes: list[int] | None = None
    logprob: float | None = None
    id: int | None = None  # llama.cpp


class _Position(_Entry, gc=False):
    top_logprobs: list[_Entry] = []


class _Logprobs(msgspec.Struct):
    """The chat shape has `content`; the older completions shape has dictionaries by string, which collide."""

    content: list[_Position] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Scored(msgspec.Struct, gc=False):
    """One entry of vLLM's `prompt_logprobs`."""

    logprob: float | None
    rank: int | None = None


class Choice(msgspec.Struct):
    """One answer; `text` in the completions shape, `message` in the chat shape; ids where vLLM gives them."""

    index: int = 0
    finish_reason: str | None = None
    text: str | None = None
    message: _Message | None = None
    logprobs: _Logprobs | None = None
    prompt_logprobs: list[dict[int, Scored] | None] | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class TokensUsed(msgspec.Struct):
    """The `usage` of a response."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Body(msgspec.Struct):
    """A chat or completions response."""

    choices: list[Choice]
    usage: TokensUsed | None = None
    id: str | None = None
    model: str | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, Scored] | None] | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None  # vLLM
    owned_by: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


_BODY = msgspec.json.Decoder(Body)
_MODELS = msgspec.json.Decoder(_Models)


class OpenAICompatible:
    """Requests and responses of an OpenAI-compatible server, mode `generate`."""

    kind = "openai"
    about: tuple[Request, ...] = (Request("GET", "/v1/models"),)
    words: ClassVar[dict[str, Any]] = {"repetition_penalty": 1.0, "repeat_penalty": 1.0, "cache_prompt": False}
    """Fields beyond the standard: names of vLLM and of llama.cpp, which each ignores of the other."""

    def __init__(self, setup: Setup) -> None:
        self._ask = setup.ask
        self._model = setup.model
        self._card = setup.card
        self._space = setup.logprob_space
        self._tokenizer = setup.tokenizer
        self._chat_k = setup.ask.top_k
        self._vocabulary = setup.vocabulary

    def prepare(self, item: Item) -> Request | None:
        """Nothing: this shape has no way to ask for a prompt's tokens."""
        return None

    def prepared(self, item: Item, body: bytes) -> Item:
        """Never called, since `prepare` asks for nothing."""
        return item

    def request(self, item: Item) -> Request:
        """Chat for messages, completions for text and token ids."""
        body = self._sampling(item)
        if item.messages is not None:
            body |= {"messages": item.messages}
            body |= {"logprobs": True, "top_logprobs": self._chat_k} if self._ask.top_k else {}
            return Request("POST", "/v1/chat/completions", msgspec.json.encode(body))
        body |= {"prompt": item.prompt if item.prompt_token_ids is None else item.prompt_token_ids}
        body |= {"logprobs": self._ask.top_k} if self._ask.top_k else {}
        return Request("POST", "/v1/completions", msgspec.json.encode(body))

    def _sampling(self, item: Item) -> dict[str, Any]:
        """All sampling parameters of the standard, and of common servers unless the card says they are refused."""
        ask = self._ask
        body = {
            "model": self._model,
            "max_tokens": item.max_tokens,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "seed": item.seed,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "n": 1,
            "stream": False,
        }
        if self._card is None or self._card.unknown_fields != "refused":
            body |= {"top_k": ask.sampling_top_k, "min_p": ask.min_p} | self.words
        return body

    def read(self, item: Item, body: bytes) -> Reading:
        """The labels where ids are known. Raises Rejected."""
        answer = self.answer(item, body)
        space = self._space
        return reading(answer, k=self._ask.top_k, vocabulary=self._vocabulary, logprob_space=space)

    def answer(self, item: Item, body: bytes) -> Answer:
        """The response as it was sent. Raises Rejected when it is none."""
        found = decode(_BODY, body)
        if len(found.choices) != 1:
            raise Rejected("wrong_shape", f"{len(found.choices)} choices came where one was asked for")
        (choice,) = found.choices
        message = choice.message or _Message(content=choice.text)
        prompt_ids = choice.prompt_token_ids or found.prompt_token_ids or item.prompt_token_ids
        if item.prompt_token_ids is not None and list(prompt_ids or ()) != list(item.prompt_token_ids):
            raise Rejected("prompt_mismatch", "the server names other prompt tokens than it was asked with")
        received, token_bytes = self._tokens(choice, found.usage) if self._ask.top_k else (None, None)
        flags = ("no_token_ids",) if received is None and self._ask.top_k else ()
        usage = found.usage or TokensUsed()
        return Answer(
            text=message.content or "",
            reasoning=message.reasoning or message.reasoning_content,
            finish_reason=choice.finish_reason,
            received=received,
            prompt_token_ids=None if prompt_ids is None else tuple(prompt_ids),
            token_bytes=token_bytes,
            usage=Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens),
            response_id=found.id,
            model=found.model,
            flags=flags,
        )

    def engine(self, bodies: Sequence[bytes | None]) -> Engine:
        """From /v1/models, where the served model is listed."""
        listed = decode(_MODELS, bodies[0]).data if bodies[0] is not None else []
        found = next((model for model in listed if model.id == self._model), None)
        if found is None:
            return Engine(served_model=self._model)
        return Engine(name=found.owned_by, served_model=found.id, context_length=found.max_model_len)

    def _tokens(self, choice: Choice, usage: TokensUsed | None) -> tuple[Received | None, tuple[bytes, ...] | None]:
        logprobs = choice.logprobs or _Logprobs()
        if logprobs.content is not None:
            received = self._chat_shape(logprobs.content, choice.token_ids)
            if received is not None and logprobs.content and logprobs.content[0].id is not None and usage is not None:
                _check_none_dropped(len(logprobs.content), usage.completion_tokens)
            return received, _bytes_of(logprobs.content)
        if logprobs.tokens is None or logprobs.token_logprobs is None:
            raise Rejected("no_logprobs", "the response holds no log-probabilities although they were asked for")
        return _completions_shape(logprobs, choice.token_ids), None

    def _chat_shape(self, positions: list[_Position], token_ids: list[int] | None) -> Received | None:
        """None where nothing tells the ids of the realised tokens and there is no tokenizer to find them with."""
        told = token_ids if token_ids is not None else [self._id(position) for position in positions]
        realised = [one for one in told if one is not None]
        if len(realised) < len(told):
            if self._tokenizer is None:
                return None
            lost = next(position for position, one in zip(positions, told, strict=True) if one is None)
            raise Rejected(
                "id_not_recoverable",
                f"token {lost.token!r} has no bytes, or bytes that are not those of exactly one id",
            )
        candidates = [self._id(one) for position in positions for one in position.top_logprobs]
        return Received(
            token_ids=realised,
            token_logprobs=[position.logprob for position in positions],
            counts=[len(position.top_logprobs) for position in positions],
            candidate_ids=[-1 if one is None else one for one in candidates],
            candidate_logprobs=[one.logprob for position in positions for one in position.top_logprobs],
            last_uncertain=True,
        )

    def _id(self, entry: _Entry) -> int | None:
        if entry.id is not None:
            return entry.id
        if entry.token is not None and (told := told_id(entry.token)) is not None:
            return told
        if entry.bytes is None or self._tokenizer is None:
            return None
        return self._tokenizer.id_of(_as_bytes(entry.bytes))


def told_id(token: str) -> int | None:
    """791 of `token_id:791`; None for a token's text. A text that reads so is not told apart, which costs a refusal."""
    digits = token.removeprefix(_TOKEN_ID)
    if digits == token or len(digits) > _MOST_DIGITS or not (digits.isascii() and digits.isdecimal()):
        return None
    return int(digits)


def _completions_shape(logprobs: _Logprobs, token_ids: list[int] | None) -> Received | None:
    """The older shape, of use only where its strings are ids (vLLM, when asked)."""
    tops = [top or {} for top in logprobs.top_logprobs or [None] * len(logprobs.tokens or [])]
    candidates = [one for top in tops for token in top if (one := told_id(token)) is not None]
    realised = [one for token in logprobs.tokens or [] if (one := told_id(token)) is not None]
    if len(candidates) < sum(map(len, tops)) or len(realised) < len(logprobs.tokens or []):
        return None
    return Received(
        token_ids=token_ids if token_ids is not None else realised,
        token_logprobs=logprobs.token_logprobs or [],
        counts=[len(top) for top in tops],
        candidate_ids=candidates,
        candidate_logprobs=[logprob for top in tops for logprob in top.values()],
    )


def _bytes_of(positions: list[_Position]) -> tuple[bytes, ...] | None:
    """The bytes of each token; None where one of them has none."""
    found = [_as_bytes(position.bytes) for position in positions if position.bytes is not None]
    return tuple(found) if len(found) == len(positions) else None


def _as_bytes(values: list[int]) -> bytes:
    try:
        return bytes(values)
    except ValueError as error:
        raise Rejected("wrong_shape", "the bytes of a token are not numbers from 0 to 255") from error


def _check_none_dropped(positions: int, tokens: int | None) -> None:
    if tokens is not None and positions != tokens:
        raise Rejected("length_mismatch", f"{tokens} tokens, but {positions} with log-probabilities")
