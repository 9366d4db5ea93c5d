import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from collectors.errors import Rejected
from collectors.plan import Item
from collectors.providers import Provider
from collectors.tokenizer import Tokenizer
from storage.rows import Message

Make = Callable[..., Provider]
NewItem = Callable[..., Item]

# Logarithms of thirds and sixths; the text's own tokens are 11, 12, 13, 14.
TOPS = [None, [[-0.4055, 12, None], [-1.7918, 20, None]], [[-0.4055, 21, None], [-1.7918, 13, None]],
        [[-0.4055, 14, None], [-1.7918, 22, None]]]  # fmt: skip
OWN = [[None, 11, None], [-0.4055, 12, None], [-1.7918, 13, None], [-0.4055, 14, None]]


def read(one: Provider, asked: Item, meta: dict[str, Any], text: str = "x") -> Any:
    return one.read(asked, json.dumps({"text": text, "output_ids": [1], "meta_info": meta}).encode())


def sent(one: Provider, asked: Item) -> dict[str, Any]:
    return json.loads(one.request(asked).body or b"")


def flat(prefix: int = 1) -> dict[str, Any]:
    rows = [row for row in TOPS if row is not None]
    blocks = {"val": np.array([[v for v, _, _ in row] for row in rows], "<f4"),
              "idx": np.array([[i for _, i, _ in row] for row in rows], "<i4")}  # fmt: skip
    fields: dict[str, Any] = {"input_top_logprobs_shape": [4, 2], "input_top_logprobs_null_prefix": prefix}
    for name, block in blocks.items():
        fields[f"input_top_logprobs_{name}_flat_b64"] = base64.b64encode(block.tobytes()).decode()
        fields[f"input_top_logprobs_{name}_flat_b64_dtype"] = block.dtype.name
    return fields


def test_a_generation(made: Make, item: NewItem) -> None:
    one, asked = made("sglang", top_k=2), item(prompt="x", prompt_token_ids=(2, 5))
    meta = {"id": "r", "finish_reason": {"type": "stop", "matched": 1}, "prompt_tokens": 2, "completion_tokens": 3,
            "input_token_logprobs": [], "output_token_logprobs": OWN[1:], "output_top_logprobs": TOPS[1:]}  # fmt: skip
    found = read(one, asked, meta)
    assert found.labels.token_ids.tolist() == [12, 13, 14] and found.labels.token_ranks.tolist() == [1, 2, 1]
    assert found.labels.top_ids.tolist() == [[12, 20], [21, 13], [14, 22]]
    assert (found.finish_reason, found.response_id, found.prompt_token_ids) == ("stop", "r", (2, 5))
    with pytest.raises(Rejected, match="prompt_mismatch"):
        read(one, asked, meta | {"prompt_tokens": 3})
    with pytest.raises(Rejected, match="length_mismatch"):
        read(one, asked, meta | {"output_top_logprobs": TOPS[2:]})
    with pytest.raises(Rejected, match="wrong_shape"):
        read(one, asked, meta | {"output_top_logprobs": [[["x", 1, None]]]})


def test_every_sampling_parameter_is_sent(made: Make, item: NewItem) -> None:
    body = sent(made("sglang", top_k=7, temperature=0.5, top_p=0.9, min_p=0.1), item(prompt_token_ids=(2, 5)))
    sampling = body["sampling_params"]
    assert (sampling["temperature"], sampling["top_p"], sampling["min_p"], sampling["top_k"]) == (0.5, 0.9, 0.1, -1)
    assert sampling["max_new_tokens"] == 6 and sampling["repetition_penalty"] == 1.0 and sampling["sampling_seed"] == 7
    assert body["input_ids"] == [2, 5] and body["top_logprobs_num"] == 7 and body["logprob_start_len"] == -1
    assert body["return_logprob"] is True and body["return_text_in_logprobs"] is False


@pytest.mark.parametrize("form", [{"input_top_logprobs": TOPS}, flat()])
def test_a_text_is_scored_from_nested_lists_and_from_blocks(made: Make, item: NewItem, form: dict[str, Any]) -> None:
    one, asked = made("sglang", mode="score", top_k=2), item(prompt="a text", prompt_token_ids=(11, 12, 13, 14))
    body = sent(one, asked)
    assert body["logprob_start_len"] == 0 and body["sampling_params"]["max_new_tokens"] == 1
    assert body["return_flat_raw_top_logprobs"] and body["return_flat_raw_top_logprobs_b64"]
    found = read(one, asked, {"input_token_logprobs": OWN, "prompt_tokens": 4} | form)
    assert found.labels.token_ids.tolist() == [12, 13, 14] and found.prompt_token_ids == (11,)
    assert found.labels.top_ids.tolist() == [[12, 20], [21, 13], [14, 22]]
    assert found.labels.top_logprobs[0].tolist() == pytest.approx([-0.4055, -1.7918])
    assert found.text == "a text" and found.logprob_space == "raw" and found.finish_reason is None


def test_a_completion_is_scored_behind_its_prompt(made: Make, item: NewItem) -> None:
    one, asked = made("sglang", mode="score", top_k=2), item(prompt="a", completion=" text")
    first = one.prepare(asked)
    assert first is not None and first.path == "/v1/tokenize"
    asked = one.prepared(asked, b'{"tokens": [11, 12], "count": 2, "max_model_len": 9}')
    assert sent(one, asked)["text"] == "a text"
    for form in ({"input_top_logprobs": TOPS}, flat()):
        found = read(one, asked, {"input_token_logprobs": OWN} | form)
        assert found.prompt_token_ids == (11, 12) and found.labels.token_ids.tolist() == [13, 14]
        assert found.labels.top_ids.tolist() == [[21, 13], [14, 22]] and found.text == " text"


def test_blocks_that_do_not_add_up_are_refused(made: Make, item: NewItem) -> None:
    one, asked = made("sglang", mode="score", top_k=2), item(prompt="a text", prompt_token_ids=(11, 12, 13, 14))
    for form, code in [
        (flat() | {"input_top_logprobs_shape": [5, 2]}, "length_mismatch: 4 tokens, 5 rows"),
        (flat() | {"input_top_logprobs_shape": [4, 3]}, "length_mismatch"),
        (flat(prefix=2), "length_mismatch: 4 tokens, 4 rows"),
        (flat() | {"input_top_logprobs_val_flat_b64": "!!!"}, "wrong_shape"),
        (flat() | {"input_top_logprobs_idx_flat_b64_dtype": "object"}, "wrong_shape"),
        ({"input_top_logprobs": TOPS[1:]}, "length_mismatch: 4 tokens, 3 lists"),
        ({}, "no_logprobs"),
    ]:
        with pytest.raises(Rejected, match=code):
            read(one, asked, {"input_token_logprobs": OWN} | form)
    with pytest.raises(Rejected, match="no_targets"):
        read(one, asked, {"input_token_logprobs": OWN[:1]} | flat())


def test_what_it_cannot_ask_is_refused(made: Make, item: NewItem, teacher_tokenizer: Tokenizer) -> None:
    with pytest.raises(Rejected, match="messages_not_possible"):
        made("sglang").prepare(item(messages=(Message(role="user", content="x"),)))
    one = made("sglang", bos="add", tokenizer=teacher_tokenizer)
    assert one.prepared(item(prompt="x"), b'{"tokens": [5]}').prompt_token_ids == (2, 5)
    with pytest.raises(Rejected, match="bos_not_possible"):
        one.prepared(item(prompt="x", completion="y"), b'{"tokens": [5]}')
    with pytest.raises(Rejected, match="no_text"):
        made("sglang", mode="score").request(item(prompt_token_ids=(1,), completion="y"))


def test_the_engine_says_its_version(made: Make) -> None:
    said = made("sglang").engine([b'{"version": "0.5.13", "context_length": 4096, "served_model_name": "g", "x": 1}'])
    assert (said.name, said.version, said.context_length, said.served_model) == ("SGLang", "0.5.13", 4096, "g")


def test_a_text_whose_scoring_could_take_the_servers_memory_is_not_asked(made: Make, item: NewItem) -> None:
    one = made("sglang", mode="score", top_k=2)  # no vocabulary is known: 2^18
    assert one.request(item(prompt="x", prompt_token_ids=(5,) * 4096))
    with pytest.raises(Rejected, match=r"prompt_too_long.*4,096 tokens"):
        one.request(item(prompt="x", prompt_token_ids=(5,) * 4097))
    assert made("sglang", top_k=2).request(item(prompt="x", prompt_token_ids=(5,) * 4097))
