import json
from collections.abc import Callable
from typing import Any

import pytest

from collectors.errors import Rejected
from collectors.plan import Item
from collectors.providers import Provider, ProviderUnavailable
from storage.rows import Message

Make = Callable[..., Provider]
NewItem = Callable[..., Item]


def token(token_id: int, logprob: float | None) -> dict[str, Any]:
    return {"id": token_id, "text": "t", "logprob": logprob, "special": False}


DETAILS: dict[str, Any] = {
    "finish_reason": "eos_token",
    "generated_tokens": 2,
    "seed": 7,
    "prefill": [],
    "tokens": [token(5, -0.5), token(1, -0.25)],
    "top_tokens": [[token(5, -0.5), token(6, -1.5)], [token(1, -0.25)]],
}


def read(one: Provider, asked: Item, **changes: Any) -> Any:
    return one.read(asked, json.dumps({"generated_text": "x", "details": DETAILS | changes}).encode())


def test_a_generation_whose_candidates_sampling_has_cut(made: Make, item: NewItem) -> None:
    one, asked = made("tgi", top_k=3), item(prompt="x", prompt_token_ids=(2, 9))
    found = read(one, asked)
    assert found.labels.token_ids.tolist() == [5, 1]
    assert found.labels.top_ids.tolist() == [[5, 6, -1], [1, -1, -1]]
    assert (found.finish_reason, found.usage.prompt_tokens, found.usage.completion_tokens) == ("stop", 2, 2)
    assert read(one, asked, prefill=[token(2, None), token(9, -3.0)]).prompt_token_ids == (2, 9)
    with pytest.raises(Rejected, match="prompt_mismatch"):
        read(one, asked, prefill=[token(2, None), token(8, -3.0)])
    with pytest.raises(Rejected, match="length_mismatch"):
        read(one, asked, top_tokens=DETAILS["top_tokens"][:1])
    with pytest.raises(Rejected, match="too_few_candidates"):
        read(one, asked, top_tokens=[[], []])


def test_the_prompt_is_tokenized_by_the_server(made: Make, item: NewItem) -> None:
    one, asked = made("tgi"), item(prompt="x")
    first = one.prepare(asked)
    assert first is not None and json.loads(first.body or b"") == {"inputs": "x"}
    asked = one.prepared(asked, json.dumps([token(2, None), token(9, None)]).encode())
    assert asked.prompt_token_ids == (2, 9) and one.prepare(asked) is None


def test_neutral_values_are_left_out_and_others_sent(made: Make, item: NewItem) -> None:
    asked = item(prompt="x", prompt_token_ids=(2,))
    plain = json.loads(made("tgi", top_k=5).request(asked).body or b"")["parameters"]
    assert plain["do_sample"] is True and plain["temperature"] == 1.0 and plain["top_n_tokens"] == 5
    assert "top_p" not in plain and "top_k" not in plain and plain["repetition_penalty"] == 1.0
    narrow = json.loads(made("tgi", top_p=0.9, sampling_top_k=4, temperature=0.0).request(asked).body or b"")
    assert narrow["parameters"]["top_p"] == 0.9 and narrow["parameters"]["top_k"] == 4
    assert narrow["parameters"]["do_sample"] is False and "temperature" not in narrow["parameters"]


def test_what_it_cannot_ask_is_refused(made: Make, item: NewItem) -> None:
    for asked in (item(messages=(Message(role="user", content="x"),)), item(prompt_token_ids=(1,))):
        with pytest.raises(Rejected, match="text_only"):
            made("tgi").prepare(asked)
    with pytest.raises(ProviderUnavailable, match="min_p"):
        made("tgi", min_p=0.1)
    with pytest.raises(ProviderUnavailable, match=r"ask\.bos"):
        made("tgi", bos="add")


def test_the_engine_says_its_version(made: Make) -> None:
    said = made("tgi").engine([b'{"model_id": "m", "version": "3.3.4", "max_total_tokens": 2048}'])
    assert (said.name, said.version, said.context_length) == ("TGI", "3.3.4", 2048)
