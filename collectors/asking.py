"""One endpoint and all that guards it: slots, pauses, allowances, budget, tries. `ask` gets one item a whole answer.

What was reserved for an answer stays reserved until its usage is read: the run then calls `settle`.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

from collectors import limits
from collectors.budget import Budget, Spend, likely_case, spend, worst_case
from collectors.config import LimitSettings, PriceSettings
from collectors.errors import EndpointStopped, Poison, Rejected, ServerBusy, Transient, TransportError
from collectors.http import Request, Response, Sender
from collectors.limits import EndpointLimit, Grant
from collectors.plan import Item
from collectors.providers import Provider
from collectors.retry import OVERLOAD, allowed_per_minute, attempts, check_status, exhausted_for
from collectors.slots import Slots

# The row that an engine died of twice is set aside: a third time would take the others' answers down with it again.
POISON_DEATHS = 2
_HEALTH = Request("GET", "/health")
_HEALTH_SECONDS = 5.0
# Large models take a quarter of an hour to load; after a second a look, then ever later, up to ten.
_RESTART_LOOKS = 95
_LONGEST_LOOK = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole 200 response, when it came, and what is still reserved for it."""

    item: Item
    response: Response
    received_at: datetime
    worst: Spend
    grant: Grant
    endpoint: "Endpoint"


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request, what it may take, and whether its answer says that the engine is well (a tokenizer's does not)."""

    request: Request
    worst: Spend
    estimate: float
    decisive: bool


@dataclass(frozen=True, slots=True)
class _Sent:
    response: Response
    grant: Grant


class Endpoint:
    """Asks one endpoint within its limits; `sent` counts requests, `answered` whole 200 responses.

    `card` is the digest of its endpoint card, which the rows of its answers name.

    `watched` says whether its queue is looked at, every two seconds: not out of a budget that counts requests.

    `exchanging` holds the tasks whose request is on the wire: cancelling another one costs nothing.
    """

    def __init__(
        self,
        sender: Sender,
        provider: Provider,
        *,
        card: str,
        allowed: LimitSettings,
        price: PriceSettings | None,
        budget: Budget,
    ) -> None:
        self.sender = sender
        self.card = card
        self.provider = provider
        self.slots = Slots(allowed.concurrency)
        self.watched = self.slots.adaptive and not budget.counts_requests
        self.limit = EndpointLimit(
            requests_per_minute=allowed.requests_per_minute, tokens_per_minute=allowed.tokens_per_minute
        )
        self.sent = self._booked = 0
        self.answered = 0
        self.exchanging: set[asyncio.Task[object]] = set()
        self._attempts = allowed.attempts
        self._price = price
        self._budget = budget
        self._mean_completion: float | None = None
        # One suspect at a time: when the engine dies again it is clear of which row.
        self._suspects = asyncio.Lock()

    async def ask(self, item: Item) -> Answer:
        """Get the item prepared and answered. What prepares it takes a request of the limits and the budget.

        Raises Rejected when the item cannot be answered (Poison when the engine fails on it alone), a Transient error
        when its tries are used up, EndpointStopped, BudgetSpent.
        """
        while (first := self.provider.prepare(item)) is not None:
            told = await self._insist(_Ask(first, Spend(1), 0.0, decisive=False))
            self._budget.settle(Spend(1), Spend(1))
            self.limit.settle(told.grant, 0)
            item = self.provider.prepared(item, told.response.body)
        worst = worst_case(self._price, item)
        sent = await self._insist(_Ask(self.provider.request(item), worst, self._estimate(item), decisive=True))
        return Answer(item, sent.response, datetime.now(UTC), worst, sent.grant, self)

    async def _insist(self, ask: "_Ask") -> "_Sent":
        deaths = 0
        answered_at_first_failure: int | None = None
        try:
            async for attempt in attempts(self._attempts):
                with attempt:
                    try:
                        if deaths == 0:
                            return await self._once(ask)
                        async with self._suspects:
                            await self._back()
                            return await self._once(ask)
                    except Transient as error:
                        if answered_at_first_failure is None:
                            answered_at_first_failure = self.answered
                        if isinstance(error, TransportError):
                            deaths += not await self._alive()
                        if deaths >= POISON_DEATHS:
                            raise Poison("poison", f"the engine died {deaths} times of this row: {error}") from error
                        raise
        except Transient as error:
            if answered_at_first_failure is not None and self.answered > answered_at_first_failure:
                detail = f"{self._attempts} tries failed while other rows were answered: {error}"
                raise Poison("poison", detail, status=error.status) from error
            raise
        raise AssertionError("tenacity ends by returning or raising")

    async def _once(self, ask: "_Ask") -> "_Sent":
        await self._budget.reserve(ask.worst)
        took = Spend()
        try:
            async with self.slots:
                self._book_others()
                grant = await self.limit.acquire(ask.estimate)
                took = ask.worst  # from here on it may be billed, until the answer says otherwise
                return _Sent(await self._exchange(ask, grant), grant)
        except BaseException as error:
            self._budget.settle(ask.worst, Spend(ask.worst.requests) if _not_billed(error) else took)
            raise

    def _book_others(self) -> None:
        """What the probe, the canaries and the looks at its health sent counts at the endpoint too."""
        others = self.sender.sent - self.sent
        self.limit.book(others - self._booked)
        self._booked = others

    async def _exchange(self, ask: "_Ask", grant: Grant) -> Response:
        self.sent += 1
        task = asyncio.current_task()
        assert task is not None
        self.exchanging.add(task)
        try:
            response = await self.sender.send(ask.request)
            check_status(response)
        except TransportError as error:
            self.limit.failed(grant, str(error))
            raise
        except ServerBusy as error:
            if error.status in OVERLOAD:
                self.slots.refused()
                self.limit.refused(grant, error.retry_after, str(error))
            else:
                self.limit.failed(grant, str(error))
            raise
        except (Rejected, EndpointStopped):
            self.limit.answered(grant)
            raise
        except BaseException:
            self.limit.withdrawn(grant)
            raise
        finally:
            self.exchanging.discard(task)
        if ask.decisive:
            self.answered += 1
            self.limit.answered(grant)
        else:
            self.limit.withdrawn(grant)
        self._heed(response)
        return response

    async def _back(self) -> None:
        """Wait for an engine that died to be up again, so that its next death is a death and not the same one."""
        for look in range(_RESTART_LOOKS):
            if await self._alive():
                return
            await asyncio.sleep(limits.FIRST_PAUSE_SECONDS * min(look + 1, _LONGEST_LOOK))

    def _heed(self, response: Response) -> None:
        """Follow what a good answer says of the limits, so that none is refused later."""
        names = response.headers
        if "x-ratelimit-limit-requests" in names and (allowed := allowed_per_minute(names)) is not None:
            self.limit.allow(allowed)
        if (seconds := exhausted_for(names, datetime.now(UTC))) is not None:
            self.limit.exhausted(seconds)

    async def _alive(self) -> bool:
        """Whether the server still answers at all after a request that it did not. Raises BudgetSpent."""
        await self._budget.reserve(Spend(1))
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                response = await self.sender.send(_HEALTH)
        except (TransportError, Rejected, TimeoutError):
            return False
        finally:
            self._budget.settle(Spend(1), Spend(1))
        return response.status < 500

    def _estimate(self, item: Item) -> float:
        likely = likely_case(self._price, item)
        if self._mean_completion is None:
            return likely.tokens
        return likely.prompt_tokens + min(float(item.max_tokens), self._mean_completion)

    def settle(self, answer: Answer, prompt_tokens: int | None, completion_tokens: int | None) -> Spend:
        """Replace what was reserved for an answer by its usage; what the server does not say counts as the worst."""
        actual = spend(
            self._price,
            answer.worst.prompt_tokens if prompt_tokens is None else prompt_tokens,
            answer.worst.completion_tokens if completion_tokens is None else completion_tokens,
        )
        self._budget.settle(answer.worst, actual)
        self.limit.settle(answer.grant, actual.tokens)
        self.slots.answered(actual.tokens)
        mean = self._mean_completion
        new = float(actual.completion_tokens)
        self._mean_completion = new if mean is None else mean + 0.05 * (new - mean)
        return actual


def _not_billed(error: BaseException) -> bool:
    """A request that was turned away took no tokens; any other failure may have been served before it was lost."""
    if isinstance(error, Rejected):
        return error.code != "body_too_large"
    return isinstance(error, EndpointStopped) or (isinstance(error, ServerBusy) and error.status in OVERLOAD)
