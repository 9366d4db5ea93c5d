"""Whatever a server puts in any place of a 200: a row or a reject, never an error that would stop the run, and stop it
again at each start, since the journal keeps the body until it was read."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from collectors.card import EndpointCard
from collectors.gate import Clearance
from collectors.labelling import Provenance, Readers, entry, label
from collectors.plan import Item, TeacherTokens, sampling
from collectors.providers import Provider
from storage.journal import RawResponse
from storage.ledgers import Reject
from storage.rows import Message, Row, TeacherRecord, rows_to_arrow
from tests.collectors.test_sglang import OWN, TOPS, flat

HOSTILE = [
    b"null", b"true", b'""', b'"12"', b"[]", b"[[]]", b"[null]", b"{}", b"-1", b"0", b"-0.0", b"1.5", b"2147483648",
    b"1099511627776", b"9223372036854775808", b"-9223372036854775809", b"1" * 5000, b"1e308", b"1e400", b"NaN",
    b"-Infinity", b"[1e30]", b"[9223372036854775808]", b"[-5]", b'"\\ud800"', b'"\\u0000"', b'"\xff"',
    b'"token_id:' + b"9" * 5000 + b'"', b'"token_id:99999999999"', b"[" * 5000 + b"]" * 5000,
]  # fmt: skip
CHAT = (Message(role="user", content="hi"),)
SCORED = {"input_token_logprobs": OWN, "prompt_tokens": 4, "completion_tokens": 1, "id": "r"}
GENERATED = {
    "prompt_tokens": 2, "completion_tokens": 3, "output_token_logprobs": OWN[1:], "output_top_logprobs": TOPS[1:]
}  # fmt: skip
TOKENS = [{"id": 12, "logprob": -0.4055}, {"id": 13, "logprob": -1.7918}]
OF_TGI = {
    "generated_text": "ab",
    "details": {
        "finish_reason": "length", "generated_tokens": 1, "prefill": [{"id": 2}, {"id": 5}], "tokens": TOKENS[:1],
        "top_tokens": [TOKENS],
    },
}  # fmt: skip
ENDPOINTS: dict[str, tuple[str, str | dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama.cpp": ("llamacpp", "llamacpp/completion_top8", {"prompt": "x"}, {"top_k": 8}),
    "llama.cpp chat": ("llamacpp", "llamacpp/chat_top20", {"messages": CHAT}, {"top_k": 20}),
    "vLLM": ("vllm", "vllm/completions_generate_top8_as_token_ids", {"prompt": "x"}, {"top_k": 8}),
    "vLLM chat": ("vllm", "vllm/chat_top20_token_ids", {"messages": CHAT}, {"top_k": 20}),
    "vLLM score": ("vllm", "vllm/completions_score_top16", {"prompt": "x"}, {"top_k": 16, "mode": "score"}),
    "OpenAI chat": ("openai", "vllm/chat_top20", {"messages": CHAT}, {"top_k": 20}),
    "SGLang": ("sglang", {"text": "x", "meta_info": GENERATED}, {"prompt_token_ids": (2, 5)}, {"top_k": 2}),
    "SGLang lists": (
        "sglang", {"text": "x", "meta_info": SCORED | {"input_top_logprobs": TOPS}},
        {"prompt": "x", "prompt_token_ids": (11, 12, 13, 14)}, {"top_k": 2, "mode": "score"},
    ),
    "SGLang blocks": (
        "sglang", {"text": "x", "meta_info": SCORED | flat()},
        {"prompt": "x", "prompt_token_ids": (11, 12, 13, 14)}, {"top_k": 2, "mode": "score"},
    ),
    "TGI": ("tgi", OF_TGI, {"prompt": "x", "prompt_token_ids": (2, 5)}, {"top_k": 2}),
}  # fmt: skip


def places(node: Any, at: tuple[Any, ...] = (), seen: set[tuple[Any, ...]] | None = None) -> Iterator[tuple[Any, ...]]:
    """Each kind of place once: of the entries of a list and of names that are ids the first that has what is there."""
    seen = set() if seen is None else seen
    kind = tuple("*" if isinstance(step, int) or step.isdecimal() else step for step in at)
    if (kind, node is None) not in seen:
        seen.add((kind, node is None))
        yield at
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for step, inner in entries:
        yield from places(inner, (*at, step), seen)


def with_hole(body: Any, at: tuple[Any, ...]) -> bytes:
    """The body with "HERE" at a place."""
    if not at:
        return b'"HERE"'
    inner = body
    for step in at[:-1]:
        inner = inner[step]
    before, inner[at[-1]] = inner[at[-1]], "HERE"
    text = json.dumps(body).encode()
    inner[at[-1]] = before
    return text


def prompt_tokens(body: Any) -> int:
    return int(body["tokens_evaluated"] if "tokens_evaluated" in body else body["usage"]["prompt_tokens"])


@pytest.mark.parametrize("name", ENDPOINTS)
def test_any_value_in_any_place_makes_a_row_or_a_reject(
    name: str, made: Callable[..., Provider], exchange: Callable[[str], Any], item: Callable[..., Item]
) -> None:
    kind, recorded, given, asked = ENDPOINTS[name]
    body = json.loads(json.dumps(exchange(recorded)["body"] if isinstance(recorded, str) else recorded))
    one = item(**given)
    if kind == "llamacpp":
        one = replace(one, prompt_token_ids=tuple(range(prompt_tokens(body))))
    card = EndpointCard(
        kind=kind, token_ids=kind != "openai", prompt_token_ids=True, largest_k=100, scores_prompts=True,
        vocabulary=262_144,
    )  # fmt: skip
    provider = made(kind, card=card, **asked)
    shared = Provenance(
        run_id="r",
        mode=asked.get("mode", "generate"),
        teacher=TeacherRecord(model="m", provider=kind, access_path="self_host", endpoint_card=card.digest),
        tokens=TeacherTokens("a" * 64, None),
        sampling=sampling(provider._ask),  # type: ignore[attr-defined]
        clearance=Clearance(("t@1",), "b", "allow", "0" * 64),
    )
    readers = Readers(lambda _: provider, [card])

    def read(text: bytes) -> Row | Reject:
        raw = RawResponse(
            key="0" * 64, prompt_id="p", sample_index=0, item=entry(shared, one), status=200, headers={}, body=text,
            received_at=datetime.now(UTC),
        )  # fmt: skip
        return label(raw, readers, "r")

    assert isinstance(read(json.dumps(body).encode()), Row)
    for at in list(places(body)):
        holed = with_hole(body, at)
        for value in HOSTILE:
            found = read(holed.replace(b'"HERE"', value))
            if isinstance(found, Row):
                rows_to_arrow([found])
                assert found.usage is not None
                usage = (found.usage.prompt_tokens, found.usage.completion_tokens)
                assert all(count is None or 0 <= count < 2**31 for count in usage), (at, value[:20], usage)
            else:
                assert found.reason and found.detail and found.raw, (at, value[:20])
