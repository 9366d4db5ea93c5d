"""The texts that go with a student or a data set, word for word: they are read by others than their makers."""

from __future__ import annotations

import pytest

from policies.discharge import card_metadata, label, lines_to_show, read_back, texts, training_summary
from tests.policies.test_discharge import GEMMA, LLAMA, TEXT, gemma, llama, open_codes
from tests.policies.test_evaluate import decide, material, use

DEEPSEEK = "deepseek-chat#deepseek-platform"


def test_the_obligations_of_a_student() -> None:
    decision = gemma()
    assert (
        texts(decision)["LICENSE-OBLIGATIONS.md"]
        == f"""# What is owed for this model

Policy verdict `conditional` for `distribute_student` under bundle `{decision.bundle}`,
decision `{decision.digest}`. Not legal advice.

## gemma-tou@2025-03-24

- Give a copy of the licence (Gemma Terms of Use) (s3.1(2))
- Mark what was modified, prominently (s3.1(3))
- Give the notice file: Gemma is provided under and subject to the Gemma Terms of Use \
found at ai.google.dev/gemma/terms (s3.1(4))
- Make the use restrictions (Gemma Prohibited Use Policy) an enforceable part of the student's licence (s3.1(1))
- Do not use the licensor's marks (s4.2)
- Follow the use policy (s3.2)

## Licence texts to put beside the model

- `LICENSES/gemma-tou.txt`
"""
    )


def test_the_obligations_of_a_data_set_name_each_document_apart() -> None:
    prompts = material(DEEPSEEK, rows=3, prompt_licence="CC-BY-SA-4.0")
    decision = decide(prompts, use("publish_dataset"))
    lines = texts(decision)["LICENSE-OBLIGATIONS.md"].splitlines()
    assert lines[0] == "# What is owed for this data set"
    assert lines[4:] == [
        "",
        "## deepseek-platform@2026-04-29",
        "",
        "- Label published outputs as AI-generated (Terms of Use s3.1(2))",
        "- Verify published outputs (ToU s3.1(1))",
        "",
        "## prompts: CC-BY-SA-4.0",
        "",
        "- Name the prompts' authors and their licence, CC-BY-SA-4.0",
        "- Publish the data set under CC-BY-SA-4.0",
    ]


def test_the_notice() -> None:
    both = decide([material(GEMMA), material(LLAMA)], use(licence="LicenseRef-acme", name="Llama-acme"))
    assert texts(both)["NOTICE"].splitlines() == [
        f"This model was trained on outputs of {GEMMA}, {LLAMA}.",
        "Built with Llama",
        f"It is a modified work under gemma-tou@2025-03-24: distilled from {GEMMA}.",
        "gemma-tou@2025-03-24: Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
        "llama-3.3@2024-12-06: Llama 3.3 is licensed under the Llama 3.3 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.",
    ]


def test_the_front_matter() -> None:
    decision = llama()
    own = card_metadata(gemma())
    assert (own["license"], own["license_name"]) == ("other", "LicenseRef-acme")
    assert own["tags"] == ["distillation", "trained-on-model-outputs"]
    assert card_metadata(decision) == {
        "tags": ["distillation", "trained-on-model-outputs"],
        "license": "apache-2.0",
        "base_model": "allenai/OLMo-2-1124-7B",
        "attributions": ["Built with Llama"],
        "licence_copies": ["LICENSES/llama-3.3.txt"],
        "ai_generated": True,
        "teachers": [LLAMA],
        "policy_decision": decision.digest,
    }


def test_the_labels() -> None:
    assert label(llama()) == "Outputs of this model are AI-generated: label them so wherever they are published."
    published = label(decide(material(DEEPSEEK), use("publish_dataset")))
    assert (
        published == "The completions in this data set are AI-generated: keep that label wherever they are published."
    )


def test_what_is_missing_names_teacher_document_and_place() -> None:
    decision = gemma()
    (first, *_) = read_back(decision, {}).reasons[len(decision.reasons) :]
    assert first.model_dump() == {
        "code": "NOTICE_MISSING",
        "verdict": "review",
        "teacher": GEMMA,
        "document": "gemma-tou@2025-03-24",
        "section": "s3.1(2)",
        "gist": "Not found in the student's folder: Give a copy of the licence (Gemma Terms of Use)",
        "fix": ("put the licence's text in LICENSES/gemma-tou.txt",),
        "facts": {"teachers": [GEMMA]},
    }


def test_each_place_is_named() -> None:
    stability = decide(
        material("stabilityai/stablelm-2-12b-chat"), use(commercial=False, licence="LicenseRef-stability-nc-2023")
    )
    own = "put the student's own licence in LICENSE, with what the terms demand of it"
    assert own in {fix for reason in read_back(stability, {}).reasons for fix in reason.fix}
    (mark,) = (r for r in read_back(decide(material(DEEPSEEK), use()), {}).reasons if r.code == "ATTRIBUTION_MISSING")
    assert mark.fix == ("rename the student, and the title of README.md with it",)
    two = decide([material(GEMMA), material("google/gemma-3-4b-it")], use(licence="LicenseRef-acme"))
    assert f"distilled from {GEMMA}, google/gemma-3-4b-it.\n" in texts(two)["NOTICE"]


def test_summaries_come_by_model_and_then_by_signal() -> None:
    groups = [material(LLAMA, signal="text"), material(LLAMA, signal="logits"), material(GEMMA, signal="text")]
    made = [line.partition(" by ")[2].partition(":")[0] for line in training_summary(decide(groups, use("collect")))]
    assert made == [GEMMA, LLAMA, LLAMA]
    assert [line.rpartition(", ")[2] for line in training_summary(decide(groups, use("collect")))] == [
        *("text", "logits", "text"),
    ]


@pytest.mark.parametrize(("text", "done"), [("the terms of hunyuan-large", True), ("2024-11-05", False), ("", False)])
def test_restrictions_without_a_name_of_their_own_go_by_their_document(text: str, done: bool) -> None:
    family = use(init_from="tencent/Hunyuan-7B-Pretrain", licence="LicenseRef-hunyuan-large")
    hunyuan = decide(material("tencent/Tencent-Hunyuan-Large"), family)
    found = read_back(hunyuan, {"LICENSE": text})
    assert ("use_restrictions_enforceable" in {o.type for o in found.obligations if o.discharged}) is done


def test_a_title_is_looked_for_below_the_front_matter() -> None:
    deepseek = decide(material(DEEPSEEK), use())
    assert open_codes(read_back(deepseek, {"README.md": "---\nx: 1\n---\n# acme-7b\n"})) == []
    assert open_codes(read_back(deepseek, {})) == [("ATTRIBUTION_MISSING", "Do not use the licensor's marks")]
    whole = {**texts(llama()), "LICENSES/llama-3.3.txt": TEXT, "README.md": "---\n---\n# Llama-acme\nBuilt with Llama"}
    assert open_codes(read_back(llama(), whole)) == []


def test_a_kept_notice_is_a_line_of_its_own() -> None:
    deepseek = decide(material("deepseek-ai/DeepSeek-V3@2024-12"), use(licence="LicenseRef-acme"))
    kept = ("NOTICE_MISSING", "Keep the notices that came with the model")
    name = "deepseek-license-1.0@2023-10-23"
    for notice, is_open in ((f"first\n{name}: Copyright", False), (f"see {name}: there", True), (f"{name}:", True)):
        assert (kept in open_codes(read_back(deepseek, {"NOTICE": notice}))) is is_open


def test_wordings_lose_only_what_frames_them() -> None:
    assert lines_to_show(decide(material("tiiuae/falcon-11B"), use(licence="LicenseRef-acme"))) == [
        "built using Falcon LLM technology"
    ]
