import asyncio
import io
import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rich.console import Console

from collectors.card import EndpointCard, card_table, contradictions, read_card, warnings
from collectors.config import AskSettings, EndpointSettings, TeacherSettings
from collectors.errors import EndpointStopped, Rejected, ServerBusy
from collectors.http import FakeSender, HttpSender, Request, Response
from collectors.probe import probe
from collectors.providers.embedded import EmbeddedServer
from collectors.tokenizer import Tokenizer

TEACHER = TeacherSettings(model="m")
LOGITS = [math.log(p) for p in [0.3, 0.2, 0.15, 0.1] + [0.25 / 36] * 36]


class Server:
    """An OpenAI-compatible server of forty tokens whose habits can be chosen."""

    def __init__(self, **habits: Any) -> None:
        self.habits = habits
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            models = {"data": [{"id": "m", "max_model_len": 4096, "owned_by": "acme"}]}
            return self._response(200, models)
        body = json.loads(request.body or b"{}")
        self.bodies.append(body)
        if (status := self.habits.get("status")) is not None:
            return self._response(status, {"error": {"message": "no"}})
        if self.habits.get("chat_only") and request.path == "/v1/completions":
            return self._response(404, {"error": {"message": "Not Found"}})
        known = {"model", "max_tokens", "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "n"}
        known |= {"stream", "logprobs", "top_logprobs", "prompt", "messages", "echo"}
        if self.habits.get("strict") and set(body) - known:
            return self._response(400, {"error": {"message": "Unrecognized request argument"}})
        k = body.get("top_logprobs", body.get("logprobs"))
        if k > self.habits.get("limit", 10**6) and not self.habits.get("cuts"):
            return self._response(400, {"error": {"message": "too many logprobs"}})
        return self._response(200, self._answer(body, min(k, self.habits.get("limit", 10**6))))

    def _answer(self, body: dict[str, Any], k: int) -> dict[str, Any]:
        logits = LOGITS
        if self.habits.get("space") in ("scaled", "processed"):
            logits = [x / max(body["temperature"], 1e-3) for x in logits]
        total = max(logits) + math.log(sum(math.exp(x - max(logits)) for x in logits))
        logprobs: list[float | None] = [x - total for x in logits]
        if self.habits.get("space") == "processed" and body["top_p"] < 1:
            logprobs = [logprobs[0], *[self.habits.get("nothing", -9999.0)] * 39]
        tops = [{"id": i, "token": "t", "logprob": logprobs[i]} for i in range(min(k, 40))]
        if self.habits.get("worst_first"):
            tops.reverse()
        if self.habits.get("extra"):
            tops.insert(0, {"id": 39, "token": "t", "logprob": logprobs[39]})
        position = {"id": 39 if self.habits.get("extra") else 0, "token": "t", "top_logprobs": tops}
        position["logprob"] = logprobs[position["id"]]
        content = [position] * body["max_tokens"]
        if self.habits.get("speculative") and len(content) > 1:
            content[1] = position | {"logprob": 0.0, "top_logprobs": []}
        if self.habits.get("moody"):
            content = [one | {"id": len(self.bodies) % 40} for one in content]
        message = {"content": "t", "text": "t"}
        usage = {"prompt_tokens": 3, "completion_tokens": len(content)}
        text = (body.get("prompt") or "") if body.get("echo") and self.habits.get("echoes") else "t"
        prompt_ids = self.habits.get("prompt_ids")
        choice = {
            "prompt_token_ids": prompt_ids,
            "message": message,
            "text": text,
            "logprobs": {"content": content},
            "finish_reason": "length",
        }
        return {"choices": [choice], "usage": usage, "id": "x", "model": "m"}

    def _response(self, status: int, body: dict[str, Any]) -> Response:
        return Response(status=status, headers={}, body=json.dumps(body).encode(), seconds=0.0)


def card_of(server: Callable[[Request], Response], tokenizer: Tokenizer | None = None, **ask: Any) -> EndpointCard:
    endpoint, asked = EndpointSettings(kind="openai", base_url="http://127.0.0.1:1"), AskSettings(**ask)
    sender = FakeSender(server)
    return asyncio.run(probe(sender, teacher=TEACHER, endpoint=endpoint, ask=asked, tokenizer=tokenizer))


def test_the_real_embedded_teacher(teacher_server: EmbeddedServer, teacher_tokenizer: Tokenizer) -> None:
    async def go() -> EndpointCard:
        async with HttpSender(teacher_server.base_url) as sender:
            endpoint = EndpointSettings(kind="embedded")
            return await probe(
                sender, teacher=TEACHER, endpoint=endpoint, ask=AskSettings(), tokenizer=teacher_tokenizer
            )

    card = asyncio.run(go())
    assert (card.kind, card.engine, card.context_length, card.vocabulary) == ("llamacpp", "llama.cpp", 512, 262144)
    assert card.engine_version is not None and card.engine_version.startswith("xllamacpp ")
    assert card.token_ids and card.prompt_token_ids and card.largest_k == 1024 and card.k_limit is None
    assert card.logprob_space == "raw" and card.best_first is True and card.extra_entry is False
    assert card.adds_bos is True and card.tokenizer_adds_bos is True
    assert card.echo == "ignored" and card.unknown_fields == "ignored" and not card.scores_prompts
    assert card.sentinels == () and not card.empty_lists and card.template_sha256 is not None
    assert contradictions(card, AskSettings()) == []
    assert asyncio.run(go()).digest == card.digest
    assert read_card(card.to_json()) == card


def test_a_plain_server_in_a_dozen_requests() -> None:
    server = Server()
    card = card_of(server)
    assert card.engine == "acme" and card.context_length == 4096 and card.logprob_space == "raw"
    assert card.same_answer_twice is True and card.largest_k == 40 and card.k_limit == 64
    assert len(server.bodies) <= 12
    assert max(body["max_tokens"] for body in server.bodies) <= 16


@pytest.mark.parametrize("space", ["raw", "scaled", "processed"])
def test_what_is_inside_the_numbers_is_measured(space: str) -> None:
    card = card_of(Server(space=space))
    assert card.logprob_space == space
    assert card.sentinels == (("-9999",) if space == "processed" else ())
    assert bool(warnings(card)) == (space != "raw")


@pytest.mark.parametrize(("nothing", "name"), [(None, "null"), (-3.4028234663852886e38, "-3.4028235e+38")])
def test_sentinels_are_named(nothing: float | None, name: str) -> None:
    assert card_of(Server(space="processed", nothing=nothing)).sentinels == (name,)


@pytest.mark.parametrize("cuts", [False, True])
def test_the_largest_k_is_found_whether_the_server_refuses_or_cuts(cuts: bool) -> None:
    card = card_of(Server(limit=20, cuts=cuts), top_k=32)
    assert card.largest_k == 20 and card.k_limit == 32
    assert ["top_k = 32" in line for line in contradictions(card, AskSettings(top_k=32))] == [True]
    assert contradictions(card, AskSettings(top_k=20)) == []


def test_a_strict_server_gets_the_standards_fields_only() -> None:
    server = Server(strict=True)
    card = card_of(server)
    assert card.unknown_fields == "refused" and card.largest_k == 40
    assert ["ask.min_p" in line for line in contradictions(card, AskSettings(min_p=0.1))] == [True]


def test_a_server_of_chat_alone_is_asked_by_chat() -> None:
    card = card_of(Server(chat_only=True))
    assert card.token_ids and card.unknown_fields == "ignored" and card.adds_bos is None and card.echo is None


def test_bos_is_seen_in_the_prompts_ids() -> None:
    rule = Tokenizer(data=b"", vocabulary=40, bos_token_id=2, eos_token_id=1, adds_bos=True, template_sha256=None)
    with_bos, without = (card_of(Server(prompt_ids=ids), tokenizer=rule) for ids in ([2, 5], [5, 2]))
    assert with_bos.adds_bos is True and without.adds_bos is False
    assert warnings(with_bos) == [] and "does not add BOS" in warnings(without)[0]


def test_habits_that_spoil_rows_are_seen() -> None:
    assert card_of(Server(worst_first=True)).best_first is False
    assert card_of(Server(extra=True)).extra_entry is True
    assert card_of(Server(moody=True)).same_answer_twice is False
    assert card_of(Server(echoes=True)).echo == "works"
    drafted = card_of(Server(speculative=True))
    assert drafted.empty_lists and ["speculative" in line for line in contradictions(drafted, AskSettings())] == [True]


@pytest.mark.parametrize(("status", "error"), [(401, EndpointStopped), (503, ServerBusy), (400, Rejected)])
def test_an_endpoint_that_answers_nothing_is_an_error_of_ours(status: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="no"):
        card_of(Server(status=status))


PLAIN = EndpointCard(kind="llamacpp", token_ids=True, prompt_token_ids=True, largest_k=64, scores_prompts=False)


@pytest.mark.parametrize(
    ("changes", "ask", "word"),
    [
        ({}, {"mode": "score"}, "ask.mode = 'score'"),
        ({}, {"mode": "classify", "labels": ("a", "b")}, "ask.mode = 'classify'"),
        ({"token_ids": False}, {}, "teacher.tokenizer"),
        ({"context_length": 128}, {"max_tokens": 128}, "max_tokens = 128"),
        ({"adds_bos": True}, {"bos": "add"}, "double BOS"),
    ],
)
def test_contradictions_say_what_to_change(changes: dict[str, Any], ask: dict[str, Any], word: str) -> None:
    assert contradictions(PLAIN, AskSettings()) == []
    (line,) = contradictions(msgspec.structs.replace(PLAIN, **changes), AskSettings(**ask))
    assert word in line


def test_text_alone_needs_no_ids() -> None:
    assert contradictions(msgspec.structs.replace(PLAIN, token_ids=False), AskSettings(top_k=0)) == []


def test_a_bos_that_differs_from_the_tokenizers_rule_is_worth_a_warning() -> None:
    card = msgspec.structs.replace(PLAIN, logprob_space="raw", adds_bos=False, tokenizer_adds_bos=True)
    assert warnings(card) == ["The server does not add BOS to a text, the tokenizer's own rule wants it: see ask.bos."]
    assert warnings(msgspec.structs.replace(card, adds_bos=True)) == []


def test_the_card_is_read_by_a_person_without_escapes() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(card_table(msgspec.structs.replace(PLAIN, engine="evil\x1b[31m\x07[bold]")))
    shown = console.export_text()
    assert "evil[31m[bold]" in shown and "\x1b" not in shown and PLAIN.kind in shown


def test_the_digest_is_of_the_content() -> None:
    assert PLAIN.digest == msgspec.structs.replace(PLAIN).digest
    assert PLAIN.digest != msgspec.structs.replace(PLAIN, largest_k=20).digest
    with pytest.raises(msgspec.ValidationError):
        read_card(b'{"kind": "x"}')
