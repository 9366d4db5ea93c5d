import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.budget import Budget, Spend, likely_case, spend, worst_case
from collectors.config import BudgetSettings, PriceSettings
from collectors.errors import BudgetSpent
from collectors.plan import Item
from storage.rows import Message
from tests.collectors.virtual_time import run

PRICE = PriceSettings(input_per_million=1.0, output_per_million=4.0)


def item(prompt: str, max_tokens: int = 10) -> Item:
    return Item(key="k", prompt_id="p", sample_index=0, prompt=prompt, max_tokens=max_tokens)


def test_the_worst_case_covers_a_token_for_each_byte_and_the_whole_answer() -> None:
    worst = worst_case(PRICE, item("日本" * 10))
    assert worst.prompt_tokens >= 60
    assert worst.completion_tokens == 10
    assert worst.usd == pytest.approx((worst.prompt_tokens * 1 + 10 * 4) / 1e6)
    assert likely_case(PRICE, item("日本" * 10)).tokens < worst.tokens
    messages = Item(key="k", prompt_id="p", sample_index=0, messages=(Message(role="user", content="abc"),))
    assert worst_case(None, messages).prompt_tokens >= len("userabc")
    exact = Item(key="k", prompt_id="p", sample_index=0, prompt="abc", prompt_token_ids=(1, 2), max_tokens=1)
    assert worst_case(None, exact) == spend(None, 2, 1)


def test_what_is_in_flight_is_waited_for_before_the_budget_counts_as_spent() -> None:
    async def story() -> list[str]:
        budget = Budget(BudgetSettings(tokens=100))
        seen: list[str] = []

        async def second() -> None:
            await budget.reserve(spend(None, 30, 30))
            seen.append("second")

        await budget.reserve(spend(None, 30, 30))
        waiting = asyncio.create_task(second())
        await asyncio.sleep(1)
        seen.append("settled")
        budget.settle(spend(None, 30, 30), spend(None, 10, 10))
        await waiting
        return seen

    assert run(story()) == ["settled", "second"]


def test_a_budget_without_room_says_which_and_what_to_do() -> None:
    async def story() -> None:
        budget = Budget(BudgetSettings(requests=2), Spend(requests=2))
        with pytest.raises(BudgetSpent, match=r"2 requests.*budget\.requests") as caught:
            await budget.reserve(spend(None, 1, 1))
        assert caught.value.exit_code == 4

    run(story())


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 100)), min_size=1, max_size=40),
)
def test_no_order_of_answers_passes_the_budget(tokens: int, asked: list[tuple[int, int, int]]) -> None:
    """Each request reserves its worst case, takes its time, and uses any part of it."""

    async def story() -> Budget:
        budget = Budget(BudgetSettings(tokens=tokens, usd=tokens * 4e-6), None)

        async def one(prompt: int, completion: int, used: int) -> None:
            worst = spend(PRICE, prompt, completion)
            try:
                await budget.reserve(worst)
            except BudgetSpent:
                return
            assert (budget.spent + budget.reserved).tokens <= tokens
            await asyncio.sleep(used)
            budget.settle(worst, spend(PRICE, prompt * used // 100, completion * used // 100))

        await asyncio.gather(*(one(*request) for request in asked))
        return budget

    budget = run(story())
    assert budget.spent.tokens <= tokens
    assert budget.spent.usd <= tokens * 4e-6 + 1e-12
    assert budget.reserved.requests == 0
    assert abs(budget.reserved.usd) < 1e-12
