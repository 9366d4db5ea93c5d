"""From teacher to documents: what binds, and what cannot be told."""

from __future__ import annotations

from datetime import date

import pytest

from policies.binding import bind, binding_terms
from policies.documents import load_bundle
from policies.errors import FactsError
from policies.identity import Teacher

TODAY = date(2026, 11, 24)


HALF_KNOWN = (
    "01-ai/Yi-34B@2024",
    "anthropic/claude-sonnet-4#openrouter/Amazon-Bedrock",
    "unsloth/gemma-3-4b-it-GGUF+google/gemma-3-4b-it",
    "gpt-4o#chatgpt-consumer",
)


def terms(text: str, on: date = TODAY) -> list[str]:
    return list(binding_terms(Teacher.parse(text), load_bundle(), on))


def problems(text: str) -> list[str]:
    return [problem.code for problem in bind(Teacher.parse(text), load_bundle(), TODAY).problems]


@pytest.mark.parametrize(
    ("teacher", "documents"),
    [
        ("google/gemma-3-270m@gguf-q4_k_m", ["gemma-tou@2025-03-24"]),
        ("google/gemma-3-27b-it", ["gemma-tou@2025-03-24"]),
        ("GOOGLE/Gemma-2-9b", ["gemma-tou@2025-03-24"]),
        ("google/gemma-4-31b", ["gemma-4@2026-04"]),
        ("Qwen/Qwen3-32B", ["apache-2.0@2004-01-01"]),
        ("Qwen/Qwen2.5-7B-Instruct", ["apache-2.0@2004-01-01"]),
        ("Qwen/Qwen2.5-3B", ["qwen-research-2024@2024-09-19"]),
        ("Qwen/Qwen2.5-72B-Instruct", ["qwen-license-2024@2024-09-19"]),
        ("deepseek-ai/DeepSeek-V3@2024-12", ["deepseek-license-1.0@2023-10-23"]),
        ("deepseek-ai/DeepSeek-V3@2024-12-26", ["deepseek-license-1.0@2023-10-23"]),
        ("deepseek-ai/DeepSeek-V3@1226", ["deepseek-license-1.0@2023-10-23"]),
        ("deepseek-ai/DeepSeek-V3@0324", ["mit@undated"]),
        ("deepseek-ai/DeepSeek-V3@2025-03", ["mit@undated"]),
        ("deepseek-ai/DeepSeek-V3@2025-03-24", ["mit@undated"]),
        ("deepseek-ai/DeepSeek-V3-0324", ["mit@undated"]),
        ("deepseek-chat#deepseek-platform", ["deepseek-platform@2026-04-29"]),
        ("01-ai/Yi-34B@2023-12", ["yi-community-2.1@2023-11-23"]),
        ("01-ai/Yi-34B@2024", []),
        ("01-ai/Yi-34B@2024-06", ["apache-2.0@2004-01-01"]),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", ["apache-2.0@2004-01-01", "mit@undated"]),
        (
            "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
            ["deepseek-r1-distill-llama@2025-01-20", "llama-3.1@2024-07-23", "mit@undated"],
        ),
        (
            "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
            ["deepseek-r1-distill-llama@2025-01-20", "llama-3.3@2024-12-06", "mit@undated"],
        ),
        ("openai/gpt-oss-20b", ["apache-2.0@2004-01-01", "gpt-oss-usage-policy@2025-08"]),
        ("nvidia/Cosmos-Reason1-7B", ["nvidia-cosmos@2025-04-28", "nvidia-open-model@2025-04-28"]),
        ("nvidia/Llama-3.1-Nemotron-70B-Instruct-HF", ["llama-3.1@2024-07-23", "nvidia-open-model@2025-04-28"]),
        ("NousResearch/Hermes-3-Llama-3.1-8B", ["llama-3.1@2024-07-23", "llama-3@2024-04-18"]),
        ("gpt-4o#openai-api", ["openai-services-agreement@2026-01-01"]),
        ("gpt-4o#azure-openai", ["azure-openai@undated"]),
        ("Qwen/Qwen3-32B#together", ["apache-2.0@2004-01-01", "together@2026-05-19"]),
        ("google/gemma-3-27b-it#groq", ["gemma-tou@2025-03-24", "groq@2025-10-15"]),
        (
            "meta-llama/Llama-3.3-70B-Instruct#google-cloud-vertex",
            ["google-cloud-vertex@undated", "llama-3.3@2024-12-06"],
        ),
        (
            "deepseek-ai/DeepSeek-V3@2024-12#deepseek-platform",
            ["deepseek-license-1.0@2023-10-23", "deepseek-platform@2026-04-29"],
        ),
        ("deepseek-ai/DeepSeek-R1#deepseek-platform", ["deepseek-platform@2026-04-29"]),
        (
            "Qwen/Qwen3-32B#openrouter/Together",
            ["apache-2.0@2004-01-01", "openrouter@2026-05-06", "together@2026-05-19"],
        ),
        ("anthropic/claude-sonnet-4#openrouter/Amazon-Bedrock", ["aws-bedrock@undated", "openrouter@2026-05-06"]),
        ("deepseek/deepseek-chat#openrouter/DeepSeek", ["deepseek-platform@2026-04-29", "openrouter@2026-05-06"]),
        ("google/gemma-3-4b-it+google/gemma-3-4b-it", ["gemma-tou@2025-03-24"]),
        ("unsloth/gemma-3-4b-it-GGUF+google/gemma-3-4b-it", ["gemma-tou@2025-03-24"]),
        ("gpt-4o#chatgpt-consumer", ["openai-consumer-eu@2026-01-16"]),
    ],
)
def test_what_binds(teacher: str, documents: list[str]) -> None:
    assert terms(teacher) == documents
    if teacher not in HALF_KNOWN:
        assert problems(teacher) == []


@pytest.mark.parametrize(
    ("teacher", "codes"),
    [
        ("nobody/unknown-model", ["UNKNOWN_TERMS"]),
        ("gemma-3-27b-it", ["UNKNOWN_TERMS"]),
        ("google/unheard-of", ["UNKNOWN_TERMS"]),
        ("gpt-4o", ["UNKNOWN_TERMS"]),
        ("claude-sonnet#openai-api", ["UNKNOWN_TERMS"]),
        ("gpt-oss-20b#openai-api", ["UNKNOWN_TERMS"]),
        ("Qwen/Qwen3-32B#elsewhere", ["UNKNOWN_TERMS"]),
        ("nobody/unknown-model#together", ["UNKNOWN_TERMS"]),
        ("deepseek-ai/DeepSeek-V3", ["IDENTITY_INCOMPLETE"]),
        ("deepseek-ai/DeepSeek-V3@9b4e9788e4a3", ["IDENTITY_INCOMPLETE"]),
        ("deepseek-ai/DeepSeek-V3@2025", ["IDENTITY_INCOMPLETE"]),
        ("deepseek-ai/DeepSeek-V3@2025-13", ["IDENTITY_INCOMPLETE"]),
        ("deepseek-ai/DeepSeek-V3#deepseek-platform", ["IDENTITY_INCOMPLETE"]),
        ("01-ai/Yi-34B", ["IDENTITY_INCOMPLETE"]),
        ("01-ai/Yi-34B@2024-05", ["IDENTITY_INCOMPLETE"]),
        ("Qwen/Qwen3-32B#openrouter", ["SERVED_PROVIDER_MISSING"]),
        ("Qwen/Qwen3-32B#openrouter/SomeHost", ["UNKNOWN_TERMS"]),
        ("Qwen/Qwen3-32B#openrouter/OpenRouter", ["UNKNOWN_TERMS"]),
        ("unsloth/gemma-3-4b-it-GGUF+google/gemma-3-4b-it", ["IDENTITY_INCOMPLETE"]),
        ("google/gemma-3-4b-it+nobody/teacher", ["UNKNOWN_TERMS"]),
        ("Claude#claude-consumer", ["CONSUMER_ENDPOINT"]),
        ("anything#mistral-consumer", ["CONSUMER_ENDPOINT"]),
    ],
)
def test_what_cannot_be_told(teacher: str, codes: list[str]) -> None:
    assert problems(teacher) == codes


def test_service_terms_are_those_of_the_day() -> None:
    assert terms("grok-4#xai-api", date(2026, 8, 13)) == ["xai-enterprise@2026-05-12"]
    assert terms("grok-4#xai-api", date(2026, 8, 14)) == ["xai-enterprise@2026-08-14"]


def test_what_is_incomplete_names_the_candidates_and_the_fact() -> None:
    problem = bind(Teacher(model="deepseek-ai/DeepSeek-V3"), load_bundle(), TODAY).problems[0]
    assert problem.missing == "teacher.revision"
    assert problem.candidates == ("deepseek-license-1.0@2023-10-23", "mit@undated")


@pytest.mark.parametrize(
    "text",
    ["a/b", "a/b@main", "a/b#together", "a/b@r#openrouter/Together", "a/b+c/d+e/f", "a/b@r+c/d", "gpt-4o#openai-api"],
)
def test_teachers_are_read_and_written_back(text: str) -> None:
    assert Teacher.parse(text).label == text


@pytest.mark.parametrize("text", ["", "  ", "a b", "a/b@", "a/b#", "@rev", "a/b##x", "a/b#UPPER"])
def test_what_is_no_teacher(text: str) -> None:
    with pytest.raises(FactsError, match=r"write MODEL\[@REVISION\]"):
        Teacher.parse(text)


def test_a_model_of_ones_own_is_bound_by_the_statement_and_by_what_it_was_made_from() -> None:
    assert terms("own/digits") == ["own-work@2026-11-24"]
    assert terms("own/chat+meta-llama/Llama-3.1-8B") == ["llama-3.1@2024-07-23", "own-work@2026-11-24"]
    assert problems("own/chat+acme/secret-7b") == ["UNKNOWN_TERMS"]


def test_layers_travel_in_the_name_that_rows_keep() -> None:
    teacher = Teacher(model="own/chat+meta-llama/Llama-3.1-8B", revision="2")
    assert (teacher.model, teacher.layers) == ("own/chat", ("meta-llama/Llama-3.1-8B",))
    assert Teacher(model=teacher.name, revision="2") == teacher == Teacher.parse(teacher.label)
