import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.config import RunConfig
from collectors.plan import Plan, TeacherTokens
from collectors.prompts import Prompt, read_prompts
from storage.keys import KeySet
from storage.rows import Message
from tests.collectors.runs import run_config

TOKENS = TeacherTokens(tokenizer_sha256="a" * 64, template_sha256="b" * 64)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return run_config(tmp_path, prompts=10, samples=2)


def known(*keys: str) -> KeySet:
    found = KeySet()
    found.add_columns([pa.chunked_array([pa.array(keys, type=pa.string())])])
    return found


def test_a_key_is_the_digest_of_the_canonical_request(config: RunConfig) -> None:
    prompt = Prompt(id="x", source="x", messages=(Message(role="user", content="Grüße \u2028 \x01"),), completion="y")
    request = {
        "bos": "server",
        "completion": "y",
        "draws": None,
        "estimator": "top_k",
        "kind": "llamacpp",
        "labels": [],
        "messages": [{"content": "Grüße \u2028 \x01", "role": "user"}],
        "mode": "generate",
        "model": "google/gemma-3-270m",
        "prompt": None,
        "prompt_token_ids": None,
        "revision": "gguf-q4_k_m",
        "sample_index": 1,
        "sampling": {"max_tokens": 6, "min_p": 0.0, "seed": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
        "tail_sums": [],
        "template_sha256": "b" * 64,
        "tokenizer_sha256": "a" * 64,
        "top_k": 5,
    }
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert Plan(config, TOKENS).key(prompt, 1) == hashlib.sha256(text.encode()).hexdigest()


def test_each_prompt_gives_its_samples_with_seeds_of_their_own(config: RunConfig) -> None:
    items = list(Plan(config, TOKENS).items(read_prompts(config.prompts)))
    assert len(items) == 20
    assert len({item.key for item in items}) == len({item.seed for item in items}) == 20
    assert [(item.prompt_id, item.sample_index) for item in items[:3]] == [("p0", 0), ("p0", 1), ("p1", 0)]
    assert items == list(Plan(config, TOKENS).items(read_prompts(config.prompts)))
    assert all(0 <= item.seed < 2**31 for item in items)


def test_what_the_table_has_is_left_out(config: RunConfig) -> None:
    items = list(Plan(config, TOKENS).items(read_prompts(config.prompts)))
    plan = Plan(config, TOKENS, [known(*(item.key for item in items[:7])), known(items[9].key), KeySet()])
    left = list(plan.items(read_prompts(config.prompts)))
    assert left == items[7:9] + items[10:]
    assert (plan.already_known, plan.planned, plan.duplicates) == (8, 12, 0)


def test_the_same_question_is_asked_once(config: RunConfig) -> None:
    prompts = [Prompt(id=str(n), source="s", prompt="same") for n in range(3000)]
    plan = Plan(config, TOKENS)
    assert len(list(plan.items(prompts))) == 2
    assert plan.duplicates == 5998


@pytest.mark.parametrize(
    ("section", "change"),
    [("ask", {"temperature": 0.5}), ("ask", {"top_k": 9}), ("ask", {"seed": 1}), ("ask", {"bos": "add"}),
     ("teacher", {"revision": "other"}), ("teacher", {"model": "other"})],
)  # fmt: skip
def test_what_decides_the_answer_changes_the_key(config: RunConfig, section: str, change: dict[str, object]) -> None:
    other = config.model_copy(update={section: getattr(config, section).model_copy(update=change)})
    prompt = Prompt(id="x", source="s", prompt="a")
    assert Plan(config, TOKENS).key(prompt, 0) != Plan(other, TOKENS).key(prompt, 0)


def test_addresses_limits_and_names_do_not_change_the_key(config: RunConfig) -> None:
    endpoint = config.pool[0].model_copy(update={"base_url": "http://127.0.0.1:1", "served_model": "alias"})
    other = config.model_copy(update={"endpoint": endpoint, "name": "other", "limits": config.limits})
    a, b = Prompt(id="x", source="s", prompt="a"), Prompt(id="y", source="t", prompt="a", licence="MIT")
    assert Plan(config, TOKENS).key(a, 0) == Plan(other, TOKENS).key(b, 0)


text = st.text(max_size=20)


@given(text, text, st.integers(0, 3), st.integers(0, 3))
def test_different_questions_have_different_keys(first: str, second: str, i: int, j: int) -> None:
    config = RunConfig.model_validate(
        {
            "table": "t",
            "teacher": {"model": "m"},
            "endpoint": {"kind": "llamacpp", "base_url": "http://127.0.0.1:1"},
            "prompts": {"path": "p.jsonl"},
        }
    )
    plan = Plan(config, TOKENS)
    same = plan.key(Prompt(id="", source="", prompt=first), i) == plan.key(Prompt(id="", source="", prompt=second), j)
    assert same == ((first, i) == (second, j))
