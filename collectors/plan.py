"""Prompts → requests with keys, minus what the table and the journal have. A key holds everything that decides the
answer and nothing that does not: no address, no secret, no limit; so the same question is asked once, whoever asks."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import msgspec
import pyarrow as pa

from collectors.bookmark import Bookmark, Mark
from collectors.bookmark import TeacherTokens as TeacherTokens
from collectors.config import AskSettings, RunConfig
from collectors.prompts import Prompt
from storage.keys import KeySet
from storage.query import sql
from storage.rows import Message as Message
from storage.rows import Sampling
from storage.table import Table

# Prompts that are looked up together: one search for a thousand keys costs little more than for one.
_TOGETHER = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One request for one row: a prompt (text, messages or token ids) and one of its samples.

    The token ids of a text prompt are added when the endpoint was asked for them; the key does not change by that.
    `completion` is the text to score against the prompt (mode score). `seed` follows from the key, so that a repeated
    request repeats its sampling. `source` is where the prompt came from (file:line).
    """

    key: str
    prompt_id: str
    sample_index: int
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    completion: str | None = None
    seed: int = 0
    max_tokens: int = 0
    source: str = ""
    licence: str | None = None
    reference: str | None = None
    domain: str | None = None

    @property
    def prompt_bytes(self) -> int:
        """UTF-8 bytes of all that is sent as text; a token is at least one byte of it."""
        parts = [self.prompt or "", self.completion or ""]
        parts += [message.role + message.content for message in self.messages or ()]
        return sum(len(part.encode()) for part in parts)


class _CanonicalSampling(msgspec.Struct):
    """Fields in alphabetical order, as in all canonical JSON."""

    max_tokens: int
    min_p: float
    seed: int
    temperature: float
    top_k: int
    top_p: float


class _CanonicalRequest(msgspec.Struct):
    bos: str
    completion: str | None
    draws: int | None
    estimator: str
    kind: str
    labels: tuple[str, ...]
    messages: tuple[dict[str, str], ...] | None
    mode: str
    model: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...] | None
    revision: str | None
    sample_index: int
    sampling: _CanonicalSampling
    tail_sums: tuple[float, ...]
    template_sha256: str | None
    tokenizer_sha256: str | None
    top_k: int


def sampling(ask: AskSettings) -> Sampling:
    """Every sampling parameter of a run, as the rows record it; `seed` is the run's, each item's follows from it."""
    return Sampling(
        temperature=ask.temperature,
        top_p=ask.top_p,
        top_k=ask.sampling_top_k,
        min_p=ask.min_p,
        seed=ask.seed,
        max_tokens=ask.max_tokens,
    )


class Plan:
    """The items of a run, in the order of its prompts. After `items` is used up the counts say what was left out."""

    def __init__(
        self, config: RunConfig, tokens: TeacherTokens, known: Iterable[KeySet] = (), bookmark: Bookmark | None = None
    ) -> None:
        self._ask = config.ask
        self._kind = config.pool[0].wire_kind
        self._teacher = config.teacher
        self._tokens = tokens
        self._known = tuple(known)
        self._seen = KeySet()
        self._bookmark = bookmark
        self._behind = Mark() if bookmark is None else bookmark.mark
        self._encoder = msgspec.json.Encoder()
        self._sampling = _CanonicalSampling(
            max_tokens=config.ask.max_tokens,
            min_p=config.ask.min_p,
            seed=config.ask.seed,
            temperature=config.ask.temperature,
            top_k=config.ask.sampling_top_k,
            top_p=config.ask.top_p,
        )
        self.already_known = 0
        self.duplicates = 0
        self.planned = 0

    def key(self, prompt: Prompt, sample_index: int) -> str:
        """Hex sha256 of the canonical JSON of one request."""
        messages = None
        if prompt.messages is not None:
            messages = tuple({"content": one.content, "role": one.role} for one in prompt.messages)
        request = _CanonicalRequest(
            bos=self._ask.bos,
            completion=prompt.completion,
            draws=self._ask.draws if self._ask.estimator == "sampled" else None,
            estimator=self._ask.estimator,
            kind=self._kind,
            labels=self._ask.labels,
            messages=messages,
            mode=self._ask.mode,
            model=self._teacher.model,
            prompt=prompt.prompt,
            prompt_token_ids=prompt.prompt_token_ids,
            revision=self._teacher.revision,
            sample_index=sample_index,
            sampling=self._sampling,
            tail_sums=self._ask.tail_sums,
            template_sha256=self._tokens.template_sha256,
            tokenizer_sha256=self._tokens.tokenizer_sha256,
            top_k=self._ask.top_k,
        )
        return hashlib.sha256(self._encoder.encode(request)).hexdigest()

    def items(self, prompts: Iterable[Prompt]) -> Iterator[Item]:
        """What is still to be asked: keys that no set knows, each once."""
        remaining = iter(prompts)
        while batch := list(islice(remaining, _TOGETHER)):
            wanted = [
                (self.key(prompt, index), prompt, index) for prompt in batch for index in range(self._ask.samples)
            ]
            column = pa.chunked_array([pa.array([key for key, _, _ in wanted], type=pa.string())])
            found = [keys.contains(column) for keys in self._known if len(keys)]
            before = self._places(batch)
            for position, (key, prompt, index) in enumerate(wanted):
                if any(bool(one[position]) for one in found):
                    self.already_known += 1
                elif key in self._seen:
                    self.duplicates += 1
                else:
                    self._seen.add((key,))
                    self.planned += 1
                    if self._bookmark is not None and before:
                        self._bookmark.planned(key, before[position // self._ask.samples])
                    yield self._item(key, prompt, index)
            if self._bookmark is not None and before:
                self._bookmark.reached(before[-1])

    def _places(self, batch: list[Prompt]) -> list[Mark]:
        """The place before each prompt of the batch, and the one behind the last; empty where there are no places."""
        if self._bookmark is None or batch[0].after is None:
            return []
        marks = [prompt.after for prompt in batch if prompt.after is not None]
        places, self._behind = [self._behind, *marks], marks[-1]
        return places

    def _item(self, key: str, prompt: Prompt, sample_index: int) -> Item:
        return Item(
            key=key,
            prompt_id=prompt.id,
            sample_index=sample_index,
            prompt=prompt.prompt,
            messages=prompt.messages,
            prompt_token_ids=prompt.prompt_token_ids,
            completion=prompt.completion,
            seed=(self._ask.seed + int(key[:8], 16)) % 2**31,
            max_tokens=self._ask.max_tokens,
            source=prompt.source,
            licence=prompt.licence,
            reference=prompt.reference,
            domain=prompt.domain,
        )


def rejected_keys(table: Table) -> KeySet:
    """Keys of the rejects: what was paid for and refused once is not asked again."""
    keys = KeySet()
    if table.rejects.paths():
        keys.add_columns([sql(table, "SELECT key FROM rejects").column("key")])
    return keys
