"""Text Generation Inference's `/generate`: ids always, few candidates, numbers after temperature and truncation.

Written from TGI's interface description, not from recorded exchanges: the probe settles what a server really does.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from collectors.errors import Rejected
from collectors.http import Request
from collectors.normalise import Received
from collectors.plan import Item
from collectors.providers import Engine, ProviderUnavailable, Reading, Setup
from collectors.providers.answer import Answer, decode, reading
from storage.rows import Usage

_FINISH = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


class _Token(msgspec.Struct):
    id: int
    logprob: float | None = None


class _Details(msgspec.Struct):
    finish_reason: str
    generated_tokens: int
    tokens: list[_Token]
    prefill: list[_Token] = []
    top_tokens: list[list[_Token]] = []


class _Body(msgspec.Struct):
    generated_text: str
    details: _Details


class _Info(msgspec.Struct):
    model_id: str | None = None
    version: str | None = None
    max_total_tokens: int | None = None


_BODY = msgspec.json.Decoder(_Body)
_TOKENS = msgspec.json.Decoder(list[_Token])
_INFO = msgspec.json.Decoder(_Info)


class TGI:
    """Requests and responses of a TGI server, mode `generate`, for texts."""

    kind = "tgi"
    about = (Request("GET", "/info"),)

    def __init__(self, setup: Setup) -> None:
        if setup.ask.bos == "add":
            raise ProviderUnavailable(
                "TGI takes texts only, so ask.bos = 'add' is not possible: use ask.bos = 'server'."
            )
        if setup.ask.min_p > 0:
            raise ProviderUnavailable("TGI has no min_p: leave ask.min_p out.")
        self._ask = setup.ask
        self._space = setup.logprob_space
        self._vocabulary = setup.vocabulary

    def prepare(self, item: Item) -> Request | None:
        """The prompt's tokens as the server counts them."""
        if item.prompt is None or item.messages is not None:
            raise Rejected("text_only", "TGI's /generate takes texts, not messages or token ids: use prompts")
        return None if item.prompt_token_ids is not None else _post("/tokenize", {"inputs": item.prompt})

    def prepared(self, item: Item, body: bytes) -> Item:
        """The item with its prompt's token ids."""
        return replace(item, prompt_token_ids=tuple(token.id for token in decode(_TOKENS, body)))

    def request(self, item: Item) -> Request:
        """Neutral values that TGI refuses (top_p 1, top_k 0, temperature 0) are said by leaving them out."""
        ask = self._ask
        parameters: dict[str, Any] = {
            "max_new_tokens": item.max_tokens,
            "do_sample": ask.temperature > 0,
            "seed": item.seed,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "return_full_text": False,
            "details": True,
            "decoder_input_details": False,
            "stop": [],
            "truncate": None,
            "watermark": False,
        }
        parameters |= {"temperature": ask.temperature} if ask.temperature > 0 else {}
        parameters |= {"top_p": ask.top_p} if ask.top_p < 1 else {}
        parameters |= {"top_k": ask.sampling_top_k} if ask.sampling_top_k else {}
        parameters |= {"top_n_tokens": ask.top_k} if ask.top_k else {}
        return _post("/generate", {"inputs": item.prompt, "parameters": parameters})

    def read(self, item: Item, body: bytes) -> Reading:
        """The labels. Fewer candidates than asked for are no fault: sampling parameters cut them. Raises Rejected."""
        answer = self.answer(item, body)
        return reading(
            answer, k=self._ask.top_k, vocabulary=self._vocabulary, logprob_space=self._space, truncated=True
        )

    def answer(self, item: Item, body: bytes) -> Answer:
        """The response as it was sent. Raises Rejected when it is none, or is about another prompt."""
        found = decode(_BODY, body)
        details = found.details
        seen = tuple(token.id for token in details.prefill)
        if seen and item.prompt_token_ids is not None and seen != item.prompt_token_ids:
            raise Rejected("prompt_mismatch", "the server read other tokens than its /tokenize named")
        prompt_ids = seen or item.prompt_token_ids
        return Answer(
            text=found.generated_text,
            finish_reason=_FINISH.get(details.finish_reason),
            received=_received(details) if self._ask.top_k else None,
            prompt_token_ids=prompt_ids,
            usage=Usage(
                prompt_tokens=None if prompt_ids is None else len(prompt_ids),
                completion_tokens=details.generated_tokens,
            ),
        )

    def engine(self, bodies: Sequence[bytes | None]) -> Engine:
        """From /info."""
        said = decode(_INFO, bodies[0]) if bodies[0] is not None else _Info()
        return Engine(
            name="TGI", version=said.version, served_model=said.model_id, context_length=said.max_total_tokens
        )


def _received(details: _Details) -> Received:
    tops = details.top_tokens
    return Received(
        token_ids=[token.id for token in details.tokens],
        token_logprobs=[token.logprob for token in details.tokens],
        counts=[len(top) for top in tops],
        candidate_ids=[token.id for top in tops for token in top],
        candidate_logprobs=[token.logprob for top in tops for token in top],
    )


def _post(path: str, body: dict[str, Any]) -> Request:
    return Request("POST", path, msgspec.json.encode(body))
