"""A dozen tiny requests that find out what an endpoint really does with log-probabilities, as an endpoint card.

Documentation and defaults differ between versions of the same server, and a wrong assumption here makes rows that look
right. What a request cannot settle stays None on the card.
"""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import Any, Literal

import msgspec

from collectors.budget import Budget, Spend, worst_case
from collectors.card import EndpointCard, LogprobSpace
from collectors.config import AskSettings, EndpointSettings, PriceSettings, TeacherSettings
from collectors.errors import Rejected
from collectors.http import Request, Response, Sender
from collectors.normalise import Received
from collectors.paying import PayingSender
from collectors.plan import Item
from collectors.providers import KINDS, Engine, Provider, provider
from collectors.providers.answer import Answer
from collectors.retry import check_status, error_text
from collectors.tokenizer import Tokenizer, template_digest
from collectors.traits import best_first, finite, first_position, has_empty_lists, same, sentinels, space_of
from storage.rows import Message

_TEXT = "The still was charged at noon. By three o'clock the"
_FEW = 5
_MANY = 20  # what most servers allow at most
_LADDER = (20, 64, 256, 1024)
_REFUSALS = frozenset({400, 404, 405, 413, 422, 501})
_FEWEST = 8  # requests that even the simplest server is asked


async def probe(
    sender: Sender,
    *,
    teacher: TeacherSettings,
    endpoint: EndpointSettings,
    ask: AskSettings,
    tokenizer: Tokenizer | None = None,
    budget: Budget | None = None,
    price: PriceSettings | None = None,
) -> EndpointCard:
    """The card of one endpoint, paid out of `budget`.

    Raises TransportError, ServerBusy, EndpointStopped, BudgetSpent, or Rejected when nothing works.
    """
    return await _Examination(PayingSender(sender, budget, price), teacher, endpoint, ask, tokenizer).card()


def least_spend(endpoint: EndpointSettings, ask: AskSettings, price: PriceSettings | None) -> Spend:
    """What a probe takes at least, each request at its worst: with less left it need not begin."""
    if _speaks_for_itself(endpoint, ask):
        return Spend(1)
    item = Item(key="", prompt_id="probe", sample_index=0, prompt=_TEXT, max_tokens=1)
    return worst_case(price, item) * _FEWEST


def _speaks_for_itself(endpoint: EndpointSettings, ask: AskSettings) -> bool:
    """Whether the endpoint is a masked model or a function, which cannot generate."""
    return endpoint.kind == "local" and ask.mode in ("classify", "mask")


class _Examination:
    def __init__(
        self,
        sender: PayingSender,
        teacher: TeacherSettings,
        endpoint: EndpointSettings,
        ask: AskSettings,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._sender = sender
        self._teacher = teacher
        self._endpoint = endpoint
        self._ask = ask
        self._tokenizer = tokenizer
        self._strict: EndpointCard | None = None
        self._item = Item(key="", prompt_id="probe", sample_index=0, prompt=_TEXT, seed=7, max_tokens=8)
        self._received: list[Received] = []

    async def card(self) -> EndpointCard:
        engine = await self._engine()
        if _speaks_for_itself(self._endpoint, self._ask):
            return self._by_its_word(engine)
        first = await self._first()
        twice = [await self._received_for(replace(self._item, max_tokens=4)) for _ in range(2)]
        largest, limit = await self._largest_k(_FEW if first.received is not None else 0)
        space = await self._space()
        refused = self._strict is not None
        seen = first.received
        return EndpointCard(
            kind=self._endpoint.wire_kind,
            address=self._endpoint.base_url,
            served_model=engine.served_model,
            engine=engine.name,
            engine_version=self._version(engine),
            context_length=engine.context_length,
            vocabulary=engine.vocabulary or (self._tokenizer.vocabulary if self._tokenizer else None),
            template_sha256=None if engine.template is None else template_digest(engine.template),
            token_ids=first.received is not None,
            prompt_token_ids=first.prompt_token_ids is not None,
            largest_k=largest,
            k_limit=limit,
            scores_prompts=await self._scores(),
            logprob_space=space,
            best_first=None if seen is None else best_first(seen),
            extra_entry=None if seen is None else any(count > _FEW for count in seen.counts),
            sentinels=sentinels(self._received),
            empty_lists=any(has_empty_lists(one) for one in self._received),
            same_answer_twice=None if twice[0] is None or twice[1] is None else same(twice[0], twice[1]),
            adds_bos=self._adds_bos(first),
            tokenizer_adds_bos=self._tokenizer.adds_bos if self._tokenizer else None,
            echo=await self._echo(),
            unknown_fields="refused" if refused else await self._unknown_field(),
        )

    def _by_its_word(self, engine: Engine) -> EndpointCard:
        """A masked model or a function cannot generate, by which all else is measured; but its code is known."""
        return EndpointCard(
            kind=self._endpoint.wire_kind,
            address=self._endpoint.base_url,
            served_model=engine.served_model,
            engine=engine.name,
            engine_version=engine.version,
            context_length=engine.context_length,
            vocabulary=engine.vocabulary,
            token_ids=True,
            prompt_token_ids=True,
            largest_k=max(self._ask.top_k, len(self._ask.labels)),
            scores_prompts=True,
            logprob_space="raw",
        )

    def _version(self, engine: Engine) -> str | None:
        """llama.cpp inside a Python package does not know its own build."""
        if self._endpoint.kind != "embedded":
            return engine.version
        try:
            return f"xllamacpp {version('xllamacpp')}"
        except PackageNotFoundError:
            return engine.version

    def _provider(self, **changes: Any) -> Provider:
        ask = AskSettings(**{"top_k": _FEW, "temperature": 1.0} | changes)
        return provider(
            self._endpoint.kind,
            teacher=self._teacher,
            endpoint=self._endpoint,
            ask=ask,
            card=self._strict,
            tokenizer=self._tokenizer,
        )

    async def _engine(self) -> Engine:
        """What the server says of itself; silence is no fault, a wrong key is."""
        asker = self._provider()
        bodies: list[bytes | None] = []
        for request in asker.about:
            try:
                bodies.append((await self._send(request)).body)
            except Rejected:
                bodies.append(None)
        return asker.engine(bodies)

    async def _first(self) -> Answer:
        """Which way of asking works at all: text or, where only chat is served, messages; all fields or the standard's.

        Greedy and a little longer, since drafted tokens of speculative decoding show up there.
        """
        shapes = ((_TEXT, None), (None, (Message(role="user", content=_TEXT),)))
        refusal: Rejected | None = None
        for strict, (prompt, messages) in product((None, _strict_card(self._endpoint.wire_kind)), shapes):
            self._strict = strict
            asker = self._provider(temperature=0.0)
            try:
                self._item = await self._prepared(asker, replace(self._item, prompt=prompt, messages=messages))
                return await self._exchange(asker, replace(self._item, max_tokens=16))
            except Rejected as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    async def _received_for(self, item: Item, **changes: Any) -> Received | None:
        """None where the endpoint refuses the request, or answers it with what cannot be read."""
        try:
            return (await self._exchange(self._provider(**changes), item)).received
        except Rejected:
            return None

    async def _prepared(self, asker: Provider, item: Item) -> Item:
        while (needed := asker.prepare(item)) is not None:
            item = asker.prepared(item, (await self._send(needed)).body)
        return item

    async def _exchange(self, asker: Provider, item: Item) -> Answer:
        answer = asker.answer(item, _checked(await self._sender.ask(asker, item)).body)
        if answer.received is not None:
            self._received.append(answer.received)
        return answer

    async def _send(self, request: Request) -> Response:
        return _checked(await self._sender.send(request))

    async def _largest_k(self, known: int) -> tuple[int, int | None]:
        """Most candidates that came, and the number that was refused or cut; asked for upwards until it fails."""
        for k in sorted({*_LADDER, self._ask.top_k} - {0}) if known else ():
            received = await self._received_for(replace(self._item, max_tokens=1), top_k=k)
            if received is None or not len(received.counts):
                return known, k
            came = int(min(received.counts))
            known = max(known, min(came, k))
            if came < k:
                return known, k
        return known, None

    async def _space(self) -> LogprobSpace:
        """The first token at two temperatures, and with a narrow sampling: which of them shows in the numbers?"""
        item = replace(self._item, max_tokens=1)
        warm = await self._received_for(item, temperature=1.0, top_k=_MANY)
        cold = await self._received_for(item, temperature=0.5, top_k=_MANY)
        narrow = await self._received_for(item, temperature=1.0, top_k=_MANY, top_p=0.1)
        if warm is None or cold is None:
            return "unknown"
        if narrow is not None and finite(narrow) < finite(warm):
            return "processed"
        return space_of(first_position(warm), first_position(cold))

    async def _scores(self) -> bool:
        if self._item.messages is not None or "score" not in KINDS[self._endpoint.kind].modes:
            return False
        return await self._received_for(self._item, mode="score") is not None

    async def _unknown_field(self) -> Literal["ignored", "refused"] | None:
        asker, item = self._provider(), replace(self._item, max_tokens=1)
        try:
            _checked(await self._sender.ask(asker, item, _with_field(asker.request(item), "potstill_unknown_field", 1)))
        except Rejected:
            return "refused"
        return "ignored"

    async def _echo(self) -> Literal["works", "ignored", "refused"] | None:
        """Whether `echo`, by which completions would score a prompt, does anything."""
        if self._item.messages is not None or self._endpoint.wire_kind not in ("llamacpp", "openai"):
            return None
        body = {"model": self._endpoint.served_model or self._teacher.model, "prompt": _TEXT, "max_tokens": 1}
        sent = Request("POST", "/v1/completions", msgspec.json.encode(body | {"echo": True, "logprobs": 1}))
        try:
            response = await self._sender.ask(self._provider(), replace(self._item, max_tokens=1), sent)
            answer = msgspec.json.decode(_checked(response).body)
            return "works" if str(answer["choices"][0]["text"]).lstrip().startswith(_TEXT[:20]) else "ignored"
        except Rejected:
            return "refused"
        except (msgspec.DecodeError, LookupError, TypeError):
            return None

    def _adds_bos(self, first: Answer) -> bool | None:
        bos = self._tokenizer.bos_token_id if self._tokenizer else None
        if bos is None or self._item.messages is not None or first.prompt_token_ids is None:
            return None
        return first.prompt_token_ids[0] == bos


def _checked(response: Response) -> Response:
    """Raises Rejected where the server refuses this very request, else what check_status raises."""
    if response.status in _REFUSALS:
        raise Rejected("refused", error_text(response.body), raw=response.body, status=response.status)
    check_status(response)
    return response


def _strict_card(kind: str) -> EndpointCard:
    """What is assumed of a server that refuses the usual request: only the standard's fields."""
    return EndpointCard(
        kind=kind, token_ids=False, prompt_token_ids=False, largest_k=0, scores_prompts=False, unknown_fields="refused"
    )


def _with_field(request: Request, name: str, value: object) -> Request:
    body = msgspec.json.decode(request.body or b"{}")
    return replace(request, body=msgspec.json.encode(body | {name: value}))
