"""What must hold of every decision, whatever the teachers and the facts."""

from __future__ import annotations

from datetime import date

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.decision import VERDICTS, Decision
from policies.documents import load_bundle
from policies.evaluate import evaluate
from policies.identity import Material
from policies.use import Use
from tests.policies.strategies import TEACHERS, UNKNOWN, materials, unknown_cases, uses

TODAY = date(2026, 11, 24)
BUNDLE = load_bundle()


def decide(groups: list[Material], use: Use) -> Decision:
    return evaluate(groups, use, bundle=BUNDLE, today=TODAY)


@settings(max_examples=400, deadline=None)
@given(unknown_cases(25))  # 10,000 cases
def test_unknown_is_never_allowed(cases: list[tuple[Material, Use]]) -> None:
    for material, use in cases:
        assert decide([material], use).verdict == "deny", (material, use)


@settings(max_examples=400, deadline=None)
@given(st.lists(materials(TEACHERS), min_size=1, max_size=2), materials(TEACHERS + UNKNOWN), uses)
def test_more_data_never_improves_a_verdict(groups: list[Material], more: Material, use: Use) -> None:
    before = decide(groups, use)
    after = decide([*groups, more], use)
    assert VERDICTS.index(after.verdict) >= VERDICTS.index(before.verdict)
    assert VERDICTS.index(after.verdict) >= VERDICTS.index(decide([more], use).verdict)


@settings(max_examples=200, deadline=None)
@given(st.lists(materials(TEACHERS), min_size=2, max_size=4), uses, st.randoms())
def test_the_order_of_rows_does_not_matter(groups: list[Material], use: Use, random: st.DataObject) -> None:
    shuffled = list(groups)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(groups, use).digest == decide(shuffled, use).digest


KNOWN: list[tuple[str, str, tuple[object, ...]]] = [
    ("organisation", "commercial", (True, False)),
    ("organisation", "domicile", ("US", "DE", "KR")),
    ("organisation", "deploys_in", (("US",), ("DE",), ("GB",))),
    ("organisation", "annual_revenue_usd", (0.0, 1e12)),
    ("organisation", "monthly_active_users", (0, 10**10)),
    ("organisation", "business", ((), ("model_as_a_service",), ("ai_work_assistant",))),
    ("student", "kind", ("general_llm", "narrow_llm", "classifier", "embedding")),
    ("student", "intent_similar", (True, False)),
    ("student", "init_from", ("scratch", "meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-8B-Base", "xai-org/grok-2")),
    ("student", "name", ("acme", "Llama-3-a", "glm-4-a", "DeepSeek-a")),
    ("student", "licence", ("Apache-2.0", "LicenseRef-a", "GPL-3.0-only")),
]


@settings(max_examples=400, deadline=None)
@given(materials(TEACHERS), uses, st.sampled_from(KNOWN))
def test_a_missing_fact_clears_only_what_every_value_clears(
    material: Material, use: Use, known: tuple[str, str, tuple[object, ...]]
) -> None:
    table, name, values = known

    def with_fact(value: object) -> Use:
        part = getattr(use, table).model_copy(update={name: value})
        return use.model_copy(update={table: part})

    if decide([material], with_fact(None)).exit_code == 0:
        assert all(decide([material], with_fact(value)).exit_code == 0 for value in values)


@settings(max_examples=200, deadline=None)
@given(materials(TEACHERS), uses)
def test_named_facts_are_missing_ones_and_settle_nothing_when_it_is_refused(material: Material, use: Use) -> None:
    decision = decide([material], use)
    if decision.verdict == "deny":
        assert decision.missing_facts == ()
    for fact in decision.missing_facts:
        table, _, name = fact.partition(".")
        given_as = None if table in ("teacher", "prompts") else getattr(getattr(use, table), name)
        assert not given_as or name == "registrations"  # there the name of the document is what is missing
