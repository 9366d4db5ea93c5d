import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from collectors.config import AskSettings, EndpointSettings, TeacherSettings
from collectors.errors import Rejected
from collectors.http import Request, Response
from collectors.plan import Item
from collectors.providers import KINDS, Provider, ProviderUnavailable, provider, unfit_prompts
from collectors.tokenizer import Tokenizer
from storage.rows import Message

Make = Callable[..., Provider]


def test_a_kind_of_another_version_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ProviderUnavailable, match=r"'nosuch' is not in this version: use one of embedded, .*openai"
    ) as caught:
        provider(
            "nosuch",
            teacher=TeacherSettings(model="m"),
            endpoint=EndpointSettings(kind="embedded"),
            ask=AskSettings(),
        )
    assert caught.value.exit_code == 2


def test_a_mode_that_a_kind_cannot_do_is_refused(made: Make) -> None:
    with pytest.raises(ProviderUnavailable, match=r"'llamacpp' cannot do ask\.mode = 'score'"):
        made("llamacpp", mode="score")


def test_a_missing_package_is_named_with_the_line_that_installs_it(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "collectors.providers.llamacpp", None)
    with pytest.raises(ProviderUnavailable, match=r"pip install 'potstill\[embedded\]'"):
        made("embedded")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_loads_and_says_how_it_is_asked(made: Make, kind: str) -> None:
    one = made(kind, mode=next(iter(KINDS[kind].modes)))
    assert one.kind in KINDS


SHAPES = {
    "prompt": {"prompt": "x"},
    "messages": {"messages": (Message(role="user", content="x"),)},
    "prompt_token_ids": {"prompt_token_ids": (2, 5)},
}
TOKENS = b'{"tokens": [5], "prompt": "x"}'  # what servers say of a prompt
ANSWERS = {"tgi": b'[{"id": 5, "text": "x"}]'}


@pytest.mark.parametrize("shape", [*SHAPES, *(f"{shape} with a completion" for shape in SHAPES)])
@pytest.mark.parametrize("bos", ["server", "add"])
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"local", "embedded"}))
def test_what_a_kind_cannot_be_asked_with_is_known_before(
    made: Make, item: Callable[..., Item], kind: str, bos: str, shape: str
) -> None:
    """The register of shapes says of each prompt what the provider says when it gets one."""
    for mode in KINDS[kind].modes:
        labels = {"labels": ("a", "b")} if mode == "classify" else {}
        ask = AskSettings(mode=mode, bos=bos, **labels)  # type: ignore[arg-type]
        completed = {"completion": "y"} if shape.endswith("completion") and mode == "score" else {}
        asked = item(**SHAPES[shape.partition(" ")[0]], **completed)
        endpoint = EndpointSettings(kind=kind, base_url="http://127.0.0.1:1")  # type: ignore[arg-type]
        tokenizer = SimpleNamespace(vocabulary=9, bos_token_id=2)
        refused = ""
        try:
            one = made(kind, mode=mode, bos=bos, tokenizer=tokenizer, **labels)
            while (first := one.prepare(asked)) is not None:
                assert first.body
                asked = one.prepared(asked, ANSWERS.get(kind, TOKENS))
            assert one.request(asked).body
        except (Rejected, ProviderUnavailable) as error:
            refused = str(error)
        if kind == "openai" and bos == "add":
            refused = "it has no way to say so"
        said = unfit_prompts(endpoint, ask, {shape: "p.jsonl:1"})
        assert (said is not None) == bool(refused), (mode, said, refused)


def test_the_embedded_kind_speaks_llamacpp(made: Make, item: Callable[..., Item]) -> None:
    asked = item(prompt="x", prompt_token_ids=(2, 5))
    assert made("embedded").request(asked) == made("llamacpp").request(asked)


@pytest.mark.parametrize("kind", ["llamacpp", "openai"])
def test_requests_do_not_depend_on_anything_but_the_item(made: Make, item: Callable[..., Item], kind: str) -> None:
    one, asked = made(kind), item(prompt="x", prompt_token_ids=(2, 5))
    assert one.request(asked) == one.request(asked)
    assert one.request(asked) != one.request(item(prompt="x", prompt_token_ids=(2, 5), seed=8))


def test_a_text_is_read_by_the_real_server_as_it_tokenizes_it(
    made: Make, item: Callable[..., Item], send: Callable[[Request], Response], teacher_tokenizer: Tokenizer
) -> None:
    """What /tokenize gives is what a text prompt would have been, BOS and special tokens included."""
    for text in ("The still", "<bos>Hi <start_of_turn>user", "", "  two  spaces\n🦊"):
        one, asked = made(top_k=3, temperature=0.0), item(prompt=text, max_tokens=1)
        first = one.prepare(asked)
        assert first is not None
        asked = one.prepared(asked, send(first).body)
        by_ids = json.loads(one.request(asked).body or b"")
        as_text: dict[str, Any] = json.loads(
            send(Request("POST", "/completion", json.dumps(by_ids | {"prompt": text}).encode())).body
        )
        assert asked.prompt_token_ids is not None
        assert as_text["tokens_evaluated"] == len(asked.prompt_token_ids)
        found = one.read(asked, json.dumps(as_text).encode())
        again = one.read(asked, send(one.request(asked)).body)
        assert found.labels is not None and again.labels is not None
        assert found.labels.top_ids[0, 0] == again.labels.top_ids[0, 0]
        assert found.labels.top_logprobs == pytest.approx(again.labels.top_logprobs, abs=0.1)
        assert asked.prompt_token_ids[0] == teacher_tokenizer.bos_token_id
