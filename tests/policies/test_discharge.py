"""What is owed as files, and what a finished folder still lacks."""

from __future__ import annotations

import pytest

from policies.decision import Decision
from policies.discharge import (
    LEAST_LICENCE,
    beyond_the_folder,
    card_metadata,
    label,
    lines_to_show,
    read_back,
    texts,
    training_summary,
)
from tests.policies.test_evaluate import decide, material, use

GEMMA, LLAMA = "google/gemma-3-27b-it", "meta-llama/Llama-3.3-70B-Instruct"
TEXT = "x" * LEAST_LICENCE


def gemma() -> Decision:
    rows = material(GEMMA, rows=10, tokens=400, prompt_licence="CC0-1.0")
    return decide(rows, use(licence="LicenseRef-acme", name="acme"))


def llama() -> Decision:
    return decide(material(LLAMA), use(name="Llama-acme"))


def open_codes(decision: Decision) -> list[tuple[str, str]]:
    found = [r for r in decision.reasons if r.code in ("ATTRIBUTION_MISSING", "NOTICE_MISSING")]
    return sorted((r.code, r.gist.partition(": ")[2].partition(" (")[0].partition(":")[0]) for r in found)


def test_the_texts_name_every_duty_with_its_section() -> None:
    decision = gemma()
    files = texts(decision)
    assert set(files) == {"LICENSE-OBLIGATIONS.md", "NOTICE"}
    obligations = files["LICENSE-OBLIGATIONS.md"]
    assert decision.digest in obligations and decision.bundle in obligations
    for words in (
        "## gemma-tou@2025-03-24",
        "Mark what was modified, prominently (s3.1(3))",
        "`LICENSES/gemma-tou.txt`",
    ):
        assert words in obligations
    assert f"trained on outputs of {GEMMA}" in files["NOTICE"]
    notice = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    assert f"gemma-tou@2025-03-24: {notice}\n" in files["NOTICE"]
    assert "modified work under gemma-tou@2025-03-24" in files["NOTICE"]


def test_a_folder_is_read_back() -> None:
    decision = gemma()
    empty = read_back(decision, {})
    assert (empty.verdict, decision.verdict) == ("review", "conditional")
    assert open_codes(empty) == [
        ("NOTICE_MISSING", "Give a copy of the licence"),
        ("NOTICE_MISSING", "Give the notice file"),
        ("NOTICE_MISSING", "Make the use restrictions"),
        ("NOTICE_MISSING", "Mark what was modified, prominently"),
    ]
    written = read_back(decision, texts(decision))
    assert [gist for _, gist in open_codes(written)] == ["Give a copy of the licence", "Make the use restrictions"]
    whole = {
        **texts(decision),
        "LICENSES/gemma-tou.txt": TEXT,
        "LICENSE": "… You follow the Gemma Prohibited\nUse Policy …",
    }
    finished = read_back(decision, whole)
    assert finished.verdict == "conditional" and open_codes(finished) == []
    assert {o.type for o in finished.obligations if o.due and not o.discharged} == {
        "no_trademark_use",
        "use_policy_passthrough",
    }
    assert finished.digest != decision.digest


def test_what_is_open_says_where_it_is_looked_for() -> None:
    ways = {fix for reason in read_back(gemma(), {}).reasons for fix in reason.fix if reason.code == "NOTICE_MISSING"}
    assert ways == {
        "put the licence's text in LICENSES/gemma-tou.txt",
        "put the student's own licence in LICENSE, with what the terms demand of it",
        "write it in NOTICE, with the name of the terms document",
    }
    shown = read_back(llama(), {"README.md": "# acme"})
    ways = {fix for reason in shown.reasons for fix in reason.fix if reason.code == "ATTRIBUTION_MISSING"}
    assert ways == {"rename the student, and the title of README.md with it", "write the line in README.md"}


def test_a_notice_is_the_licensors_sentence_and_no_other() -> None:
    """Where the register has no sentence none is made up: the duty stays open until someone wrote it."""
    written = texts(llama())["NOTICE"]
    assert "Llama 3.3 is licensed under the Llama 3.3 Community License, Copyright © Meta" in written
    assert ("NOTICE_MISSING", "Give the notice file") not in open_codes(read_back(llama(), {"NOTICE": written}))
    other = {"NOTICE": "llama-3.3@2024-12-06: some notice"}
    assert ("NOTICE_MISSING", "Give the notice file") in open_codes(read_back(llama(), other))
    deepseek = decide(material("deepseek-ai/DeepSeek-V3@2024-12"), use(licence="LicenseRef-acme"))
    kept = ("NOTICE_MISSING", "Keep the notices that came with the model")
    assert kept in open_codes(read_back(deepseek, texts(deepseek)))
    assert kept not in open_codes(
        read_back(deepseek, {"NOTICE": "deepseek-license-1.0@2023-10-23: Copyright DeepSeek"})
    )


def test_no_line_is_shown_of_which_the_register_has_no_wording() -> None:
    yi = decide(material("01-ai/Yi-34B@2023-12"), use(registrations=["yi-community-2.1"]))
    assert [o.text for o in yi.obligations if o.type == "attribution_display"] == ["Show the line: as the text asks"]
    assert lines_to_show(yi) == [] and "attributions" not in card_metadata(yi)
    assert "Show the line: as the text asks" in {o.text for o in beyond_the_folder(yi)}
    large = use(monthly_active_users=10**9)
    assert lines_to_show(decide(material("moonshotai/Kimi-K2-Instruct"), large)) == ["Kimi K2"]


def test_what_no_folder_can_show_is_said_apart() -> None:
    kimi = decide(material("moonshotai/Kimi-K3"), use(business=["other"]))
    assert [o.text for o in beyond_the_folder(kimi)] == [
        "Take a separate licence from Moonshot where the business and revenue named apply "
        "(model as a service; 20,000,000 USD of revenue a year)"
    ]
    assert beyond_the_folder(gemma()) == []


def test_a_placeholder_is_no_licence_copy() -> None:
    short = {**texts(gemma()), "LICENSES/gemma-tou.txt": TEXT[:-1]}
    assert ("NOTICE_MISSING", "Give a copy of the licence") in open_codes(read_back(gemma(), short))


@pytest.mark.parametrize(
    ("card", "missing"),
    [
        ("# Llama-acme\n\nBuilt  with\nLlama.", []),
        ("# Llama-acme\n", ["Show the line"]),
        ("# acme\n\nBuilt with Llama", ["Begin the student's name with 'Llama'"]),
        ("Built with Llama", ["Begin the student's name with 'Llama'"]),
    ],
)
def test_lines_and_names_are_looked_for_in_the_card(card: str, missing: list[str]) -> None:
    found = open_codes(read_back(llama(), {"README.md": card}))
    assert [gist for code, gist in found if code == "ATTRIBUTION_MISSING"] == missing


def test_one_of_several_wordings_is_enough() -> None:
    qwen = decide(material("Qwen/Qwen2.5-72B-Instruct"), use())
    assert card_metadata(qwen)["attributions"] == ["Built with Qwen"]
    for line in ("Built with Qwen", "Improved using Qwen"):
        assert open_codes(read_back(qwen, {"README.md": f"# acme\n{line}"})) == []
    assert open_codes(read_back(qwen, {"README.md": "# acme"})) == [("ATTRIBUTION_MISSING", "Show the line")]


def test_a_mark_is_looked_for_in_the_title() -> None:
    deepseek = decide(material("deepseek-chat#deepseek-platform"), use())
    assert open_codes(read_back(deepseek, {"README.md": "# acme-7b"})) == []
    assert open_codes(read_back(deepseek, {"README.md": "# DeepSeek-acme"})) != []


def test_the_label_of_outputs_is_looked_for_in_the_card() -> None:
    mistral = decide(material("mistral-large-2512#mistral-api", signal="text"), use())
    assert [o.type for o in mistral.obligations if o.due and "ai_generated" in o.type] == ["disclose_ai_generated"]
    assert open_codes(read_back(mistral, {"README.md": f"# acme\n{label(mistral)}"})) == []
    missing = open_codes(read_back(mistral, {"README.md": "# acme"}))
    assert missing == [("ATTRIBUTION_MISSING", "Disclose that outputs are AI-generated")]


def test_a_data_set_is_told_as_one() -> None:
    published = decide(material(LLAMA, rows=3), use("publish_dataset"))
    files = texts(published)
    assert "# What is owed for this data set" in files["LICENSE-OBLIGATIONS.md"]
    assert f"This data set holds outputs of {LLAMA}." in files["NOTICE"]
    assert "completions in this data set" in label(published)


def test_share_alike_needs_the_text() -> None:
    stability = decide(
        material("stabilityai/stablelm-2-12b-chat"),
        use(commercial=False, licence="LicenseRef-stability-nc-2023"),
    )
    types = {o.type for o in read_back(stability, {"LICENSE": TEXT}).obligations if o.discharged}
    assert "share_alike" in types
    assert "share_alike" not in {o.type for o in read_back(stability, {"LICENSE": "x"}).obligations if o.discharged}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("LicenseRef-acme", {"license": "other", "license_name": "LicenseRef-acme", "license_link": "LICENSE"}),
        ("MIT AND CC-BY-4.0", {"license": "other", "license_name": "MIT AND CC-BY-4.0", "license_link": "LICENSE"}),
    ],
)
def test_card_metadata(licence: str, expected: dict[str, str]) -> None:
    decision = decide(material(), use(licence=licence))
    metadata = card_metadata(decision)
    assert expected.items() <= metadata.items()
    assert metadata["base_model"] == "allenai/OLMo-2-1124-7B"
    assert metadata["teachers"] == ["Qwen/Qwen3-32B"] and metadata["policy_decision"] == decision.digest
    assert "attributions" not in metadata
    bare = card_metadata(decide(material(), use("internal_use", without=("licence",), init_from="scratch")))
    assert "license" not in bare and "base_model" not in bare


def test_the_training_summary_names_models_and_amounts() -> None:
    assert training_summary(gemma()) == [
        f"Synthetic data made by {GEMMA}: 10 rows, 400 tokens; access path self_host, top k logprobs"
    ]
    dated = decide(material("deepseek-ai/DeepSeek-V3@0324"), use())
    assert "DeepSeek-V3 (revision 0324)" in training_summary(dated)[0]
