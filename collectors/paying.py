"""Requests beside the plan: a probe's and the canaries'. They are paid out of the run's budget like all others."""

from collectors.budget import Budget, Spend, spend, worst_case
from collectors.config import BudgetSettings, PriceSettings
from collectors.errors import Rejected
from collectors.http import Request, Response, Sender
from collectors.plan import Item
from collectors.providers import Provider
from collectors.retry import OVERLOAD


class PayingSender:
    """Sends what the budget covers: each request's worst case is reserved before it goes out, the truth counted after.

    budget: None where no run pays (`potstill probe`). Both methods raise BudgetSpent, and what the sender raises.
    """

    def __init__(self, sender: Sender, budget: Budget | None = None, price: PriceSettings | None = None) -> None:
        self._sender = sender
        self._budget = Budget(BudgetSettings()) if budget is None else budget
        self._price = price

    async def send(self, request: Request) -> Response:
        """One exchange that no model has to work for: a request, and no tokens."""
        await self._budget.reserve(Spend(1))
        try:
            return await self._sender.send(request)
        finally:
            self._budget.settle(Spend(1), Spend(1))

    async def ask(self, asker: Provider, item: Item, request: Request | None = None) -> Response:
        """Send the request for an item, or `request` in its place: tokens by its usage, or the worst case."""
        worst = took = worst_case(self._price, item)
        request = asker.request(item) if request is None else request
        await self._budget.reserve(worst)
        try:
            response = await self._sender.send(request)
            took = self._took(asker, item, response, worst)
            return response
        finally:
            self._budget.settle(worst, took)

    def _took(self, asker: Provider, item: Item, response: Response, worst: Spend) -> Spend:
        if 400 <= response.status < 500 or response.status in OVERLOAD:
            return Spend(1)
        try:
            usage = asker.answer(item, response.body).usage
        except Rejected:
            return worst
        known = [count for count in (usage.prompt_tokens, usage.completion_tokens) if count is not None and count >= 0]
        return spend(self._price, *known) if len(known) == 2 else worst
