import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collectors.config import AskSettings, EndpointSettings, TeacherSettings
from collectors.http import HttpSender, Request, Response
from collectors.plan import Item
from collectors.providers import Provider, Reading, provider
from collectors.providers.embedded import EmbeddedServer
from collectors.tokenizer import Tokenizer, load_tokenizer

WIRE = Path(__file__).parent / "data" / "wire"


@pytest.fixture(scope="session")
def exchange() -> Callable[[str], dict[str, Any]]:
    """A recorded exchange by its name, such as `vllm/chat_top20`."""
    return lambda name: json.loads((WIRE / f"{name}.json").read_bytes())


@pytest.fixture(scope="session")
def teacher_server() -> Iterator[EmbeddedServer]:
    """A real llama.cpp with the real small teacher, two slots, started once."""
    with EmbeddedServer(context_length=512, slots=2, threads=1) as server:
        yield server


@pytest.fixture(scope="session")
def teacher_tokenizer(teacher_server: EmbeddedServer) -> Tokenizer:
    return load_tokenizer(teacher_server.gguf)


@pytest.fixture(scope="session")
def item() -> Callable[..., Item]:
    return lambda **changes: replace(Item(key="0" * 64, prompt_id="p", sample_index=0, seed=7, max_tokens=6), **changes)


@pytest.fixture(scope="session")
def made() -> Callable[..., Provider]:
    """A provider by its kind and what is asked of it."""

    def make(kind: str = "llamacpp", *, tokenizer: Any = None, card: Any = None, **ask: Any) -> Provider:
        address = {} if kind in ("embedded", "local") else {"base_url": "http://127.0.0.1:1"}
        return provider(
            kind,
            teacher=TeacherSettings(model="google/gemma-3-270m"),
            endpoint=EndpointSettings(kind=kind, **address),  # type: ignore[arg-type]
            ask=AskSettings(**ask),
            tokenizer=tokenizer,
            card=card,
        )

    return make


@pytest.fixture(scope="session")
def send(teacher_server: EmbeddedServer) -> Callable[[Request], Response]:
    async def once(request: Request) -> Response:
        async with HttpSender(teacher_server.base_url) as sender:
            return await sender.send(request)

    return lambda request: asyncio.run(once(request))


@pytest.fixture(scope="session")
def ask(send: Callable[[Request], Response]) -> Callable[[Provider, Item], tuple[Item, Reading]]:
    """All calls for an item, in their order, against the real teacher."""

    def go(one: Provider, asked: Item) -> tuple[Item, Reading]:
        while (first := one.prepare(asked)) is not None:
            answer = send(first)
            assert answer.status == 200, answer.body
            asked = one.prepared(asked, answer.body)
        answer = send(one.request(asked))
        assert answer.status == 200, answer.body
        return asked, one.read(asked, answer.body)

    return go
