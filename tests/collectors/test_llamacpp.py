import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from collectors.errors import Rejected
from collectors.http import Request, Response
from collectors.plan import Item, Message
from collectors.providers import Provider, Reading
from collectors.providers.embedded import EmbeddedServer
from collectors.tokenizer import Tokenizer

Exchange = Callable[[str], dict[str, Any]]
Make = Callable[..., Provider]
Ask = Callable[[Provider, Item], tuple[Item, Reading]]
NewItem = Callable[..., Item]

PROMPT = "The still was charged at noon; 今日は 🦊"
CHAT = (
    Message(role="system", content="Answer in one short sentence."),
    Message(role="user", content="Is a husky a dog? 🐺"),
)


def body_of(request: Request) -> dict[str, Any]:
    assert request.body is not None
    return json.loads(request.body)


def test_a_recorded_completion(exchange: Exchange, made: Make, item: NewItem) -> None:
    recorded = exchange("llamacpp/completion_top8")["body"]
    asked = item(prompt="…", prompt_token_ids=tuple(range(recorded["tokens_evaluated"])))
    found = made(top_k=8).read(asked, json.dumps(recorded).encode())
    labels = found.labels
    assert labels is not None
    assert labels.token_ids.tolist() == recorded["tokens"]
    first = recorded["completion_probabilities"][0]
    assert labels.top_ids[0].tolist() == [c["id"] for c in first["top_logprobs"]]
    assert labels.token_ranks[0] == 1 + labels.top_ids[0].tolist().index(1995)
    assert labels.token_ranks[1] == 0 and labels.token_logprobs[1] == pytest.approx(-12.0397357)  # outside the top 8
    assert found.text == recorded["content"] and found.finish_reason == "length"
    assert found.usage.prompt_tokens == 51 and found.usage.completion_tokens == 12
    assert found.token_bytes is None and found.logprob_space == "unknown"


def test_a_recorded_chat(exchange: Exchange, made: Make, item: NewItem) -> None:
    recorded = exchange("llamacpp/chat_top20")["body"]
    asked = item(messages=CHAT, prompt="…", prompt_token_ids=tuple(range(60)))
    found = made(top_k=20).read(asked, json.dumps(recorded).encode())
    assert found.labels is not None and found.labels.top_ids.shape == (16, 20)
    assert found.text == recorded["choices"][0]["message"]["content"] and found.response_id == recorded["id"]


def test_numbers_after_sampling_are_refused(exchange: Exchange, made: Make, item: NewItem) -> None:
    recorded = exchange("llamacpp/completion_top8_post_sampling")["body"]
    asked = item(prompt="…", prompt_token_ids=tuple(range(51)))
    with pytest.raises(Rejected, match="wrong_shape"):
        made(top_k=8).read(asked, json.dumps(recorded).encode())


def test_what_cannot_become_a_row_is_refused(exchange: Exchange, made: Make, item: NewItem) -> None:
    recorded = exchange("llamacpp/completion_top8")["body"]
    asked = item(prompt="…", prompt_token_ids=tuple(range(51)))
    one = made(top_k=8)
    for change, code in [
        ({"tokens_evaluated": 50}, "prompt_mismatch"),
        ({"completion_probabilities": recorded["completion_probabilities"][:-1]}, "length_mismatch"),
        ({"tokens": recorded["tokens"][::-1]}, "length_mismatch"),
        ({"tokens": "print"}, "wrong_shape"),
    ]:
        with pytest.raises(Rejected) as caught:
            one.read(asked, json.dumps(recorded | change).encode())
        assert caught.value.code == code
    with pytest.raises(Rejected, match="broken_json"):
        one.read(asked, json.dumps(recorded).encode()[:-20])
    speculative = [recorded["completion_probabilities"][0] | {"logprob": 0.0, "top_logprobs": []}]
    drafted = recorded | {"completion_probabilities": speculative, "tokens": recorded["tokens"][:1]}
    with pytest.raises(Rejected, match="empty_candidates"):
        one.read(asked, json.dumps(drafted).encode())


def test_a_chat_that_does_not_add_up_is_refused(exchange: Exchange, made: Make, item: NewItem) -> None:
    recorded = exchange("llamacpp/chat_top20")["body"]
    one, asked = made(top_k=20), item(messages=CHAT, prompt="…", prompt_token_ids=tuple(range(60)))
    for usage, code in [
        ({"prompt_tokens": 59, "completion_tokens": 16}, "prompt_mismatch"),
        ({"prompt_tokens": 60, "completion_tokens": 17}, "length_mismatch"),
    ]:
        with pytest.raises(Rejected, match=code):
            one.read(asked, json.dumps(recorded | {"usage": usage}).encode())
    with pytest.raises(Rejected, match="2 choices"):
        one.read(asked, json.dumps(recorded | {"choices": recorded["choices"] * 2}).encode())


def test_an_answer_that_filled_the_context_is_flagged(exchange: Exchange, made: Make, item: NewItem) -> None:
    recorded = exchange("llamacpp/completion_top8")["body"] | {"truncated": True}
    found = made(top_k=8).read(item(prompt_token_ids=tuple(range(51))), json.dumps(recorded).encode())
    assert found.flags == ("context_full",)


def test_every_sampling_parameter_is_sent_and_taken(
    made: Make, item: NewItem, send: Callable[[Request], Response]
) -> None:
    one = made(top_k=3, temperature=0.5, top_p=0.9, min_p=0.01, sampling_top_k=7)
    answer = send(one.request(item(prompt="x", prompt_token_ids=(2, 818), max_tokens=2, seed=11)))
    settings = json.loads(answer.body)["generation_settings"]
    sent = body_of(one.request(item(prompt="x", prompt_token_ids=(2, 818), max_tokens=2, seed=11)))
    assert settings["samplers"] == ["temperature", "top_k", "top_p", "min_p"]
    for name in ("temperature", "top_p", "min_p", "top_k", "seed", "n_probs", "n_predict", "repeat_penalty"):
        assert settings[name] == pytest.approx(sent[name]), name
    neutral = {"typical_p": 1.0, "top_n_sigma": -1.0, "dry_multiplier": 0.0, "xtc_probability": 0.0, "mirostat": 0,
               "presence_penalty": 0.0, "frequency_penalty": 0.0, "dynatemp_range": 0.0, "logit_bias": [],
               "ignore_eos": False, "stop": [], "post_sampling_probs": False, "speculative.types": "none"}  # fmt: skip
    assert {name: settings[name] for name in neutral} == neutral


def test_the_real_teacher_gives_exact_prompt_ids(
    made: Make, item: NewItem, ask: Ask, teacher_tokenizer: Tokenizer
) -> None:
    asked, found = ask(made(top_k=5, tokenizer=teacher_tokenizer), item(prompt=PROMPT))
    ids = found.prompt_token_ids
    assert ids is not None and ids == asked.prompt_token_ids
    assert ids[0] == teacher_tokenizer.bos_token_id
    assert b"".join(teacher_tokenizer.token_bytes[i] or b"" for i in ids[1:]).decode() == PROMPT
    labels = found.labels
    assert labels is not None and labels.top_ids.shape == (6, 5)
    assert b"".join(teacher_tokenizer.token_bytes[i] or b"" for i in labels.token_ids).decode() == found.text


def test_messages_are_rendered_as_the_server_does(made: Make, item: NewItem, ask: Ask) -> None:
    """The chat shape equals the completion over its rendered ids, up to the noise of batching."""
    asked, by_chat = ask(made(top_k=5, temperature=0.0), item(messages=CHAT, max_tokens=4))
    assert asked.prompt is not None and "husky" in asked.prompt and by_chat.prompt_token_ids is not None
    _, by_ids = ask(made(top_k=5, temperature=0.0), item(prompt_token_ids=by_chat.prompt_token_ids, max_tokens=4))
    assert by_chat.labels is not None and by_ids.labels is not None
    assert by_chat.labels.token_ids.tolist() == by_ids.labels.token_ids.tolist()
    assert by_chat.labels.top_logprobs[0] == pytest.approx(by_ids.labels.top_logprobs[0], abs=0.2)


def test_the_end_token_is_a_target(made: Make, item: NewItem, send: Callable[[Request], Response]) -> None:
    one = made(top_k=4)
    for asked in (
        item(prompt="x", prompt_token_ids=(2, 10979)),
        item(messages=CHAT[1:], prompt="x", prompt_token_ids=tuple(range(32))),
    ):
        request = one.request(asked)
        forced = Request(
            request.method, request.path, msgspec.json.encode(body_of(request) | {"logit_bias": [[1, 1e3]]})
        )
        answer = send(forced)
        seen = json.loads(answer.body)
        if "usage" in seen:
            asked = item(messages=asked.messages, prompt="x", prompt_token_ids=(2,) * seen["usage"]["prompt_tokens"])
        found = one.read(asked, answer.body)
        assert found.finish_reason == "stop" and found.text == ""
        assert found.labels is not None and found.labels.token_ids.tolist() == [1]
        assert np.isfinite(found.labels.token_logprobs).all()


def test_tokens_that_end_inside_a_character_lose_their_numbers_and_the_row_is_refused(
    made: Make, item: NewItem, send: Callable[[Request], Response]
) -> None:
    one, asked = made(top_k=4), item(prompt="x", prompt_token_ids=(2, 10979), max_tokens=3)
    bias = {"logit_bias": [[478, 1e3]]}  # the byte F0 alone
    forced = Request("POST", "/completion", msgspec.json.encode(body_of(one.request(asked)) | bias))
    with pytest.raises(Rejected, match="length_mismatch: 3 tokens, 0 with log-probabilities"):
        one.read(asked, send(forced).body)


def test_numbers_do_not_depend_on_temperature(made: Make, item: NewItem, ask: Ask) -> None:
    asked = item(prompt_token_ids=(2, 818, 5279, 529, 7001, 563), max_tokens=1)
    warm, cold = (ask(made(top_k=10, temperature=t), asked)[1].labels for t in (1.0, 0.3))
    assert warm is not None and cold is not None
    assert warm.top_logprobs == pytest.approx(cold.top_logprobs, abs=0.3)
    assert math.exp(warm.log_tail[0]) > 0.2


def test_bos_is_added_once(made: Make, item: NewItem, teacher_tokenizer: Tokenizer) -> None:
    one = made(top_k=1, bos="add", tokenizer=teacher_tokenizer)
    for server in ([2, 10979], [10979]):
        body = json.dumps({"tokens": server}).encode()
        assert one.prepared(item(prompt="Hi"), body).prompt_token_ids == (2, 10979)
    with pytest.raises(Rejected, match="empty_prompt"):
        made(top_k=1).prepared(item(prompt=""), b'{"tokens": []}')


def test_text_alone_keeps_its_ids(made: Make, item: NewItem, ask: Ask) -> None:
    _, found = ask(made(top_k=0), item(prompt="Hi", max_tokens=3))
    assert found.labels is not None and found.labels.k == 0 and len(found.labels) == 3 and found.flags == ()


def test_the_answer_names_no_path(made: Make, item: NewItem, ask: Ask, teacher_server: EmbeddedServer) -> None:
    _, found = ask(made(top_k=1), item(prompt="Hi", max_tokens=1))
    assert found.model == teacher_server.gguf.stem
