"""Hypothesis strategies for claims, uses and materials."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from random import Random
from typing import TypeVar

from hypothesis import strategies as st

from policies.decision import VERDICTS
from policies.documents import CONFIDENCES, REACHES
from policies.identity import SIGNALS, Material, Teacher
from policies.merge import PURPOSES, Claims, Limit
from policies.use import ACTIONS, Data, Organisation, Student, Use

T = TypeVar("T")

TEACHERS = (
    "Qwen/Qwen3-32B",
    "Qwen/Qwen2.5-72B-Instruct",
    "Qwen/Qwen1.5-72B-Chat",
    "google/gemma-3-27b-it",
    "meta-llama/Meta-Llama-3-70B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-4-Scout-17B-16E",
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V3@2024-12",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "deepseek-chat#deepseek-platform",
    "gpt-4o#openai-api",
    "gemini-2.5-pro#gemini-api",
    "mistral-large-latest#mistral-api",
    "moonshotai/Kimi-K3",
    "Qwen/Qwen3-32B#together",
    "THUDM/glm-4-9b-chat",
    "mistralai/Mistral-Large-Instruct-2411",
    "stabilityai/stable-diffusion-3.5-large",
    "tencent/Hunyuan-A13B-Instruct",
    "01-ai/Yi-34B@2023-12",
    "xai-org/grok-2",
)
UNKNOWN = (
    "nobody/unknown-model",
    "gpt-4o",
    "claude-sonnet#openai-api",
    "Qwen/Qwen3-32B#nowhere",
    "x/y#groq",
    "x/y#openrouter",
)


def drawn(make: Callable[[Random], T]) -> st.SearchStrategy[T]:
    """Values made from a seed: a tenth of the time that field-by-field strategies take, at the price of shrinking."""
    return st.integers(0, 2**48).map(lambda seed: make(Random(seed)))


def batches(make: Callable[[Random], T], size: int) -> st.SearchStrategy[list[T]]:
    """Several at a time: what Hypothesis does around each example costs more than the example."""
    return drawn(lambda random: [make(random) for _ in range(size)])


def _some(random: Random, *values: str) -> frozenset[str]:
    return frozenset(value for value in values if random.random() < 0.4)


def _limit(random: Random) -> Limit:
    metric = random.choice(("monthly_active_users", "annual_revenue_usd"))
    return Limit(metric, random.choice((date(2023, 7, 18), date(2024, 4, 18))), random.choice((1e6, 1e8, 7e8)))


def _claims(random: Random) -> Claims:
    return Claims(
        verdict=random.choice(VERDICTS),
        purposes=frozenset(p for p in PURPOSES if random.random() < 0.8),
        families=random.choice((None, _some(random, "llama-2", "llama-3", "hunyuan"))),
        name_prefixes=_some(random, "Llama", "Llama 3", "glm-4"),
        marks=_some(random, "DeepSeek", "Llama"),
        limits=frozenset(_limit(random) for _ in range(random.randrange(5))),
        territories=_some(random, "EU", "GB", "KR"),
        attributions=_some(random, "Built with Llama", "Built with Qwen"),
        notices=_some(random, "a", "b"),
        licence_copies=_some(random, "a", "b"),
        use_restrictions=_some(random, "gemma-tou", "rail"),
        share_alike=_some(random, "CC-BY-SA-4.0", "LicenseRef-x"),
        reach=random.choice(REACHES),
        confidence=random.choice(CONFIDENCES),
    )


def _use(random: Random) -> Use:
    one = random.choice
    student = Student(
        name=one((None, "acme-7b", "Llama-3-acme", "glm-4-DeepSeek")),
        licence=one((None, "Apache-2.0", "LicenseRef-acme", "GPL-3.0-only", "not a licence (")),
        init_from=one((None, "scratch", "meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-8B-Base")),
        kind=one((None, "general_llm", "narrow_llm", "classifier", "embedding")),
        intent_similar=one((None, True, False)),
    )
    organisation = Organisation(
        domicile=one((None, "US", "DE")),
        deploys_in=one((None, ("US",), ("US", "KR"))),
        commercial=one((None, True, False)),
        annual_revenue_usd=one((None, 0, 5e7, 1e11)),
        monthly_active_users=one((None, 0, 10**6, 10**9)),
        business=one((None, (), ("model_as_a_service",))),
        registrations=one((None, (), ("yi-community-2.1",))),
        separate_licences=one((None, (), ("kimi-k3",))),
    )
    data = Data(signal=one((None, *SIGNALS)))
    return Use(action=one(ACTIONS), student=student, organisation=organisation, data=data)


def _material(random: Random, teachers: tuple[str, ...]) -> Material:
    licences = (None, "CC0-1.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "MIT OR CC-BY-NC-4.0", "odd")
    return Material(
        teacher=Teacher.parse(random.choice(teachers)),
        signal=random.choice(SIGNALS),
        prompt_licence=random.choice(licences),
        rows=random.randrange(100),
        tokens=random.randrange(1000),
    )


uses = drawn(_use)


def triples_of_claims(size: int) -> st.SearchStrategy[list[tuple[Claims, Claims, Claims]]]:
    return batches(lambda random: (_claims(random), _claims(random), _claims(random)), size)


def unknown_cases(size: int) -> st.SearchStrategy[list[tuple[Material, Use]]]:
    return batches(lambda random: (_material(random, UNKNOWN), _use(random)), size)


def materials(teachers: tuple[str, ...]) -> st.SearchStrategy[Material]:
    return drawn(lambda random: _material(random, teachers))
