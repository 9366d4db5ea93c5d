"""Hard limits on what a run may spend: the worst case is reserved before a request, the truth replaces it after.

A request whose answer never came may have been served and billed: its worst case stays spent. That is the price of
never going over.
"""

import asyncio
from dataclasses import dataclass

from collectors.config import BudgetSettings, PriceSettings
from collectors.errors import BudgetSpent
from collectors.plan import Item

# What a chat template may put around each message, in tokens; the widest of the common ones takes 14.
_TEMPLATE_TOKENS = 32
_BYTES_PER_TOKEN = 4.0


@dataclass(frozen=True, slots=True)
class Spend:
    """What requests took, or could take at worst: a count, tokens in and out, US dollars."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens in and out together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Spend") -> "Spend":
        return Spend(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.usd + other.usd,
        )

    def __mul__(self, times: int) -> "Spend":
        return Spend(
            self.requests * times, self.prompt_tokens * times, self.completion_tokens * times, self.usd * times
        )

    def __sub__(self, other: "Spend") -> "Spend":
        return self + other * -1


def cost_usd(input_per_million: float, output_per_million: float, prompt_tokens: int, completion_tokens: int) -> float:
    """US dollars for so many tokens at so many US dollars per million of each."""
    return (input_per_million * prompt_tokens + output_per_million * completion_tokens) / 1e6


def spend(price: PriceSettings | None, prompt_tokens: int, completion_tokens: int) -> Spend:
    """One request of so many tokens at this price; without a price it costs nothing."""
    usd = 0.0
    if price is not None:
        usd = cost_usd(price.input_per_million, price.output_per_million, prompt_tokens, completion_tokens)
    return Spend(1, prompt_tokens, completion_tokens, usd)


def worst_case(price: PriceSettings | None, item: Item) -> Spend:
    """The most that one request can take: a token for each byte of its prompt, and all of `max_tokens`."""
    return spend(price, _prompt_tokens(item, 1.0), item.max_tokens)


def likely_case(price: PriceSettings | None, item: Item) -> Spend:
    """What one request takes if the prompt is plain English and the answer as long as allowed."""
    return spend(price, _prompt_tokens(item, _BYTES_PER_TOKEN), item.max_tokens)


def _prompt_tokens(item: Item, bytes_per_token: float) -> int:
    if item.prompt_token_ids is not None:
        return len(item.prompt_token_ids) + len((item.completion or "").encode())
    return round(item.prompt_bytes / bytes_per_token) + _TEMPLATE_TOKENS * (1 + len(item.messages or ()))


class Budget:
    """What is spent and what is reserved, against what is allowed; `spent` counts earlier starts of the run too."""

    def __init__(self, allowed: BudgetSettings, spent: Spend | None = None) -> None:
        self._allowed = allowed
        self._settled = asyncio.Event()
        self._aside = Spend()
        self.spent = spent or Spend()
        self.reserved = Spend()

    @property
    def counts_requests(self) -> bool:
        """Whether requests themselves are bounded, so that even one without tokens costs something."""
        return self._allowed.requests is not None

    def check(self, least: Spend, purpose: str) -> None:
        """Raise BudgetSpent, naming the purpose, when what is left does not cover so much."""
        if (excess := self._excess(least, purpose)) is not None:
            raise BudgetSpent(excess)

    def set_aside(self, worst: Spend, purpose: str) -> None:
        """Keep so much for later: nothing else gets it before `release`. Raises BudgetSpent as `check` does."""
        self.check(worst, purpose)
        self._aside += worst

    def release(self, worst: Spend) -> None:
        """Give back what was set aside."""
        self._aside -= worst
        self._settled.set()

    async def reserve(self, worst: Spend) -> None:
        """Set the worst case of a request aside, waiting for those in flight where that may help.

        Raises BudgetSpent when it does not fit with nothing left in flight.
        """
        while (excess := self._excess(worst, "the worst case of another request")) is not None:
            if self.reserved.requests == 0:
                raise BudgetSpent(excess)
            self._settled.clear()
            await self._settled.wait()
        self.reserved += worst

    def _excess(self, worst: Spend, purpose: str) -> str | None:
        total = self.spent + self.reserved + self._aside + worst
        for name, allowed, needed in (
            ("requests", self._allowed.requests, total.requests),
            ("tokens", self._allowed.tokens, total.tokens),
            ("usd", self._allowed.usd, total.usd),
        ):
            # A dollar sum is of floats: a billionth over is rounding, not spending.
            if allowed is not None and needed > allowed + 1e-9:
                return (
                    f"What is left of the budget of {allowed:,g} {name} does not cover {purpose}; "
                    f"raise budget.{name} and run the same command again to go on."
                )
        return None

    def settle(self, worst: Spend, actual: Spend) -> None:
        """Replace what was reserved for a request by what it took."""
        self.reserved -= worst
        self.spent += actual
        self._settled.set()
