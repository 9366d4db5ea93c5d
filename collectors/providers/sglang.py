"""SGLang's native `/generate`: ids always, generation and scoring of texts, prompts tokenized by the server first.

Written from SGLang's source (0.5 and later), not from recorded exchanges: the probe settles what a server really does.
Candidates of a scored text come as one base64 block where the server has that form, nested lists otherwise.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from collectors.config import AskSettings
from collectors.errors import Rejected
from collectors.http import Request
from collectors.normalise import Received
from collectors.plan import Item
from collectors.providers import Engine, Reading, Setup
from collectors.providers.answer import Answer, check_scorable, decode, first_target, reading
from storage.rows import Usage

_Entry = tuple[float | None, int, str | None]
"""Log-probability, id, text (null, since it is not asked for)."""


class _Finish(msgspec.Struct):
    type: str | None = None


class _Meta(msgspec.Struct):
    id: str | None = None
    finish_reason: _Finish | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_token_logprobs: list[_Entry] = []
    input_top_logprobs: list[list[_Entry] | None] | None = None
    input_top_logprobs_shape: tuple[int, int] | None = None
    input_top_logprobs_null_prefix: int = 0
    input_top_logprobs_val_flat_b64: str | None = None
    input_top_logprobs_idx_flat_b64: str | None = None
    input_top_logprobs_val_flat_b64_dtype: str = "float32"
    input_top_logprobs_idx_flat_b64_dtype: str = "int32"
    output_token_logprobs: list[_Entry] = []
    output_top_logprobs: list[list[_Entry] | None] = []


class _Body(msgspec.Struct):
    meta_info: _Meta
    text: str = ""
    output_ids: list[int] | None = None


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _ServerInfo(msgspec.Struct):
    version: str | None = None
    context_length: int | None = None
    served_model_name: str | None = None


_BODY = msgspec.json.Decoder(_Body)
_TOKENS = msgspec.json.Decoder(_Tokens)
_SERVER_INFO = msgspec.json.Decoder(_ServerInfo)


class SGLang:
    """Requests and responses of an SGLang server, modes `generate` and `score`, for texts and token ids."""

    kind = "sglang"
    about = (Request("GET", "/get_server_info"),)

    def __init__(self, setup: Setup) -> None:
        self._ask = setup.ask
        self._model = setup.model
        scored = setup.ask.mode == "score"  # temperature is applied to what is generated, not to what is given
        self._space = "raw" if scored else setup.logprob_space
        self._vocabulary = setup.vocabulary
        self._bos = setup.bos_token_id

    def prepare(self, item: Item) -> Request | None:
        """The prompt's tokens as the server counts them."""
        if item.messages is not None:
            raise Rejected(
                "messages_not_possible", "SGLang's /generate takes no messages: use prompts, or kind = 'openai'"
            )
        if item.prompt_token_ids is not None:
            return None
        return _post("/v1/tokenize", {"model": self._model, "prompt": item.prompt, "add_special_tokens": True})

    def prepared(self, item: Item, body: bytes) -> Item:
        """The item with its prompt's token ids."""
        ids = decode(_TOKENS, body).tokens
        if self._ask.bos == "add" and self._bos is not None and ids[:1] != [self._bos]:
            if item.completion is not None:
                raise Rejected(
                    "bos_not_possible", "a BOS of ours goes before plain prompts only: use ask.bos = 'server'"
                )
            ids = [self._bos, *ids]
        return replace(item, prompt_token_ids=tuple(ids))

    def request(self, item: Item) -> Request:
        """`logprob_start_len` −1 leaves the prompt's log-probabilities out, 0 asks for them."""
        score = self._ask.mode == "score"
        if score:
            check_scorable(item, self._vocabulary)
        body: dict[str, Any] = {
            "sampling_params": _sampling(self._ask, item, 1 if score else item.max_tokens),
            "return_logprob": self._ask.top_k > 0,
            "logprob_start_len": 0 if score else -1,
            "top_logprobs_num": self._ask.top_k,
            "return_text_in_logprobs": False,
            "stream": False,
        }
        if score:
            body |= {"return_flat_raw_top_logprobs": True, "return_flat_raw_top_logprobs_b64": True}
        if item.completion is None:
            return _post("/generate", body | {"input_ids": item.prompt_token_ids})
        if item.prompt is None:
            raise Rejected("no_text", "a completion is scored behind a text, not behind token ids")
        return _post("/generate", body | {"text": item.prompt + item.completion})

    def read(self, item: Item, body: bytes) -> Reading:
        """The labels. Raises Rejected."""
        answer = self.answer(item, body)
        return reading(answer, k=self._ask.top_k, vocabulary=self._vocabulary, logprob_space=self._space)

    def answer(self, item: Item, body: bytes) -> Answer:
        """The response as it was sent. Raises Rejected when it is none."""
        found = decode(_BODY, body)
        meta = found.meta_info
        usage = Usage(prompt_tokens=meta.prompt_tokens, completion_tokens=meta.completion_tokens)
        if self._ask.mode == "score":
            ids = [token for _, token, _ in meta.input_token_logprobs]
            first, flags = first_target(item, ids)
            text = item.prompt or "" if item.completion is None else item.completion
            received, finish = _scored(meta, ids, first), None
            return Answer(text=text, received=received, prompt_token_ids=tuple(ids[:first]), usage=usage,
                          response_id=meta.id, flags=flags)  # fmt: skip
        if item.prompt_token_ids is not None and meta.prompt_tokens not in (None, len(item.prompt_token_ids)):
            detail = f"the server read {meta.prompt_tokens} tokens, the row would name {len(item.prompt_token_ids)}"
            raise Rejected("prompt_mismatch", detail)
        finish = meta.finish_reason.type if meta.finish_reason else None
        return Answer(
            text=found.text,
            finish_reason=finish,
            received=_generated(meta) if self._ask.top_k else None,
            prompt_token_ids=item.prompt_token_ids,
            usage=usage,
            response_id=meta.id,
        )

    def engine(self, bodies: Sequence[bytes | None]) -> Engine:
        """From /get_server_info."""
        said = decode(_SERVER_INFO, bodies[0]) if bodies[0] is not None else _ServerInfo()
        return Engine(
            name="SGLang",
            version=said.version,
            served_model=said.served_model_name,
            context_length=said.context_length,
        )


def _sampling(ask: AskSettings, item: Item, max_tokens: int) -> dict[str, Any]:
    """Every sampling parameter: what is left out is taken from the model's own generation settings."""
    return {
        "max_new_tokens": max_tokens,
        "min_new_tokens": 0,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "top_k": ask.sampling_top_k or -1,
        "min_p": ask.min_p,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "sampling_seed": item.seed,
        "ignore_eos": False,
        "n": 1,
    }


def _generated(meta: _Meta) -> Received:
    tops = [top or [] for top in meta.output_top_logprobs]
    return _from_lists(meta.output_token_logprobs, tops)


def _scored(meta: _Meta, ids: list[int], first: int) -> Received:
    """The positions from `first` on; the flat form leaves out the first rows, which are null."""
    if len(ids) <= first:
        raise Rejected("no_targets", "the text has no token that the teacher had a context for")
    targets = meta.input_token_logprobs[first:]
    if meta.input_top_logprobs is not None:
        if len(meta.input_top_logprobs) != len(ids):
            raise Rejected("length_mismatch", f"{len(ids)} tokens, {len(meta.input_top_logprobs)} lists of candidates")
        return _from_lists(targets, [top or [] for top in meta.input_top_logprobs[first:]])
    if meta.input_top_logprobs_shape is None:
        raise Rejected("no_logprobs", "the response holds no log-probabilities of the text")
    rows, k = meta.input_top_logprobs_shape
    skip = first - meta.input_top_logprobs_null_prefix
    if rows != len(ids) or skip < 0:
        raise Rejected("length_mismatch", f"{len(ids)} tokens, {rows} rows of candidates")
    values = _block(meta.input_top_logprobs_val_flat_b64, meta.input_top_logprobs_val_flat_b64_dtype)
    indices = _block(meta.input_top_logprobs_idx_flat_b64, meta.input_top_logprobs_idx_flat_b64_dtype)
    if not len(values) == len(indices) == (rows - meta.input_top_logprobs_null_prefix) * k:
        raise Rejected("length_mismatch", f"the blocks of candidates do not hold {rows} rows of {k}")
    return Received(
        token_ids=[token for _, token, _ in targets],
        token_logprobs=[logprob for logprob, _, _ in targets],
        counts=[k] * len(targets),
        candidate_ids=indices[skip * k :],
        candidate_logprobs=values[skip * k :],
    )


def _from_lists(tokens: Sequence[_Entry], tops: Sequence[Sequence[_Entry]]) -> Received:
    return Received(
        token_ids=[token for _, token, _ in tokens],
        token_logprobs=[logprob for logprob, _, _ in tokens],
        counts=[len(top) for top in tops],
        candidate_ids=[token for top in tops for _, token, _ in top],
        candidate_logprobs=[logprob for top in tops for logprob, _, _ in top],
    )


def _block(text: str | None, dtype: str) -> list[Any]:
    """The numbers of a base64 block, little-endian as SGLang's machines are."""
    if dtype not in ("float32", "int32"):
        raise Rejected("wrong_shape", f"a block of candidates is of type {dtype!r}")
    try:
        raw = base64.b64decode(text or "", validate=True)
        return list(np.frombuffer(raw, dtype=np.dtype(dtype).newbyteorder("<")).tolist())
    except (binascii.Error, ValueError) as error:
        raise Rejected("wrong_shape", "a block of candidates is not base64 of whole numbers") from error


def _post(path: str, body: dict[str, Any]) -> Request:
    return Request("POST", path, msgspec.json.encode(body))
