"""Decisions over time, missing facts, prompts, conflicts, and the record that is kept."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from policies.decision import Decision
from policies.documents import Bundle, load_bundle
from policies.errors import FactsError
from policies.evaluate import evaluate
from policies.identity import Material, Teacher
from policies.use import Use
from tests.policies.cases import ORGANISATION, STUDENT, TODAY

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
GEMMA = "google/gemma-3-27b-it"
QWEN = "Qwen/Qwen3-32B"


def material(teacher: str = QWEN, **facts: Any) -> Material:
    return Material.model_validate({"teacher": Teacher.parse(teacher), "signal": "top_k_logprobs", **facts})


def use(action: str = "distribute_student", without: tuple[str, ...] = (), **facts: Any) -> Use:
    student = {k: facts.pop(k, v) for k, v in STUDENT.items() if k not in without}
    organisation = {k: facts.pop(k, v) for k, v in ORGANISATION.items() if k not in without}
    student |= {k: facts.pop(k) for k in ("distributed", "hosted") if k in facts}
    organisation |= facts
    return Use.model_validate({"action": action, "student": student, "organisation": organisation})


def decide(materials: Material | list[Material], of: Use, bundle: Bundle | None = None) -> Decision:
    groups = [materials] if isinstance(materials, Material) else materials
    return evaluate(groups, of, bundle=bundle or load_bundle(), today=TODAY)


def codes(decision: Decision) -> set[str]:
    return {reason.code for reason in decision.reasons}


def stopping(decision: Decision) -> set[str]:
    return {reason.code for reason in decision.reasons if reason.verdict in ("review", "deny")}


# --- as of collection and as of now


def test_a_service_that_tightened_its_terms_is_judged_by_both() -> None:
    rows = material("llama-4#meta-model-api", collected_from=date(2026, 7, 3), collected_to=date(2026, 7, 4))
    decision = decide(rows, use("internal_use"))
    assert decision.per_teacher[rows.teacher.label].terms == ("meta-model-api@2026-07-02", "meta-model-api@2026-08-21")
    changed = next(r for r in decision.reasons if r.code == "TERMS_CHANGED_SINCE_COLLECTION")
    assert changed.verdict == "allow" and "meta-model-api@2026-07-02 held" in changed.gist
    assert decision.verdict == "review"


def test_rows_over_a_change_are_judged_by_every_version_of_the_time() -> None:
    rows = material("llama-4#meta-model-api", collected_from=date(2026, 7, 3), collected_to=date(2026, 9, 1))
    terms = decide(rows, use()).per_teacher[rows.teacher.label].terms
    assert [t.partition("@")[2] for t in terms] == ["2026-07-02", "2026-07-08", "2026-08-21"]


def test_rows_made_under_the_terms_of_today_change_nothing() -> None:
    rows = material("deepseek-chat#deepseek-platform", collected_from=date(2026, 6, 1), collected_to=date(2026, 6, 2))
    decision = decide(rows, use())
    assert decision.verdict == "conditional" and "TERMS_CHANGED_SINCE_COLLECTION" not in codes(decision)


def test_rows_older_than_any_known_text_need_review() -> None:
    rows = material("deepseek-chat#deepseek-platform", collected_from=date(2025, 6, 1), collected_to=date(2026, 6, 2))
    decision = decide(rows, use())
    assert stopping(decision) == {"RULE_UNVERIFIED"}
    assert decision.verdict == "review"


def test_a_licence_fixed_at_download_is_judged_by_the_text_that_came_with_the_weights() -> None:
    gemma = load_bundle().get("gemma-tou@2025-03-24")
    assert gemma is not None
    ban = gemma.rules[0].model_copy(update={"code": "OUTPUT_TRAIN_BAN", "verdict": "deny"})
    newer = gemma.model_copy(update={"version": "2026-04-01", "effective_from": date(2026, 4, 1), "rules": (ban,)})
    both = Bundle([*load_bundle().documents, newer])
    recorded = material(GEMMA, terms=("gemma-tou@2025-03-24",), rows=5, prompt_licence="CC0-1.0")
    decision = decide(recorded, use("internal_use"), both)
    assert decision.per_teacher[GEMMA].terms == ("gemma-tou@2025-03-24",)
    assert "OUTPUT_TRAIN_BAN" not in codes(decision)
    assert "OUTPUT_TRAIN_BAN" in codes(decide(material(GEMMA), use("internal_use"), both))


def test_rows_that_name_terms_which_the_bundle_does_not_know_are_refused() -> None:
    decision = decide(material(terms=("apache-2.0@2004-01-01", "other@2020"), prompt_licence="CC0-1.0"), use())
    assert decision.verdict == "deny"
    assert "Rows name the terms other@2020, which the bundle does not know" in {r.gist for r in decision.reasons}


def test_rows_without_terms_are_refused() -> None:
    assert decide(material(terms=()), use()).verdict == "deny"


def test_recorded_terms_bind_beside_what_the_teacher_resolves_to() -> None:
    rows = material(terms=("gemma-tou@2025-03-24",))
    decision = decide(rows, use())
    assert decision.per_teacher[QWEN].terms == ("apache-2.0@2004-01-01", "gemma-tou@2025-03-24")
    assert decision.verdict == "deny"


def test_a_service_reading_past_its_review_is_stale_and_a_licence_is_not() -> None:
    later = date(2028, 1, 1)
    service = evaluate([material("deepseek-chat#deepseek-platform")], use(), bundle=load_bundle(), today=later)
    assert service.verdict == "review" and stopping(service) == {"RULE_STALE"}
    assert evaluate([material()], use(), bundle=load_bundle(), today=later).verdict == "allow"


# --- facts


@pytest.mark.parametrize(
    ("teacher", "without", "missing"),
    [
        (LLAMA, ("name",), ("student.name",)),
        (LLAMA, ("name", "monthly_active_users"), ("organisation.monthly_active_users", "student.name")),
        (GEMMA, ("licence",), ("student.licence",)),
        ("meta-llama/Llama-4-Scout-17B", ("domicile",), ("organisation.domicile",)),
        ("mistralai/Mistral-Large-Instruct-2411", ("commercial",), ("organisation.commercial",)),
        ("meta-llama/Meta-Llama-3-8B", ("init_from",), ("student.init_from",)),
        ("LiquidAI/LFM2-1.2B", ("annual_revenue_usd",), ("organisation.annual_revenue_usd",)),
        ("deepseek-ai/DeepSeek-V3", (), ("teacher.revision",)),
        ("Qwen/Qwen3-32B#openrouter", (), ("teacher.served_by",)),
    ],
)
def test_the_facts_that_would_settle_it_are_named(
    teacher: str, without: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    name = "Llama-3-acme"
    decision = decide(material(teacher), use(without=without, **({} if "name" in without else {"name": name})))
    assert decision.verdict == "review"
    assert decision.missing_facts == missing


def test_a_fact_that_cannot_matter_is_not_asked_for() -> None:
    assert decide(material(), use(without=tuple(STUDENT) + tuple(ORGANISATION))).verdict == "allow"
    refused = decide(material("meta-llama/Meta-Llama-3-8B"), use(without=("monthly_active_users", "name")))
    assert refused.verdict == "deny" and refused.missing_facts == ()
    assert "MISSING_FACT" not in codes(refused)


def test_a_dated_number_of_users_goes_before_todays() -> None:
    many = use("internal_use", monthly_active_users=10**9)
    assert stopping(decide(material(LLAMA), many)) == {"MAU_GATE"}
    few_then = use("internal_use", monthly_active_users=10**9, monthly_active_users_on={date(2024, 12, 6): 10})
    assert decide(material(LLAMA), few_then).verdict == "allow"
    gate = next(r for r in decide(material(LLAMA), many).reasons if r.code == "MAU_GATE")
    assert gate.facts == {"organisation.monthly_active_users": 10**9}


def test_a_separate_licence_covers_a_threshold() -> None:
    big = {"monthly_active_users": 10**9, "separate_licences": ["llama-3.3"]}
    assert decide(material(LLAMA), use("internal_use", **big)).verdict == "conditional"


def test_a_registration_on_record_leaves_conditions() -> None:
    yi = material("01-ai/Yi-34B@2023-12")
    assert decide(yi, use()).missing_facts == ("organisation.registrations",)
    assert decide(yi, use(registrations=["yi-community-2.1"])).verdict == "conditional"
    assert decide(yi, use(registrations=[])).verdict == "review"


@pytest.mark.parametrize(
    ("organisation", "verdict"),
    [
        ({"business": ["model_as_a_service"]}, "deny"),
        ({"business": []}, "conditional"),
        ({"business": ["other"]}, "conditional"),
        ({}, "review"),
        ({"annual_revenue_usd": 1_000_000}, "conditional"),
        ({"business": ["model_as_a_service"], "separate_licences": ["kimi-k3"]}, "conditional"),
        ({"commercial": False}, "allow"),
    ],
)
def test_an_exemption_for_internal_use_ends_where_others_get_the_student(
    organisation: dict[str, Any], verdict: str
) -> None:
    kimi = material("moonshotai/Kimi-K3")
    assert decide(kimi, use(**organisation)).verdict == verdict
    assert ("INTERNAL_EXEMPTION_LOST" in codes(decide(kimi, use(**organisation)))) is (verdict != "allow")
    assert decide(kimi, use("internal_use", **organisation)).verdict == "allow"


def test_a_student_that_is_hosted_and_not_given_away_has_terms_of_service_instead_of_a_licence() -> None:
    assert decide(material(GEMMA), use("host_student", distributed=False)).verdict == "conditional"
    assert stopping(decide(material(GEMMA), use("host_student", distributed=True))) == {"STUDENT_LICENCE_CONFLICT"}
    owed = {o.type for o in decide(material(GEMMA), use("host_student", distributed=False)).obligations if o.due}
    assert "notice_file" not in owed and "use_restrictions_enforceable" in owed


@pytest.mark.parametrize(
    ("signal", "intent", "verdict"),
    [
        ("text", False, "allow"),
        ("text", True, "deny"),
        ("text", None, "review"),
        ("top_k_logprobs", False, "deny"),
        ("hidden_states", None, "deny"),
    ],
)
def test_text_without_the_intent_makes_no_derivative_of_gemma(signal: str, intent: bool | None, verdict: str) -> None:
    assert decide(material(GEMMA, signal=signal), use(intent_similar=intent)).verdict == verdict


def test_the_use_may_declare_a_stronger_signal_than_the_rows_have() -> None:
    of = Use.model_validate({**use(intent_similar=False).model_dump(), "data": {"signal": "logits"}})
    assert decide(material(GEMMA, signal="text"), of).verdict == "deny"


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"collected_from": date(2026, 12, 1)}, "collected_from"),
        ({"collected_to": date(2027, 1, 1)}, "collected_to"),
    ],
)
def test_dates_in_the_future_are_refused(facts: dict[str, date], field: str) -> None:
    with pytest.raises(FactsError, match=f"{field}: .* lies in the future"):
        decide(material(**facts), use())


def test_a_future_number_of_users_and_nothing_at_all_are_refused() -> None:
    with pytest.raises(FactsError, match=r"monthly_active_users_on: 2030-01-01 lies in the future"):
        decide(material(), use(monthly_active_users_on={date(2030, 1, 1): 1}))
    with pytest.raises(FactsError, match="there is nothing to judge"):
        decide([], use())


@pytest.mark.parametrize("teacher", [f"{QWEN}#together/Groq", f"{QWEN}#self_host/Together"])
def test_only_an_aggregator_can_have_had_a_request_served_by_another(teacher: str) -> None:
    with pytest.raises(FactsError) as caught:
        decide(material(teacher), use())
    path = teacher.partition("#")[2].partition("/")[0]
    assert str(caught.value) == (
        f"{teacher}: served_by: only an aggregator passes requests on, and {path} is none; "
        "leave it out, or give the access path of the one that answered"
    )


def test_dates_of_rows_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="collected_from lies after collected_to"):
        material(collected_from=date(2026, 3, 1), collected_to=date(2026, 2, 1))


# --- many teachers


def test_two_naming_duties_that_no_name_meets() -> None:
    decision = decide([material(LLAMA), material("THUDM/glm-4-9b-chat"), material()], use(name="Llama-acme"))
    assert "NAME_PREFIX_UNSATISFIABLE" in codes(decision)
    together = next(r for r in decision.reasons if r.code == "NAME_PREFIX_UNSATISFIABLE")
    assert together.teacher is None and together.gist == "No name begins with 'Llama' and 'glm-4'"


def test_the_smallest_set_to_drop_with_its_share() -> None:
    groups = [
        material(rows=90, tokens=900, prompt_licence="CC0-1.0"),
        material(GEMMA, rows=10, tokens=300, prompt_licence="CC0-1.0"),
    ]
    drop = decide(groups, use()).drop
    assert drop is not None
    assert (drop.teachers, drop.rows, drop.tokens, drop.verdict) == ((GEMMA,), 10, 300, "allow")
    assert (drop.share_of_rows, drop.share_of_tokens) == (0.1, 0.25)
    assert decide(material(GEMMA), use()).drop is None


def test_the_same_duty_of_two_teachers_is_named_once() -> None:
    groups = [material(LLAMA), material("meta-llama/Llama-3.3-8B")]
    decision = decide(groups, use(name="Llama-acme"))
    prefixes = [o for o in decision.obligations if o.type == "name_prefix"]
    assert [o.teachers for o in prefixes] == [(LLAMA, "meta-llama/Llama-3.3-8B")]


def test_groups_of_one_teacher_are_judged_together() -> None:
    groups = [material(rows=2, tokens=5, prompt_licence="CC0-1.0"), material(rows=3, tokens=6, prompt_licence="odd")]
    decision = decide(groups, use("internal_use"))
    found = decision.per_teacher[QWEN]
    assert (found.rows, found.tokens, found.verdict) == (5, 11, "deny")


# --- the record


def test_the_digest_is_of_the_decision_not_of_the_moment() -> None:
    first = decide(material(GEMMA), use())
    later = evaluate([material(GEMMA)], use(), bundle=load_bundle(), today=date(2026, 11, 30))
    assert first.decided_at != later.decided_at and first.digest == later.digest
    assert first.facts_digest != decide(material(GEMMA), use(name="b")).facts_digest
    assert first.digest != decide(material(GEMMA), use(name="b")).digest


def test_a_record_is_read_back_and_a_changed_one_is_not() -> None:
    decision = decide(material(GEMMA), use())
    text = decision.to_json()
    assert Decision.from_json(text) == decision
    assert (decision.exit_code, decision.verdict) == (3, "deny")
    with pytest.raises(ValueError, match="was changed after it was made"):
        Decision.from_json(text.replace('"verdict": "deny"', '"verdict": "allow"'))
    with pytest.raises(ValueError, match="a decision is a JSON object"):
        Decision.from_json("[]")


def test_a_decision_names_its_bundle_and_facts() -> None:
    decision = decide(material(GEMMA), use())
    assert (decision.bundle, decision.bundle_digest) == (load_bundle().id, load_bundle().digest)
    assert decision.facts["use"]["student"]["licence"] == "Apache-2.0"
    assert decision.facts["materials"][0]["teacher"]["model"] == GEMMA


def test_the_default_day_is_today() -> None:
    assert evaluate([material()], use(), bundle=load_bundle()).verdict == "allow"
