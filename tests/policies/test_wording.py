"""What reasons and records say to the word, and the days on which they begin to: what mutants of evaluate.py change."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from policies.codes import ways_out
from policies.decision import Decision, Reason
from policies.documents import load_bundle
from policies.errors import FactsError
from policies.evaluate import evaluate
from policies.identity import Material
from tests.policies.cases import TODAY
from tests.policies.test_evaluate import decide, material, use

META, DEEPSEEK = "llama-4#meta-model-api", "deepseek-chat#deepseek-platform"


def reason(decision: Decision, code: str) -> Reason:
    return next(r for r in decision.reasons if r.code == code)


@pytest.mark.parametrize(
    ("rows", "code", "document", "gist", "facts"),
    [
        (material("nobody/x"), "UNKNOWN_TERMS", None, "No document of the register is known to bind nobody/x", {}),
        (
            material("Qwen/Qwen3-32B#openrouter"),
            "SERVED_PROVIDER_MISSING",
            None,
            "The provider that served the request governs, and it is not recorded",
            {"missing": ["teacher.served_by"]},
        ),
        (material(terms=()), "UNKNOWN_TERMS", None, "Rows were written without terms", {}),
        (
            material(META, collected_from=date(2026, 7, 3), collected_to=date(2026, 7, 8)),
            "TERMS_CHANGED_SINCE_COLLECTION",
            "meta-model-api@2026-08-21",
            "meta-model-api@2026-07-02, meta-model-api@2026-07-08 held when the rows were made, "
            "meta-model-api@2026-08-21 holds now",
            {},
        ),
        (
            material(DEEPSEEK, collected_from=date(2026, 4, 28)),
            "RULE_UNVERIFIED",
            "deepseek-platform@2026-04-29",
            "Rows were made on 2026-04-28; the register knows these terms only since 2026-04-29",
            {},
        ),
    ],
)
def test_a_reason_to_the_word(
    rows: Material, code: str, document: str | None, gist: str, facts: dict[str, Any]
) -> None:
    found = reason(decide(rows, use()), code)
    assert (found.document, found.gist, found.fix, found.facts) == (document, gist, ways_out(code), facts)
    assert found.teacher == rows.teacher.label


def test_rows_of_the_first_day_of_a_text_are_under_it() -> None:
    first_day = decide(material(DEEPSEEK, collected_from=date(2026, 4, 29)), use())
    assert first_day.verdict == "conditional"


def test_one_date_of_collection_is_enough() -> None:
    for facts in ({"collected_from": date(2026, 7, 3)}, {"collected_to": date(2026, 7, 3)}):
        terms = decide(material(META, **facts), use()).per_teacher[META].terms
        assert terms == ("meta-model-api@2026-07-02", "meta-model-api@2026-08-21")


def test_a_recorded_version_binds_beside_that_of_the_date() -> None:
    rows = material(META, terms=("meta-model-api@2026-07-02",), collected_from=date(2026, 7, 9))
    assert len(decide(rows, use()).per_teacher[META].terms) == 3


def test_a_stale_reading_begins_the_day_after_its_review() -> None:
    document = load_bundle().get("deepseek-platform@2026-04-29")
    assert document is not None
    for days, stale in ((0, False), (1, True)):
        day = document.next_review + timedelta(days=days)
        decision = evaluate([material(DEEPSEEK)], use(), bundle=load_bundle(), today=day)
        assert ("RULE_STALE" in {r.code for r in decision.reasons}) is stale
    found = reason(decision, "RULE_STALE")
    assert (found.teacher, found.document, found.fix) == (DEEPSEEK, document.name, ways_out("RULE_STALE"))


def test_days_that_are_still_possible() -> None:
    tomorrow = TODAY + timedelta(days=1)
    assert decide(material(collected_to=tomorrow), use()).verdict == "allow"  # clocks of other time zones
    with pytest.raises(FactsError):
        decide(material(collected_to=TODAY + timedelta(days=2)), use())
    assert decide(material(), use(monthly_active_users_on={TODAY: 1})).verdict == "allow"
    with pytest.raises(
        FactsError, match=r"^there is nothing to judge: name a teacher, or audit a table that has rows$"
    ):
        decide([], use())


def test_when_it_was_decided() -> None:
    assert decide(material(), use()).decided_at == datetime(2026, 11, 24, tzinfo=UTC)
    before = datetime.now(UTC)
    assert before <= evaluate([material()], use(), bundle=load_bundle()).decided_at <= datetime.now(UTC)


def test_the_day_decides_which_terms_of_a_service_bind() -> None:
    rows = material("grok-4#xai-api")
    decision = evaluate([rows], use(), bundle=load_bundle(), today=date(2026, 8, 13))
    assert decision.per_teacher["grok-4#xai-api"].terms == ("xai-enterprise@2026-05-12",)


def test_all_groups_of_a_teacher_give_their_terms_and_notes() -> None:
    early = material(META, collected_from=date(2026, 7, 3))
    groups = [early, material(META, terms=("other@2020",))]
    decision = decide(groups, use())
    assert "meta-model-api@2026-07-02" in decision.per_teacher[META].terms
    assert {"TERMS_CHANGED_SINCE_COLLECTION", "UNKNOWN_TERMS"} <= {r.code for r in decision.reasons}


def test_publishing_owes_what_the_prompts_ask() -> None:
    decision = decide(material(prompt_licence="CC-BY-4.0"), use("publish_dataset"))
    assert decision.verdict == "conditional"


def test_the_strictest_reason_is_read_first_and_what_is_due_before_what_is_not() -> None:
    decision = decide([material("google/gemma-3-27b-it"), material(DEEPSEEK)], use())
    order = [r.verdict for r in decision.reasons]
    assert order == sorted(order, key=("deny", "review", "conditional", "allow").index)
    duties = [(o.due, o.trigger == "always") for o in decision.obligations]
    assert duties == sorted(duties, key=lambda d: (not d[0], d[1]))
    assert set(duties) == {(True, False), (True, True), (False, False)}


def test_a_fact_of_identity_is_not_asked_for_once_it_is_refused() -> None:
    decision = decide([material("deepseek-ai/DeepSeek-V3"), material("nobody/x")], use())
    assert decision.missing_facts == ()


def test_facts_that_were_not_given_are_not_recorded() -> None:
    recorded = decide(material(), use(without=("kind",))).facts["use"]
    assert "kind" not in recorded["student"] and recorded["student"]["name"] == "acme-7b"
