import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from collectors.card import EndpointCard
from collectors.errors import Rejected
from collectors.http import Request
from collectors.plan import Item
from collectors.providers import Provider
from collectors.tokenizer import Tokenizer
from storage.rows import Message

Exchange = Callable[[str], dict[str, Any]]
Make = Callable[..., Provider]
NewItem = Callable[..., Item]

CHAT = (Message(role="user", content="Is a husky a dog? 🐺"),)
CARD = EndpointCard(kind="vllm", token_ids=True, prompt_token_ids=True, largest_k=64, scores_prompts=True)


def read(one: Provider, asked: Item, body: Any) -> Any:
    return one.read(asked, json.dumps(body).encode())


def sent(request: Request) -> dict[str, Any]:
    return json.loads(request.body or b"")


def test_a_recorded_generation_has_its_own_ids(exchange: Exchange, made: Make, item: NewItem) -> None:
    body = exchange("vllm/completions_generate_top8_as_token_ids")["body"]
    found = read(made("vllm", top_k=8), item(prompt="…"), body)
    choice = body["choices"][0]
    assert found.labels.token_ids.tolist() == choice["token_ids"]
    assert found.prompt_token_ids == tuple(choice["prompt_token_ids"])
    assert found.labels.top_ids[0].tolist()[:3] == [140, 2063, 1995] and found.labels.token_ranks[0] == 1
    assert found.labels.token_logprobs[1] == pytest.approx(-0.91809) and found.labels.token_ranks[1] == 2


def test_the_k_plus_first_entry_leaves_the_list(exchange: Exchange, made: Make, item: NewItem) -> None:
    body = exchange("vllm/completions_n3_top5")["body"]
    choice = body["choices"][0]
    ids = {" b": 518, " c": 505, "\n\n": 108}  # the recorded choice names strings: any ids will do here
    logprobs = choice["logprobs"]
    for top in logprobs["top_logprobs"]:
        for text in list(top):
            top[f"token_id:{ids.setdefault(text, 1000 + len(ids))}"] = top.pop(text)
    logprobs["tokens"] = [f"token_id:{one}" for one in choice["token_ids"]]
    logprobs["top_logprobs"][0] = {"token_id:518": logprobs["token_logprobs"][0]} | logprobs["top_logprobs"][0]
    found = read(made("vllm", top_k=5), item(prompt="…"), body | {"choices": [choice]})
    assert len(logprobs["top_logprobs"][0]) == 6
    assert 518 not in found.labels.top_ids[0] and found.labels.token_ranks[0] == 0
    assert found.labels.token_logprobs[0] == pytest.approx(-7.61454)
    with pytest.raises(Rejected, match="3 choices"):
        read(made("vllm", top_k=5), item(prompt="…"), body)


def test_a_recorded_chat(exchange: Exchange, made: Make, item: NewItem) -> None:
    body = exchange("vllm/chat_top20_token_ids")["body"]
    found = read(made("vllm", top_k=20), item(messages=CHAT), body)
    assert found.labels.token_ids.tolist() == body["choices"][0]["token_ids"]
    assert found.prompt_token_ids == tuple(body["prompt_token_ids"]) and found.usage.prompt_tokens == 31


def test_chat_asks_for_one_more_where_the_server_allows_it(made: Make, item: NewItem) -> None:
    for card, k in ((None, 20), (CARD, 21), (EndpointCard(**{**_as_dict(CARD), "largest_k": 20}), 20)):
        assert sent(made("vllm", top_k=20, card=card).request(item(messages=CHAT)))["top_logprobs"] == k
    assert sent(made("vllm", top_k=20, card=CARD).request(item(prompt="x")))["logprobs"] == 20


def _as_dict(card: EndpointCard) -> dict[str, Any]:
    return {name: getattr(card, name) for name in card.__struct_fields__}


def test_every_sampling_parameter_is_sent(made: Make, item: NewItem) -> None:
    body = sent(made("vllm", temperature=0.7, top_p=0.9, min_p=0.1, sampling_top_k=5).request(item(prompt="x")))
    assert body["temperature"] == 0.7 and body["top_p"] == 0.9 and body["min_p"] == 0.1 and body["top_k"] == 5
    assert body["repetition_penalty"] == 1.0 and body["ignore_eos"] is False and body["stop"] == []
    assert body["return_token_ids"] and body["return_tokens_as_token_ids"] and body["seed"] == 7 and body["n"] == 1


def test_a_recorded_text_is_scored(exchange: Exchange, made: Make, item: NewItem) -> None:
    recorded = exchange("vllm/completions_score_top16")
    body, ids = recorded["body"], recorded["body"]["choices"][0]["prompt_token_ids"]
    one, asked = made("vllm", mode="score", top_k=16), item(prompt=recorded["request"]["json"]["prompt"])
    assert one.prepare(asked) is None
    found = read(one, asked, body)
    labels = found.labels
    assert labels.token_ids.tolist() == ids[1:] and found.prompt_token_ids == (ids[0],)
    assert labels.token_ranks[0] == 55638 and labels.token_logprobs[0] == pytest.approx(-24.13357)
    assert labels.top_ids[0, 0] == 818 and 2036 not in labels.top_ids[0]
    assert (labels.top_logprobs[:, 1:] <= labels.top_logprobs[:, :-1]).all()
    assert found.text == asked.prompt and found.logprob_space == "raw" and found.flags == ()
    mass = np.exp(labels.top_logprobs.astype(np.float64)).sum(axis=1) + np.exp(labels.log_tail.astype(np.float64))
    assert mass == pytest.approx(np.ones(len(labels)), abs=1e-5)
    request = sent(one.request(asked))
    assert request["prompt_logprobs"] == 16 and request["max_tokens"] == 1 and request["prompt"] == asked.prompt


def test_token_ids_are_scored_and_a_recorded_chat(exchange: Exchange, made: Make, item: NewItem) -> None:
    recorded = exchange("vllm/completions_score_token_prompt_top16")
    ids = tuple(recorded["request"]["json"]["prompt"])
    found = read(made("vllm", mode="score", top_k=16), item(prompt_token_ids=ids), recorded["body"])
    assert found.prompt_token_ids == (2,) and found.labels.token_ids.tolist() == list(ids[1:])
    body = exchange("vllm/chat_prompt_logprobs5")["body"]
    found = read(made("vllm", mode="score", top_k=5), item(messages=CHAT), body)
    assert len(found.labels) == 30 and found.labels.token_ranks[0] == 15816


def test_a_completion_is_scored_behind_its_prompt(exchange: Exchange, made: Make, item: NewItem) -> None:
    recorded = exchange("vllm/completions_score_top16")
    ids = recorded["body"]["choices"][0]["prompt_token_ids"]
    one, asked = made("vllm", mode="score", top_k=16), item(prompt="The still", completion=" was charged")
    first = one.prepare(asked)
    assert first is not None and sent(first) == {
        "model": "google/gemma-3-270m", "prompt": "The still", "add_special_tokens": True
    }  # fmt: skip
    exact = one.prepared(asked, json.dumps({"tokens": ids[:20]}).encode())
    assert one.prepare(exact) is None and sent(one.request(exact))["prompt"] == "The still was charged"
    found = read(one, exact, recorded["body"])
    assert found.prompt_token_ids == tuple(ids[:20]) and found.labels.token_ids.tolist() == ids[20:]
    assert found.text == " was charged" and found.flags == ()
    merged = one.prepared(asked, json.dumps({"tokens": [*ids[:20], 5]}).encode())
    found = read(one, merged, recorded["body"])
    assert found.prompt_token_ids == tuple(ids[:20]) and found.flags == ("boundary_inside_token",)
    swallowed = one.prepared(asked, b'{"tokens": [5]}')
    found = read(one, swallowed, recorded["body"])
    assert found.prompt_token_ids == (ids[0],)  # the first token never has a context
    assert found.flags == ("boundary_inside_token",)


def test_a_completion_is_scored_as_the_assistants_turn(made: Make, item: NewItem) -> None:
    one, asked = made("vllm", mode="score", top_k=5), item(messages=CHAT, completion="Yes.")
    first = one.prepare(asked)
    assert first is not None and sent(first)["add_generation_prompt"] is True
    body = sent(one.request(one.prepared(asked, b'{"tokens": [2, 5]}')))
    assert body["messages"][-1] == {"role": "assistant", "content": "Yes."}
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False


def test_what_cannot_be_scored_is_refused(exchange: Exchange, made: Make, item: NewItem) -> None:
    one, asked = made("vllm", mode="score", top_k=16), item(prompt="…")
    good = exchange("vllm/completions_score_top16")["body"]["choices"][0]
    entries = good["prompt_logprobs"]
    for change, code in [
        ({"prompt_logprobs": entries[:-1]}, "length_mismatch"),
        ({"prompt_logprobs": [*entries[:-1], None]}, "realised_missing"),
        ({"prompt_token_ids": [*good["prompt_token_ids"][:-1], 5]}, "realised_missing"),
        ({"prompt_token_ids": [818], "prompt_logprobs": [None]}, "no_targets"),
        ({"prompt_logprobs": None}, "no_logprobs"),
        ({"prompt_logprobs": [{"x": {"logprob": -1.0}}]}, "wrong_shape"),
    ]:
        with pytest.raises(Rejected) as caught:
            read(one, asked, {"choices": [good | change]})
        assert caught.value.code == code
    with pytest.raises(Rejected, match="no_text"):
        one.request(item(prompt_token_ids=(1,), completion="x"))


def test_minus_9999_is_masked(exchange: Exchange, made: Make, item: NewItem) -> None:
    body = exchange("vllm/completions_score_token_prompt_top16")["body"]
    entry = body["choices"][0]["prompt_logprobs"][1]
    entry["3617"]["logprob"] = -9999.0
    found = read(made("vllm", mode="score", top_k=16), item(prompt_token_ids=(2,)), body)
    assert 3617 not in found.labels.top_ids[0] and found.labels.top_ids[0, -1] == -1 and found.flags == ("masked=1",)
    kept = found.labels.top_logprobs[0, :-1].astype(np.float64)
    assert math.exp(found.labels.log_tail[0]) == pytest.approx(1 - np.exp(kept).sum(), abs=1e-6)


def test_bos_is_added_by_ids(made: Make, item: NewItem, teacher_tokenizer: Tokenizer) -> None:
    one = made("vllm", top_k=5, bos="add", tokenizer=teacher_tokenizer)
    assert one.prepare(item(prompt="Hi")) is not None
    asked = one.prepared(item(prompt="Hi"), b'{"tokens": [10979]}')
    assert asked.prompt_token_ids == (2, 10979) and sent(one.request(asked))["prompt"] == [2, 10979]
    with pytest.raises(Rejected, match="bos_not_possible"):
        one.prepared(item(messages=CHAT), b'{"tokens": [10979]}')


def test_the_engine_says_its_version(made: Make) -> None:
    models = b'{"data": [{"id": "google/gemma-3-270m", "max_model_len": 1024, "owned_by": "vllm"}]}'
    said = made("vllm").engine([models, b'{"version": "0.32.0"}'])
    assert (said.name, said.version, said.context_length) == ("vLLM", "0.32.0", 1024)
    assert made("vllm").engine([None, None]).version is None


def scored(index: int, ids: list[int], logprobs: list[float | None]) -> dict[str, Any]:
    entries = [
        None if logprob is None else {str(token): {"logprob": logprob, "rank": 1, "decoded_token": "x"}}
        for token, logprob in zip(ids, logprobs, strict=True)
    ]
    return {"index": index, "text": "", "prompt_token_ids": ids, "prompt_logprobs": entries}


def test_labels_are_classified_by_their_whole_sequence(made: Make, item: NewItem) -> None:
    one = made("vllm", mode="classify", labels=(" dog", " wolf", " red fox"))
    asked = item(prompt="A husky is a")
    assert one.prepare(asked) is not None
    asked = one.prepared(asked, b'{"tokens": [2, 5, 6]}')
    body = sent(one.request(asked))
    assert body["prompt"] == ["A husky is a dog", "A husky is a wolf", "A husky is a red fox"]
    assert body["max_tokens"] == 1 and body["prompt_logprobs"] == 1
    choices = [  # out of order, as a server may send them
        scored(2, [2, 5, 6, 9, 10], [None, -1.0, -2.0, math.log(0.1), math.log(0.3)]),
        scored(0, [2, 5, 6, 7], [None, -1.0, -2.0, math.log(0.87)]),
        scored(1, [2, 5, 6, 8], [None, -1.0, -2.0, math.log(0.08)]),
    ]
    found = read(one, asked, {"choices": choices})
    p = np.array([0.87, 0.08, 0.03]) / 0.98
    assert found.labels.top_ids.tolist() == [[0, 1, 2]] and found.text == " dog"
    assert np.exp(found.labels.top_logprobs[0]) == pytest.approx(p, abs=1e-6)
    assert found.prompt_token_ids == (2, 5, 6) and found.flags == () and found.logprob_space == "raw"
    merged = [*choices[:2], scored(1, [2, 5, 11], [None, -1.0, math.log(0.08)])]
    found = read(one, asked, {"choices": merged})
    assert found.flags == ("boundary_inside_token",) and found.prompt_token_ids == (2, 5)
    weights = np.array([0.87 * math.exp(-2), 0.08, 0.03 * math.exp(-2)])
    assert np.exp(found.labels.top_logprobs[0]) == pytest.approx(np.sort(weights / weights.sum())[::-1], abs=1e-6)


def test_labels_that_cannot_be_compared_are_refused(made: Make, item: NewItem) -> None:
    one, asked = made("vllm", mode="classify", labels=("a", "b")), item(prompt="x", prompt_token_ids=(2,))
    with pytest.raises(Rejected, match="1 choices came for 2 labels"):
        read(one, asked, {"choices": [scored(0, [2, 3], [None, -1.0])]})
    with pytest.raises(Rejected, match="no_logprobs"):
        read(one, asked, {"choices": [scored(0, [2, 3], [None, -9999.0]), scored(1, [2, 4], [None, -1.0])]})
    with pytest.raises(Rejected, match="text_only"):
        one.request(item(messages=CHAT))


def test_a_text_whose_scoring_could_take_the_servers_memory_is_counted_and_not_asked(made: Make, item: NewItem) -> None:
    one = made("vllm", mode="score", top_k=2)  # no vocabulary is known: 2^18
    assert one.prepare(item(prompt="x" * 4096)) is None
    long = item(prompt="word " * 4096)
    assert one.prepare(long) is not None  # more bytes than tokens are allowed: only the server knows
    assert one.request(one.prepared(long, b'{"tokens": [%s5]}' % (b"5, " * 4095)))
    with pytest.raises(Rejected, match=r"prompt_too_long.*4,096 tokens"):
        one.request(one.prepared(long, b'{"tokens": [%s5]}' % (b"5, " * 4096)))
    with pytest.raises(Rejected, match="prompt_too_long"):
        one.request(item(prompt="x", prompt_token_ids=(5,) * 4000, completion="word " * 100))
