"""The reader of settings files: all errors at once, each with its path, never the value."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from policies.settings import ConfigError, LocalPath, Settings, read_toml
from policies.use import Use


class Ask(Settings):
    top_k: int = Field(ge=1)
    api_key: str | None = None


class Pool(Settings):
    base_url: str


class Run(Settings):
    table: LocalPath
    ask: Ask
    endpoints: tuple[Pool, ...] = ()
    use: Use | LocalPath | None = None


def read(folder: Path, text: str) -> Run:
    (folder / "run.toml").write_text(text)
    return read_toml(folder / "run.toml", Run)


def lines_of(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    run = read(tmp_path, 'table = "data/labels"\nuse = "/etc/use.toml"\n[ask]\ntop_k = 3\n')
    assert run.table == tmp_path / "data" / "labels"
    assert run.use == Path("/etc/use.toml")


def test_every_error_at_once_with_its_path(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path, "[ask]\ntop_k = 0\ntopk = 3\n[[endpoints]]\nbase_url = 'x'\n[[endpoints]]\nbase_ur = 'x'\n"
    )
    assert lines == [
        "run.toml: table: is missing",
        "run.toml: [ask] top_k: Input should be greater than or equal to 1",
        "run.toml: [ask] topk: unknown key; did you mean top_k?",
        "run.toml: [endpoints #2] base_url: is missing",
        "run.toml: [endpoints #2] base_ur: unknown key; did you mean base_url?",
    ]


def test_an_unknown_key_far_from_all_lists_what_is_known(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, 'table = "t"\n[ask]\ntop_k = 1\nzzz = 1\n')
    assert lines == ["run.toml: [ask] zzz: unknown key; known here: api_key, top_k"]


def test_values_are_never_echoed(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, 'table = "t"\n[ask]\ntop_k = "sk-secret"\napi_key = ["sk-secret"]\n')
    assert len(lines) == 2 and "secret" not in "".join(lines)


def test_a_union_of_table_and_path_reports_only_the_shape_that_was_written(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, 'table = "t"\n[ask]\ntop_k = 1\n[use]\nacton = "train"\n[use.student]\nkind = "llm"\n')
    assert lines == [
        "run.toml: [use] action: is missing",
        "run.toml: [use.student] kind: Input should be 'general_llm', 'narrow_llm', 'classifier' or 'embedding'",
        "run.toml: [use] acton: unknown key; did you mean action?",
    ]
    assert lines_of(tmp_path, 'table = "t"\nuse = 3\n[ask]\ntop_k = 1\n')


@pytest.mark.parametrize(
    ("text", "says"),
    [("a = ", "is not valid TOML"), ("a = 1\na = 2", "is not valid TOML"), (b"\xff\xfe", "is not UTF-8 text")],
)
def test_a_file_that_is_no_toml(tmp_path: Path, text: str | bytes, says: str) -> None:
    (tmp_path / "use.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=says):
        read_toml(tmp_path / "use.toml", Use)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file; `potstill init` writes one"):
        read_toml(tmp_path / "none.toml", Use)
    with pytest.raises(ConfigError, match="is a folder"):
        read_toml(tmp_path, Use)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('action = "distribute_student"\n[student]\ndistributed = false', "[student] distributed = false contradicts"),
        ('action = "internal_use"\n[student]\ndistributed = true', "[student] distributed = true contradicts"),
        ('action = "internal_use"\n[organisation]\ndomicile = "Germany"', "[organisation] domicile: should be an ISO"),
        ('action = "train"\n[organisation]\ndomicile = "UK"', "domicile: should be an ISO 3166 code of two capital"),
        ('action = "train"\n[organisation]\ndomicile = "UK"', "such as DE: GB is the code that is meant"),
        ('action = "train"\n[organisation]\ndeploys_in = ["US", "EL"]', "deploys_in #2: should be an ISO 3166 code"),
        ('action = "train"\n[organisation]\ndomicile = "XX"', "domicile: should be an ISO 3166 code"),
        (
            'action = "train"\n[organisation]\nmonthly_active_users_on = { 2024-12-06 = -5 }',
            "[organisation.monthly_active_users_on] 2024-12-06: Input should be greater than or equal to 0",
        ),
        ('action = "train"\n[organisation]\nannual_revenue_usd = nan', "annual_revenue_usd: Input should be a finite"),
    ],
)
def test_facts_that_cannot_be(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "use.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_toml(tmp_path / "use.toml", Use)
    assert says in str(caught.value)


def test_a_code_that_nobody_bears_is_refused_without_a_guess(tmp_path: Path) -> None:
    (tmp_path / "use.toml").write_text('action = "train"\n[organisation]\ndomicile = "XX"')
    with pytest.raises(ConfigError, match=r"two capital letters, such as DE$"):
        read_toml(tmp_path / "use.toml", Use)
