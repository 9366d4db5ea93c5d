"""From a raw response in the journal to a row of the table, or to a reject with its reason: the same today and after a
crash, since the journal's entry holds everything that the row needs and nothing is looked up again."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from collectors.budget import cost_usd
from collectors.card import EndpointCard
from collectors.config import PriceSettings, RunConfig
from collectors.errors import Rejected
from collectors.gate import Clearance
from collectors.plan import Item, TeacherTokens, sampling
from collectors.providers import Provider
from storage.errors import InvalidRow
from storage.invariants import check_row
from storage.journal import RawResponse
from storage.ledgers import Reject
from storage.rows import Row, Sampling, TeacherRecord, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What all rows of one start of a run share."""

    run_id: str
    mode: str
    teacher: TeacherRecord
    tokens: TeacherTokens
    sampling: Sampling
    clearance: Clearance
    price: PriceSettings | None = None
    label_set: tuple[str, ...] | None = None


class _Entry(msgspec.Struct, kw_only=True):
    """The `item` of a journal entry. `rejected` is (code, detail) where no provider needs to read the body."""

    item: Item
    mode: str
    teacher: TeacherRecord
    tokens: TeacherTokens
    sampling: Sampling
    clearance: Clearance
    price: tuple[float, float] | None  # US dollars per million tokens, in and out
    label_set: tuple[str, ...] | None
    rejected: tuple[str, str] | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Entry)


def entry(shared: Provenance, item: Item, rejected: tuple[str, str] | None = None) -> bytes:
    """The `item` bytes of a journal entry for a response to this item."""
    price = shared.price
    return _ENCODER.encode(
        _Entry(
            item=item,
            mode=shared.mode,
            teacher=shared.teacher,
            tokens=shared.tokens,
            sampling=shared.sampling,
            clearance=shared.clearance,
            price=None if price is None else (price.input_per_million, price.output_per_million),
            label_set=shared.label_set,
            rejected=rejected,
        )
    )


def provenance(config: RunConfig, *, teacher: TeacherRecord, tokens: TeacherTokens, clearance: Clearance) -> Provenance:
    """What the rows of this start share, from its configuration and what was found out of the endpoint."""
    return Provenance(
        run_id=config.run_id,
        mode=config.ask.mode,
        teacher=teacher,
        tokens=tokens,
        sampling=sampling(config.ask),
        clearance=clearance,
        price=config.price,
        label_set=config.ask.labels or None,
    )


class Readers:
    """The provider that reads a response, by the endpoint card under which it was asked for."""

    def __init__(self, make: Callable[[EndpointCard | None], Provider], cards: Iterable[EndpointCard]) -> None:
        self._make = make
        self._cards = {card.digest: card for card in cards}
        self._made: dict[str | None, Provider] = {}

    def add(self, card: EndpointCard) -> Provider:
        """Know one more card; → its provider."""
        self._cards[card.digest] = card
        return self.reader(card.digest)

    def reader(self, digest: str | None) -> Provider:
        """The provider for the card of that digest."""
        if digest not in self._made:
            self._made[digest] = self._make(None if digest is None else self._cards.get(digest))
        return self._made[digest]


def tokenizer_digest(raw: RawResponse) -> str | None:
    """The tokenizer whose ids a response has, None where none was known."""
    return _DECODER.decode(raw.item).tokens.tokenizer_sha256


def label(raw: RawResponse, readers: Readers, run_id: str) -> Row | Reject:
    """Read one response; whatever is wrong with it becomes a reject's reason, never an exception."""
    found = _DECODER.decode(raw.item)
    try:
        if found.rejected is not None:
            raise Rejected(*found.rejected)
        row = _row(raw, found, readers.reader(found.teacher.endpoint_card), run_id)
        check_row(row)
    except Rejected as error:
        return _reject(raw, run_id, error.code, error.detail)
    except InvalidRow as error:
        return _reject(raw, run_id, "invalid_row", str(error))
    return row


def _reject(raw: RawResponse, run_id: str, code: str, detail: str) -> Reject:
    return Reject(
        key=raw.key,
        run_id=run_id,
        prompt_id=raw.prompt_id,
        reason=code,
        detail=detail[:2000],
        raw=raw.body,
        rejected_at=datetime.now(UTC),
        status=raw.status,
    )


def _row(raw: RawResponse, found: _Entry, provider: Provider, run_id: str) -> Row:
    item = found.item
    reading = provider.read(item, raw.body)
    prompt_ids = reading.prompt_token_ids if reading.prompt_token_ids is not None else item.prompt_token_ids
    return Row(
        key=raw.key,
        mode=found.mode,
        run_id=run_id,
        prompt_id=item.prompt_id,
        sample_index=item.sample_index,
        collected_at=raw.received_at,
        teacher=found.teacher,
        terms=found.clearance.terms,
        policy_bundle=found.clearance.policy_bundle,
        collect_verdict=found.clearance.collect_verdict,
        decision=found.clearance.decision,
        labels=reading.labels,
        messages=item.messages,
        prompt=item.prompt,
        completion=reading.text,
        reasoning=reading.reasoning,
        finish_reason=reading.finish_reason,
        prompt_token_ids=None if prompt_ids is None else _int32(prompt_ids),
        token_bytes=reading.token_bytes,
        target_positions=reading.target_positions,
        tail_sums=reading.tail_sums,
        top_weights=reading.top_weights,
        estimator=reading.estimator,
        label_set=found.label_set,
        logprob_space=reading.logprob_space,
        tokenizer_sha256=found.tokens.tokenizer_sha256,
        template_sha256=found.tokens.template_sha256,
        sampling=replace(found.sampling, seed=item.seed),
        response_id=reading.response_id,
        raw_sha256=hashlib.sha256(raw.body).hexdigest(),
        usage=_usage(reading.usage, found.price),
        prompt_source=item.source or None,
        prompt_licence=item.licence,
        flags=reading.flags,
        reference=item.reference,
        domain=item.domain,
    )


def _int32(ids: Sequence[int]) -> NDArray[np.int32]:
    if any(not 0 <= one < 2**31 for one in ids):
        raise Rejected("id_out_of_vocabulary", "an id of the prompt does not fit into 31 bits")
    return np.array(ids, dtype=np.int32)


def _usage(usage: Usage, price: tuple[float, float] | None) -> Usage:
    """With its cost; numbers that no request can take are not known, so that a budget counts the worst case."""
    counts = (usage.prompt_tokens, usage.completion_tokens)
    if any(count is not None and not 0 <= count < 2**31 for count in counts):
        usage = Usage()
    if price is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return usage
    cost = cost_usd(*price, usage.prompt_tokens, usage.completion_tokens)
    return replace(usage, cost_usd=cost)
