"""One slot and no prompt cache make llama.cpp's numbers repeatable, so its shapes can be compared to the last bit."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from collectors.http import HttpSender, Request, Response
from collectors.plan import Item, Message
from collectors.providers import Provider, Reading
from collectors.providers.embedded import EmbeddedServer
from collectors.tokenizer import Tokenizer, load_tokenizer

Make = Callable[..., Provider]
NewItem = Callable[..., Item]
Ask = Callable[[Provider, Item], tuple[Item, Reading]]
PROMPTS = ("The still was charged at noon; 今日は 🦊", "Once")
CHAT = (
    Message(role="system", content="Answer in one short sentence."),
    Message(role="user", content="Is a husky a dog? 🐺"),
)


@pytest.fixture(scope="module")
def one_slot() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(context_length=512, slots=1, threads=1) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer(one_slot: EmbeddedServer) -> Tokenizer:
    return load_tokenizer(one_slot.gguf)


@pytest.fixture(scope="module")
def ask(one_slot: EmbeddedServer) -> Ask:
    async def once(request: Request) -> Response:
        async with HttpSender(one_slot.base_url) as sender:
            return await sender.send(request)

    def go(one: Provider, asked: Item) -> tuple[Item, Reading]:
        while (first := one.prepare(asked)) is not None:
            asked = one.prepared(asked, asyncio.run(once(first)).body)
        return asked, one.read(asked, asyncio.run(once(one.request(asked))).body)

    return go


def assert_same_row(one: Reading, other: Reading) -> None:
    """Everything that goes into the table, but the id of the response."""
    assert one.labels is not None and other.labels is not None and len(one.labels) > 0
    for field in fields(one.labels):
        mine, theirs = getattr(one.labels, field.name), getattr(other.labels, field.name)
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f"), field.name
    without: dict[str, Any] = {"labels": None, "response_id": None, "model": None}
    assert replace(one, **without) == replace(other, **without)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_both_completions_give_identical_rows(
    made: Make, item: NewItem, ask: Ask, tokenizer: Tokenizer, prompt: str, temperature: float
) -> None:
    asked, own = ask(made("llamacpp", top_k=20, temperature=temperature), item(prompt=prompt, max_tokens=6))
    shape = made("openai", top_k=20, temperature=temperature, tokenizer=tokenizer)
    _, standard = ask(shape, replace(asked, prompt=None))
    assert_same_row(own, standard)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_chat_shape_is_the_completion_over_its_rendered_ids(
    made: Make, item: NewItem, ask: Ask, temperature: float
) -> None:
    one = made("llamacpp", top_k=20, temperature=temperature)
    asked, chat = ask(one, item(messages=CHAT, max_tokens=6))
    assert asked.prompt_token_ids is not None and "husky" in (asked.prompt or "")
    _, completion = ask(one, replace(asked, messages=None))
    assert_same_row(chat, completion)
