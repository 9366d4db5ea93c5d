import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collectors.errors import Rejected
from collectors.plan import Item, Message
from collectors.providers import Provider, Reading
from collectors.tokenizer import Tokenizer, load_tokenizer

Exchange = Callable[[str], dict[str, Any]]
Make = Callable[..., Provider]
Ask = Callable[[Provider, Item], tuple[Item, Reading]]
NewItem = Callable[..., Item]

CHAT = (Message(role="user", content="Is a husky a dog? 🐺"),)


def answer(content: list[dict[str, Any]], text: str = "", **more: Any) -> bytes:
    choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": content}}
    return json.dumps({"choices": [choice | more], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}).encode()


def token(text: str, logprob: float, tops: list[tuple[str, float]] | None = None, **more: Any) -> dict[str, Any]:
    entry = {"token": text, "bytes": list(text.encode()), "logprob": logprob} | more
    return entry if tops is None else entry | {"top_logprobs": [token(*top) for top in tops]}


@pytest.fixture
def byte_level(tmp_path: Path) -> Tokenizer:
    """Six tokens: two for the same bytes once they are decoded, and one special token."""
    record = {
        "model": {"type": "BPE", "vocab": {"a": 0, "Ġa": 1, "Ċ": 2, "é": 3, "b": 4}, "merges": []},
        "added_tokens": [{"id": 5, "content": "<end>"}, {"id": 6, "content": "b"}],
        "decoder": {"type": "ByteLevel"},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(record))
    return load_tokenizer(path)


def test_ids_are_found_again_from_bytes(made: Make, item: NewItem, byte_level: Tokenizer) -> None:
    sent = [token("a", -0.5, [("a", -0.5), (" a", -1.5)]), token("\n", -0.25, [("\n", -0.25), ("a", -2.0)])]
    found = made("openai", top_k=2, tokenizer=byte_level).read(item(messages=CHAT), answer(sent, "a\n"))
    assert found.labels is not None
    assert found.labels.token_ids.tolist() == [0, 2] and found.labels.top_ids.tolist() == [[0, 1], [2, 0]]
    assert found.token_bytes is None and found.flags == () and found.finish_reason == "stop"


def test_in_the_last_place_the_rank_is_unknown(made: Make, item: NewItem, byte_level: Tokenizer) -> None:
    """vLLM leaves the k-th candidate out where the realised token came besides the top k, and does not say so."""
    sent = [token(" a", -1.5, [(" a", -1.5), ("a", -0.5)])]
    found = made("openai", top_k=2, tokenizer=byte_level).read(item(messages=CHAT), answer(sent))
    assert found.labels is not None
    assert found.labels.top_ids.tolist() == [[0, 1]] and found.labels.token_ranks.tolist() == [0]


def test_a_candidate_of_two_ids_falls_into_the_tail(made: Make, item: NewItem, byte_level: Tokenizer) -> None:
    sent = [token("a", -0.5, [("a", -0.5), ("b", -1.5)])]
    found = made("openai", top_k=2, tokenizer=byte_level).read(item(messages=CHAT), answer(sent))
    assert found.labels is not None
    assert found.labels.top_ids.tolist() == [[0, -1]] and found.flags == ("masked=1",)


@pytest.mark.parametrize("bad", [token("b", -0.5, []), token("zz", -0.5, []), token("a", -0.5, [], bytes=None)])
def test_a_realised_token_without_exactly_one_id_ends_the_row(
    made: Make, item: NewItem, byte_level: Tokenizer, bad: dict[str, Any]
) -> None:
    with pytest.raises(Rejected, match="id_not_recoverable"):
        made("openai", top_k=2, tokenizer=byte_level).read(item(messages=CHAT), answer([bad]))


def test_without_ids_and_tokenizer_the_row_is_text_with_its_bytes(
    exchange: Exchange, made: Make, item: NewItem
) -> None:
    recorded = exchange("vllm/chat_top20")["body"]
    found = made("openai", top_k=20).read(item(messages=CHAT), json.dumps(recorded).encode())
    assert found.labels is None and found.flags == ("no_token_ids",)
    assert found.token_bytes is not None and b"".join(found.token_bytes).decode() == found.text


def test_byte_tokens_share_bytes_with_others_so_a_recorded_chat_is_refused(
    exchange: Exchange, made: Make, item: NewItem, teacher_tokenizer: Tokenizer
) -> None:
    recorded = exchange("vllm/chat_top20")["body"]  # its "." is token 236761 or the byte token <0x2E>
    with pytest.raises(Rejected, match="id_not_recoverable: token"):
        made("openai", top_k=20, tokenizer=teacher_tokenizer).read(item(messages=CHAT), json.dumps(recorded).encode())


def test_ids_that_vllm_tells_are_taken(exchange: Exchange, made: Make, item: NewItem) -> None:
    body = exchange("vllm/chat_top20_token_ids")["body"]
    found = made("openai", top_k=20).read(item(messages=CHAT), json.dumps(body).encode())
    assert found.labels is not None
    assert found.labels.token_ids.tolist() == body["choices"][0]["token_ids"]
    assert found.prompt_token_ids == tuple(body["prompt_token_ids"])
    assert found.labels.top_ids.shape == (16, 20)
    assert found.labels.token_ranks[:4].tolist() == [2, 2, 1, 11]  # of equals the first received

    body = exchange("vllm/completions_generate_top8_as_token_ids")["body"]
    found = made("openai", top_k=8).read(item(prompt="…"), json.dumps(body).encode())
    assert found.labels is not None and found.labels.top_ids[1].tolist()[:2] == [2060, 107]
    assert found.prompt_token_ids is not None and found.prompt_token_ids[:2] == (818, 2036)


def test_dictionaries_by_string_give_no_labels(exchange: Exchange, made: Make, item: NewItem) -> None:
    body = exchange("vllm/completions_generate_top8")["body"]
    found = made("openai", top_k=8).read(item(prompt="…"), json.dumps(body).encode())
    assert found.labels is None and found.flags == ("no_token_ids",) and found.text.startswith("    \n")


def test_strings_among_ids_give_no_labels(exchange: Exchange, made: Make, item: NewItem) -> None:
    body = exchange("vllm/completions_generate_top8_as_token_ids")["body"]
    tops = body["choices"][0]["logprobs"]["top_logprobs"]
    tops[0] = {name.replace("token_id:1995", "print"): value for name, value in tops[0].items()}
    found = made("openai", top_k=8).read(item(prompt="…"), json.dumps(body).encode())
    assert found.labels is None and found.flags == ("no_token_ids",)


def test_a_prompt_given_as_ids_is_what_the_row_names(exchange: Exchange, made: Make, item: NewItem) -> None:
    body = exchange("llamacpp/completions_openai_top5")["body"]
    found = made("openai", top_k=5).read(item(prompt_token_ids=(2, 818)), json.dumps(body).encode())
    assert found.prompt_token_ids == (2, 818)
    body = exchange("vllm/completions_generate_top8_as_token_ids")["body"]
    with pytest.raises(Rejected, match="prompt_mismatch"):
        made("openai", top_k=8).read(item(prompt_token_ids=(2, 818)), json.dumps(body).encode())


def test_recorded_llamacpp_completions_have_ids(exchange: Exchange, made: Make, item: NewItem) -> None:
    body = exchange("llamacpp/completions_openai_top5")["body"]
    one = made("openai", top_k=5)
    found = one.read(item(prompt="…"), json.dumps(body).encode())
    assert found.labels is not None and found.labels.token_ids.tolist()[:2] == [2063, 1887]
    body["choices"][0]["logprobs"]["content"].pop()
    with pytest.raises(Rejected, match="length_mismatch"):
        one.read(item(prompt="…"), json.dumps(body).encode())


def test_what_is_no_answer_is_refused(made: Make, item: NewItem) -> None:
    one = made("openai", top_k=2)
    for body, code in [
        (b'{"choices": []}', "wrong_shape"),
        (b'{"choices": [{"text": "x"}]}', "no_logprobs"),
        (b'{"choices": [{"text": 5}]}', "wrong_shape"),
        (b"<html>", "broken_json"),
        (answer([token("a", -1.0, [], bytes=[300])]), "wrong_shape"),
        (answer([token("a", 0.0, [], id=7)]), "length_mismatch"),
    ]:
        with pytest.raises(Rejected) as caught:
            one.read(item(messages=CHAT), body)
        assert caught.value.code == code, body


def test_reasoning_is_kept_apart(made: Make, item: NewItem) -> None:
    message = {"content": "4", "reasoning": "2 and 2"}
    body = json.dumps({"choices": [{"message": message}]}).encode()
    found = made("openai", top_k=0).read(item(messages=CHAT), body)
    assert (found.text, found.reasoning, found.labels, found.flags) == ("4", "2 and 2", None, ())


def test_the_real_server_by_this_shape_equals_its_own(
    made: Make, item: NewItem, ask: Ask, teacher_tokenizer: Tokenizer
) -> None:
    asked = item(prompt_token_ids=(2, 818, 5279, 529), max_tokens=4)
    settings = {"top_k": 5, "temperature": 0.0, "tokenizer": teacher_tokenizer}
    _, mine = ask(made("openai", **settings), asked)
    _, own = ask(made("llamacpp", **settings), asked)
    assert mine.labels is not None and own.labels is not None
    assert mine.labels.token_ids.tolist() == own.labels.token_ids.tolist() and mine.text == own.text
    assert mine.labels.top_logprobs[0] == pytest.approx(own.labels.top_logprobs[0], abs=0.2)
    _, chat = ask(made("openai", **settings), item(messages=CHAT, max_tokens=2))
    assert chat.labels is not None and chat.prompt_token_ids is None
