"""The register as data: every file valid, every word known, a bundle that does not depend on order or spelling."""

from __future__ import annotations

import random
from datetime import date
from importlib import resources
from pathlib import Path

import pytest

from policies.codes import CODES
from policies.documents import Bundle, load_bundle, read_bundle, read_document
from policies.duties import TEXTS, describe
from policies.errors import RegisterError
from policies.violations import _CHECKS

GEMMA = resources.files("policies.register").joinpath("gemma-tou@2025-03-24.toml").read_text("utf-8")
PATHS = {
    *("self_host", "openai-api", "anthropic-api", "gemini-api", "google-cloud-vertex", "xai-api", "mistral-api"),
    *("deepseek-platform", "cohere-api", "ai21-api", "meta-model-api", "stability-api", "liquid-api", "together"),
    *("fireworks", "groq", "aws-bedrock", "azure-openai", "openrouter", "chatgpt-consumer", "claude-consumer"),
    *("google-consumer", "grok-consumer", "mistral-consumer", "qwen-studio", "kimi-consumer"),
}


def test_every_word_of_every_document_is_known() -> None:
    for document in load_bundle().documents:
        assert {rule.code for rule in document.rules} <= set(CODES), document.name
        for duty in document.obligations:
            assert duty.type in TEXTS, (document.name, duty.type)
            text = describe(document, duty)
            assert text and "None" not in text and "{" not in text, (document.name, text)
        for word in (document.outputs.gist, document.source.read_in, document.source.url, document.owner):
            assert word.strip()


def test_checks_are_of_known_duties() -> None:
    assert set(_CHECKS) <= set(TEXTS)


def test_every_access_path_is_one_of_the_documented_ones() -> None:
    assert {path for d in load_bundle().documents for path in d.access_paths} == PATHS


def test_codes_say_what_they_mean_and_stopping_ones_name_a_way_out() -> None:
    quiet = {"SILENT_PERMISSIVE", "EXPRESS_PERMIT", "TERMS_CHANGED_SINCE_COLLECTION", "MISSING_FACT", "WAIVER_APPLIED"}
    for code, (meaning, ways) in CODES.items():
        assert meaning and (ways or code in quiet), code


def test_the_order_of_documents_does_not_matter() -> None:
    bundle = load_bundle()
    shuffled = list(bundle.documents)
    random.Random(7).shuffle(shuffled)
    again = Bundle(shuffled)
    assert (again.id, again.digest) == (bundle.id, bundle.digest)
    assert bundle.id == f"2026-11-24.{bundle.digest[:12]}"


def test_the_digest_is_of_what_is_said_not_of_how_it_is_written() -> None:
    name = "gemma-tou@2025-03-24.toml"
    document = read_document(GEMMA, name)
    respelled = read_document("# a comment\n" + GEMMA.replace("[[rules]]", "\n\n[[ rules ]]"), name)
    assert respelled.digest == document.digest
    later = read_document(GEMMA.replace("next_review = 2027-11-24", "next_review = 2028-11-24"), name)
    assert later.digest == document.digest
    assert Bundle([later]).digest != Bundle([document]).digest
    changed = read_document(GEMMA.replace('reach = "student"', 'reach = "outputs"'), name)
    assert changed.digest != document.digest


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('reach = "student"', 'reach = "far"', "reach: Input should be 'none'"),
        ('code = "EXPRESS_PERMIT"', 'code = "EXPRESS_PERMIT"\ncolour = 1', "[rules #1] colour: unknown key"),
        ("verified_at = 2026-11-24", "", "[source] verified_at: is missing"),
        ('trigger = "always"', 'trigger = "sometimes"', "trigger: Input should be 'always'"),
        ("when = { derivative = true }", "when = {}", "asks nothing"),
        ('kind = "model_licence"', 'kind = "model_licence"\neffective_to = 2020-01-01', "effective_from lies after"),
        ('id = "gemma-tou"', 'id = "gemma-x"', "should be called gemma-x@2025-03-24.toml"),
        ("[source]", "[source", "is not valid TOML"),
        ("next_review = 2027-11-24", "next_review = 2027-13-24", "is not valid TOML"),
        ('trigger = "always"', 'trigger = "always"\nterritory = ["UK"]', "GB is the code that is meant"),
        ("[[models]]", "[[model]]", "model: unknown key; did you mean models?"),
    ],
)
def test_a_malformed_document_is_refused_by_name(old: str, new: str, says: str) -> None:
    assert old in GEMMA
    with pytest.raises(RegisterError) as caught:
        read_document(GEMMA.replace(old, new), "gemma-tou@2025-03-24.toml")
    assert says in str(caught.value)
    assert all(line.startswith("gemma-tou@2025-03-24.toml: ") for line in str(caught.value).splitlines())


def test_a_model_licence_names_models_and_a_family_rule_its_family() -> None:
    start, end = GEMMA.index("[[models]]"), GEMMA.index("[[rules]]")
    with pytest.raises(RegisterError, match="must say which models it binds"):
        read_document(GEMMA[:start] + GEMMA[end:], "gemma-tou@2025-03-24.toml")
    asking = GEMMA.replace('verdict = "allow"', 'verdict = "allow"\nwhen = { student_in_family = true }')
    with pytest.raises(RegisterError, match=r"the document needs a \[family\]"):
        read_document(asking, "gemma-tou@2025-03-24.toml")


def test_a_bundle_refuses_doubles_holes_and_emptiness(tmp_path: Path) -> None:
    gemma = read_document(GEMMA, "gemma-tou@2025-03-24.toml")
    with pytest.raises(RegisterError, match="the same id and version"):
        Bundle([gemma, gemma])
    oss = next(d for d in load_bundle().documents if d.id == "gpt-oss-usage-policy")
    with pytest.raises(RegisterError, match=r"incorporates apache-2\.0, which the bundle lacks"):
        Bundle([oss])
    with pytest.raises(RegisterError, match="holds no terms documents"):
        read_bundle(tmp_path)
    with pytest.raises(RegisterError, match=r"none: the terms documents cannot be read \(No such file or directory\)"):
        read_bundle(tmp_path / "none")
    (tmp_path / "gemma-tou@2025-03-24.toml").write_bytes(b"\xff")
    with pytest.raises(RegisterError, match="a document that is not UTF-8 text"):
        read_bundle(tmp_path)


def test_a_folder_is_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "gemma-tou@2025-03-24.toml").write_text(GEMMA, "utf-8")
    (tmp_path / "notes.txt").write_text("not a document")
    assert [d.name for d in read_bundle(tmp_path).documents] == ["gemma-tou@2025-03-24"]


def test_versions_live_side_by_side() -> None:
    bundle = load_bundle()
    names = [d.name for d in bundle.versions("meta-model-api")]
    assert names == ["meta-model-api@2026-07-02", "meta-model-api@2026-07-08", "meta-model-api@2026-08-21"]
    for day, version in (
        (date(2020, 1, 1), "2026-07-02"),
        (date(2026, 7, 2), "2026-07-02"),
        (date(2026, 7, 7), "2026-07-02"),
        (date(2026, 7, 8), "2026-07-08"),
        (date(2026, 8, 21), "2026-08-21"),
        (date(2030, 1, 1), "2026-08-21"),
    ):
        held = bundle.in_force("meta-model-api", day)
        assert held is not None and held.version == version
    assert bundle.in_force("no-such-terms", date(2026, 1, 1)) is None
    assert bundle.get("no-such-terms@2026") is None
