"""vLLM: ids always, generation by its completions and chat shapes, scoring of given texts by `prompt_logprobs`.

Its dictionaries are keyed by id only because `return_tokens_as_token_ids` is sent; by string, candidates collide.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from collectors.errors import Rejected
from collectors.http import Request
from collectors.normalise import SENTINEL, Received
from collectors.plan import Item
from collectors.providers import Engine, Reading, Setup
from collectors.providers.answer import (
    PROMPT_LOGITS,
    Answer,
    check_scorable,
    decode,
    first_target,
    over_label_set,
    prompt_logits,
)
from collectors.providers.openai import Body, OpenAICompatible, Scored, TokensUsed
from storage.rows import Usage


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Version(msgspec.Struct):
    version: str


_BODY = msgspec.json.Decoder(Body)
_TOKENS = msgspec.json.Decoder(_Tokens)
_VERSION = msgspec.json.Decoder(_Version)


class VLLM(OpenAICompatible):
    """Requests and responses of a vLLM server, modes `generate`, `score` and `classify`."""

    kind = "vllm"
    about = (Request("GET", "/v1/models"), Request("GET", "/version"))
    words: ClassVar[dict[str, Any]] = {
        "repetition_penalty": 1.0,
        "stop": [],
        "ignore_eos": False,
        "min_tokens": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._bos = setup.bos_token_id
        if setup.ask.mode == "score":
            self._space = "raw"  # whatever the server's logprobs_mode, no temperature is applied to a prompt
        elif setup.card is not None and setup.card.largest_k > setup.ask.top_k:
            self._chat_k = setup.ask.top_k + 1  # else the k-th is lost where the sampled token lies outside the top k

    def prepare(self, item: Item) -> Request | None:
        """The prompt's tokens, where a BOS of ours goes before them, a completion is scored behind them, or a scored
        text may be too long."""
        wanted = self._ask.bos == "add" or item.completion is not None or self._ask.mode == "classify"
        wanted |= self._ask.mode == "score" and prompt_logits(item, self._vocabulary) > PROMPT_LOGITS
        if item.prompt_token_ids is not None or not wanted:
            return None
        if item.messages is not None:
            return self._post("/tokenize", {"messages": item.messages, "add_generation_prompt": True})
        return self._post("/tokenize", {"prompt": item.prompt, "add_special_tokens": True})

    def prepared(self, item: Item, body: bytes) -> Item:
        """The item with its prompt's token ids."""
        ids = decode(_TOKENS, body).tokens
        bos = self._bos
        if self._ask.bos == "add" and bos is not None and ids[:1] != [bos]:
            if item.completion is not None or item.messages is not None or self._ask.mode == "classify":
                raise Rejected(
                    "bos_not_possible", "a BOS of ours goes before plain prompts only: use ask.bos = 'server'"
                )
            ids = [bos, *ids]
        return replace(item, prompt_token_ids=tuple(ids))

    def request(self, item: Item) -> Request:
        """One token is generated where a text is scored, since the server wants at least one."""
        if self._ask.mode == "generate":
            return super().request(item)
        check_scorable(item, self._vocabulary)
        if self._ask.mode == "classify":
            return self._classifying(item)
        body: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "seed": item.seed, "return_token_ids": True}
        body |= {"prompt_logprobs": self._ask.top_k}
        if item.messages is not None:
            body |= {"messages": item.messages}
            if item.completion is not None:
                answer = {"role": "assistant", "content": item.completion}
                body |= {"messages": [*item.messages, answer], "add_generation_prompt": False}
                body |= {"continue_final_message": True}
            return self._post("/v1/chat/completions", body)
        if item.completion is not None:
            if item.prompt is None:
                raise Rejected("no_text", "a completion is scored behind a text or messages, not behind token ids")
            return self._post("/v1/completions", body | {"prompt": item.prompt + item.completion})
        prompt = item.prompt if item.prompt_token_ids is None else item.prompt_token_ids
        return self._post("/v1/completions", body | {"prompt": prompt})

    def answer(self, item: Item, body: bytes) -> Answer:
        """The response as it was sent, in modes generate and score. Raises Rejected when it is none."""
        return self._scored(item, body) if self._ask.mode == "score" else super().answer(item, body)

    def read(self, item: Item, body: bytes) -> Reading:
        """The labels. Raises Rejected."""
        if self._ask.mode == "classify":
            return self._classified(item, body)
        found = super().read(item, body)
        if found.labels is None and self._ask.top_k and self._card is not None and self._card.token_ids:
            raise Rejected(
                "no_token_ids", "the server named its candidates by id when it was probed, and no longer does"
            )
        return found

    def _classifying(self, item: Item) -> Request:
        """All labels behind the prompt in one request; one candidate is the least that `prompt_logprobs` gives."""
        if item.prompt is None or item.messages is not None:
            raise Rejected("text_only", "labels are scored behind a text, not behind messages or token ids")
        texts = [item.prompt + label for label in self._ask.labels]
        body = {"prompt": texts, "max_tokens": 1, "temperature": 0.0, "seed": item.seed, "prompt_logprobs": 1}
        return self._post("/v1/completions", body | {"return_token_ids": True})

    def _classified(self, item: Item, body: bytes) -> Reading:
        """The labels' sequences are compared from the first token at which any of them leaves the prompt's own."""
        found = decode(_BODY, body)
        choices = sorted(found.choices, key=lambda choice: choice.index)
        if len(choices) != len(self._ask.labels):
            raise Rejected("wrong_shape", f"{len(choices)} choices came for {len(self._ask.labels)} labels")
        ids = [choice.prompt_token_ids or [] for choice in choices]
        starts = [first_target(replace(item, completion=""), one) for one in ids]
        first = min(start for start, _ in starts)
        sums = []
        for choice, one in zip(choices, ids, strict=True):
            own = _received(one, choice.prompt_logprobs or [], first).token_logprobs
            if any(logprob is None or logprob <= SENTINEL for logprob in own):
                raise Rejected("no_logprobs", "a token of a label came without a log-probability")
            sums.append(sum(logprob for logprob in own if logprob is not None))
        labels = over_label_set(sums)
        usage = found.usage or TokensUsed()
        return Reading(
            text=self._ask.labels[int(labels.token_ids[0])],
            labels=labels,
            prompt_token_ids=tuple(ids[0][:first]),
            logprob_space="raw",
            usage=Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens),
            response_id=found.id,
            model=found.model,
            flags=tuple(sorted({flag for _, flags in starts for flag in flags})),
        )

    def engine(self, bodies: Sequence[bytes | None]) -> Engine:
        """From /v1/models and /version."""
        version = decode(_VERSION, bodies[1]).version if bodies[1] is not None else None
        return replace(super().engine(bodies[:1]), name="vLLM", version=version)

    def _scored(self, item: Item, body: bytes) -> Answer:
        found = decode(_BODY, body)
        if len(found.choices) != 1:
            raise Rejected("wrong_shape", f"{len(found.choices)} choices came where one was asked for")
        ids = found.choices[0].prompt_token_ids or found.prompt_token_ids
        entries = found.choices[0].prompt_logprobs or found.prompt_logprobs
        if ids is None or entries is None:
            raise Rejected("no_logprobs", "the response holds no prompt_token_ids and prompt_logprobs")
        first, flags = first_target(item, ids)
        usage = found.usage or TokensUsed()
        return Answer(
            text=item.prompt or "" if item.completion is None else item.completion,
            received=_received(ids, entries, first),
            prompt_token_ids=tuple(ids[:first]),
            usage=Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens),
            response_id=found.id,
            model=found.model,
            flags=flags,
        )

    def _post(self, path: str, body: dict[str, Any]) -> Request:
        return Request("POST", path, msgspec.json.encode({"model": self._model} | body))


def _received(ids: list[int], entries: list[dict[int, Scored] | None], first: int) -> Received:
    """The positions from `first` on, each with its realised token among its candidates."""
    if len(ids) != len(entries):
        raise Rejected("length_mismatch", f"{len(ids)} prompt tokens, {len(entries)} with log-probabilities")
    targets, rest = ids[first:], entries[first:]
    if not targets:
        raise Rejected("no_targets", "the text has no token that the teacher had a context for")
    lists = [entry for entry in rest if entry is not None]
    if len(lists) < len(rest) or any(token not in entry for token, entry in zip(targets, lists, strict=True)):
        raise Rejected("realised_missing", "a position came without the text's own token")
    own = [entry[token] for token, entry in zip(targets, lists, strict=True)]
    return Received(
        token_ids=targets,
        token_logprobs=[one.logprob for one in own],
        token_ranks=[one.rank or 0 for one in own],
        counts=[len(entry) for entry in lists],
        candidate_ids=[token for entry in lists for token in entry],
        candidate_logprobs=[one.logprob for entry in lists for one in entry.values()],
    )
