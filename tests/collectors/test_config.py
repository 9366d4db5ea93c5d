from pathlib import Path

import pytest

from collectors.config import RunConfig, read_run
from collectors.errors import KeyMissing
from policies.settings import ConfigError
from tests.collectors.runs import run_config, write_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "run.toml"


def refused(folder: Path, old: str, new: str) -> str:
    path = write_run(folder, "http://127.0.0.1:8000")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_run(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_example_is_a_valid_run() -> None:
    config = read_run(EXAMPLE)
    assert config.pool[0].wire_kind == "llamacpp"
    assert config.table == EXAMPLE.parent / "data" / "soft_labels"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = run_config(tmp_path / "deep")
    assert config.table == tmp_path / "deep" / "table"
    assert config.prompts.path == tmp_path / "deep" / "prompts.jsonl"


def test_a_budget_in_dollars_needs_a_price(tmp_path: Path) -> None:
    assert "[price]" in refused(tmp_path, "[prompts]", "[budget]\nusd = 5.0\n[prompts]")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "llamacpp"', 'kind = "ollama"', "token ids"),
        ('kind = "llamacpp"', 'kind = "embedded"', "base_url"),
        ('base_url = "http://127.0.0.1:8000"', "", "base_url"),
        ("http://127.0.0.1:8000", "http://169.254.169.254", "metadata"),
        ("http://127.0.0.1:8000", "http://u:secret@a.example", "credentials"),
        ("http://127.0.0.1:8000", "http://a.example?key=secret", "api_key_env"),
        ("top_k = 5", 'top_k = 5\nmode = "classify"', "labels"),
        ("top_k = 5", 'top_k = 5\nlabels = ["a", "b"]', "labels"),
        ("top_k = 5", 'top_k = 5\nmode = "mask"', "local"),
        ("samples = 1", 'samples = 3\nmode = "score"', "samples"),
        ("top_k = 5", "top_k = -1", "top_k"),
        ("max_tokens", "max_token", "max_tokens"),
        ("[limits]", '[limits]\napi_key = "secret"', "api_key"),
        ('licence = "CC0-1.0"', 'template = "{text.real}"', "template"),
        ("table =", 'name = "../evil"\ntable =', "name"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place_and_without_its_value(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    message = refused(tmp_path, old, new)
    assert said in message
    assert "secret" not in message
    assert "run.toml" in message


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "concurrency = 8", "concurrency = 0\nrequests_per_minute = -5")
    assert "concurrency" in message
    assert "requests_per_minute" in message


def test_a_pool_must_be_of_equals(tmp_path: Path) -> None:
    other = '[[endpoints]]\nkind = "openai"\nbase_url = "http://127.0.0.1:2"\n[limits]'
    message = refused(tmp_path, "[limits]", other)
    assert "pool" in message
    path = write_run(tmp_path, "http://127.0.0.1:1")
    one = '[[endpoints]]\nkind = "vllm"\nbase_url = "http://127.0.0.1:{}"\n'
    head, tail = path.read_text().split("[endpoint]")[0], path.read_text().split("[limits]")[1]
    path.write_text(head + one.format(1) + one.format(2) + "[limits]" + tail)
    assert len(read_run(path).pool) == 2
    path.write_text(head + one.format(1) + one.format(2).replace("vllm", "tgi") + "[limits]" + tail)
    with pytest.raises(ConfigError, match="equivalent"):
        read_run(path)


def test_a_use_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "use.toml").write_text('action = "internal_use"\n[student]\nname = "small"\n')
    config = run_config(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text('use = "use.toml"\n' + path.read_text())
    read = read_run(path)
    assert read.use is not None
    assert read.use.student.name == "small"
    assert config.use is None
    path.write_text(path.read_text().replace("use.toml", "missing.toml"))
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        read_run(path)


def test_keys_come_from_the_environment_or_a_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path, "http://127.0.0.1:8000")
    text = path.read_text()
    path.write_text(text.replace("POTSTILL_CANARY_KEY", "POTSTILL_TEST_KEY"))
    monkeypatch.delenv("POTSTILL_TEST_KEY", raising=False)
    with pytest.raises(KeyMissing, match="POTSTILL_TEST_KEY"):
        read_run(path).pool[0].api_key()
    monkeypatch.setenv("POTSTILL_TEST_KEY", "canary\n")
    config = read_run(path)
    assert config.pool[0].api_key() == "canary"
    assert "canary" not in repr(config) + config.model_dump_json()
    path.write_text(text.replace('api_key_env = "POTSTILL_CANARY_KEY"', 'api_key_file = "key.txt"'))
    with pytest.raises(KeyMissing, match=r"key\.txt"):
        read_run(path).pool[0].api_key()
    (tmp_path / "key.txt").write_text("other-canary\n")
    assert read_run(path).pool[0].api_key() == "other-canary"
    (tmp_path / "key.txt").write_text("two words")
    with pytest.raises(KeyMissing, match="one key") as caught:
        read_run(path).pool[0].api_key()
    assert "two words" not in str(caught.value)


def changed(config: RunConfig, **sections: object) -> RunConfig:
    return config.model_copy(update=sections)


def test_the_run_id_changes_with_what_decides_keys_and_with_nothing_else(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    assert config.run_id.startswith("run-")
    limits = config.limits.model_copy(update={"concurrency": 99})
    assert changed(config, limits=limits).run_id == config.run_id
    moved = config.pool[0].model_copy(update={"base_url": "http://127.0.0.1:9999"})
    assert changed(config, endpoint=moved).run_id == config.run_id
    asked = config.ask.model_copy(update={"temperature": 0.5})
    assert changed(config, ask=asked).run_id != config.run_id
    assert changed(config, table=tmp_path / "other").run_id != config.run_id
