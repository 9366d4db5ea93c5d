"""The commands `check` and `terms`, as a person and as a script meet them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from policies.cli import check, terms
from policies.decision import Decision
from policies.documents import load_bundle
from policies.errors import FactsError, PolicyError, RegisterError
from policies.settings import ConfigError

USE = """action = "distribute_student"
[student]
name = "acme-7b"
licence = "Apache-2.0"
init_from = "Qwen/Qwen3-8B-Base"
kind = "general_llm"
distributed = true
intent_similar = true
[organisation]
domicile = "US"
deploys_in = ["US"]
commercial = true
annual_revenue_usd = 50_000_000
monthly_active_users = 1_000_000
[data]
signal = "top_k_logprobs"
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(check, list(arguments), env={"COLUMNS": "80"})


@pytest.fixture
def use(tmp_path: Path) -> str:
    path = tmp_path / "use.toml"
    path.write_text(USE)
    return str(path)


@pytest.mark.parametrize(
    ("teacher", "code", "verdict"),
    [
        ("Qwen/Qwen3-32B", 0, "allow"),
        ("Qwen/Qwen2.5-72B-Instruct", 0, "conditional"),
        ("deepseek-ai/DeepSeek-V3", 5, "review"),
        ("google/gemma-3-270m@gguf-q4_k_m", 3, "deny"),
    ],
)
def test_exit_codes_and_json(use: str, teacher: str, code: int, verdict: str) -> None:
    result = run("--teacher", teacher, "--use", use, "--json")
    assert result.exit_code == code
    record = json.loads(result.stdout)
    assert record["verdict"] == verdict
    keys = {"verdict", "action", "reasons", "obligations", "missing_facts", "per_teacher", "bundle", "facts", "digest"}
    assert keys <= set(record)
    assert Decision.from_json(result.stdout).digest == record["digest"]


def test_what_a_person_reads(use: str) -> None:
    result = run("--teacher", "google/gemma-3-270m@gguf-q4_k_m", "--teacher", "Qwen/Qwen3-32B", "--use", use)
    assert result.exit_code == 3
    assert result.stdout.startswith("REFUSED  distribute_student acme-7b under Apache-2.0")
    for words in (
        "STUDENT_LICENCE_CONFLICT  gemma-tou@2025-03-24, s3.1(1)",
        "Ways out",
        "• keep the student inside: action = internal_use",
        "• leave out google/gemma-3-270m@gguf-q4_k_m: the rest is allowed",
        "Owed for this use",
        "not legal advice",
    ):
        assert words in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_without_a_use_collecting_alone_is_judged() -> None:
    result = run("--teacher", "google/gemma-3-270m", "--json")
    assert (result.exit_code, json.loads(result.stdout)["action"]) == (0, "collect")
    assert json.loads(run("--teacher", "claude-sonnet#anthropic-api", "--json").stdout)["verdict"] == "conditional"
    assert run("--teacher", "gpt-4o#chatgpt-consumer").exit_code == 3


def test_missing_facts_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "use.toml"
    path.write_text('action = "distribute_student"\n')
    result = run("--teacher", "meta-llama/Llama-3.3-70B-Instruct", "--use", str(path))
    assert result.exit_code == 5
    assert "Facts that would settle it: organisation.monthly_active_users, student.name" in " ".join(
        result.stdout.split()
    )


def test_the_record_is_written(use: str, tmp_path: Path) -> None:
    out = tmp_path / "decision.json"
    assert run("--teacher", "Qwen/Qwen3-32B", "--use", use, "--out", str(out)).exit_code == 0
    assert Decision.from_json(out.read_text()).verdict == "allow"
    result = run("--teacher", "Qwen/Qwen3-32B", "--use", use, "--out", str(tmp_path / "no" / "d.json"))
    assert isinstance(result.exception, PolicyError) and "cannot be written" in str(result.exception)


def test_a_waiver_file(tmp_path: Path) -> None:
    use, waiver = tmp_path / "use.toml", tmp_path / "waiver.toml"
    use.write_text('action = "internal_use"\n')
    document = load_bundle().get("anthropic-commercial@2025-06-17")
    assert document is not None
    waiver.write_text(f"""kind = "external_permission"
document = "{document.name}"
document_digest = "{document.digest}"
rules = ["OUTPUT_TRAIN_BAN_ANY_MODEL"]
valid_from = 2020-01-01
valid_until = 2999-01-01
[permission]
title = "letter"
sha256 = "{"ab" * 32}"
granted_by = "Anthropic"
granted_on = 2020-01-01
""")
    teacher = "claude-sonnet#anthropic-api"
    assert run("--teacher", teacher, "--use", str(use)).exit_code == 3
    result = run("--teacher", teacher, "--use", str(use), "--waiver", str(waiver), "--json")
    assert result.exit_code == 0 and "WAIVER_APPLIED" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["--teacher", "a b"], FactsError, "write MODEL[@REVISION]"),
        (["--teacher", "a/b", "--use", "none.toml"], ConfigError, "there is no such file"),
        (["--teacher", "a/b", "--waiver", "none.toml"], ConfigError, "there is no such file"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], error: type[PolicyError], says: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, error) and says in str(result.exception)
    assert result.exception.exit_code == 2


def test_no_teacher_is_bad_usage() -> None:
    assert run().exit_code == 2


def test_a_teachers_name_cannot_style_or_clear_the_terminal(use: str) -> None:
    result = run("--teacher", "evil/[red]\x1b[2Jname", "--use", use)
    assert "\x1b" not in result.stdout and "[red]" in result.stdout


def test_the_register_is_listed_one_line_a_version() -> None:
    result = CliRunner().invoke(terms, [])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == len(load_bundle().documents) + 2
    gemma = next(line for line in lines if line.startswith("gemma-tou@2025-03-24"))
    assert gemma.split()[1:4] == ["conditions", "stored-copy", "2026-11-24"] and "google/gemma-2b*" in gemma
    assert any(line.startswith("gemma-4@2026-04") and "unverified" in line for line in lines)
    assert any(line.startswith("gemini-api@2025-05-20") and "stale" in line for line in lines)
    assert any(line.startswith("xai-enterprise@2026-05-12") and "superseded" in line for line in lines)


def test_one_document_is_shown_whole() -> None:
    result = CliRunner().invoke(terms, ["gemma-tou"])
    document = load_bundle().get("gemma-tou@2025-03-24")
    assert document is not None
    for words in ("Gemma Terms of Use", "termination reaches: student", "s3.1(1)", document.digest):
        assert words in result.stdout
    assert CliRunner().invoke(terms, ["gemma-tou@2025-03-24"]).stdout == result.stdout
    versions = CliRunner().invoke(terms, ["meta-model-api"]).stdout
    assert versions.count("meta-model-api@") == 3 and "no longer in force" in versions


def test_the_register_as_json() -> None:
    shown = json.loads(CliRunner().invoke(terms, ["--json"]).stdout)
    assert shown["bundle"] == load_bundle().id and len(shown["documents"]) == len(load_bundle().documents)
    gemini = json.loads(CliRunner().invoke(terms, ["gemini-api", "--json"]).stdout)["documents"][0]
    assert gemini["name"] == "gemini-api@2025-05-20"
    assert gemini["doubts"] == ["stale: 2026-03-23 version reported, 2025-05-20 read"]
    assert gemini["source"]["confidence"] == "stored-copy"


def test_an_unknown_document_suggests_the_nearest() -> None:
    result = CliRunner().invoke(terms, ["gema-tou"])
    assert isinstance(result.exception, RegisterError) and "did you mean gemma-tou" in str(result.exception)
    far = CliRunner().invoke(terms, ["zzzzzzzz"])
    assert isinstance(far.exception, RegisterError) and "`potstill terms` lists what there is" in str(far.exception)


def test_the_room_is_cheap_to_import_and_exports_what_it_says() -> None:
    heavy = "{'pydantic', 'rich', 'license_expression', 'cryptography'}"
    code = f"import sys, policies, policies.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    import policies

    assert policies.__doc__ is not None and policies.__doc__.startswith("potstill room: policies.")
    for name in policies.__all__:
        assert getattr(policies, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = policies.nothing  # type: ignore[attr-defined]
