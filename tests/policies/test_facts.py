"""What a condition may ask of the facts: true, false, or unknown with the facts that would settle it."""

from __future__ import annotations

from datetime import date

import pytest

from policies.binding import bind
from policies.documents import Document, Duty, StudentReading
from policies.duties import passed
from policies.facts import Answer, Case
from policies.identity import Teacher
from policies.use import Use
from tests.policies.cases import TODAY
from tests.policies.test_evaluate import GEMMA, LLAMA, decide, material, use
from tests.policies.test_reaudit import bundle_with, document

QWEN15 = "tongyi-qianwen-2023@2023-08-03"


def case(found: Document | str, of: Use) -> Case:
    return Case(Teacher.parse(LLAMA), "text", of, document(found) if isinstance(found, str) else found)


def missing(*names: str) -> Answer:
    return Answer(None, frozenset(names))


# --- where the student comes from


@pytest.mark.parametrize(
    ("start", "holds"),
    [
        ("meta-llama/Llama-2-13b-hf", True),
        ("allenai/OLMo-2-1124-7B", False),
        ("scratch", False),
    ],
)
def test_a_family_is_told_by_the_initial_weights(start: str, holds: bool) -> None:
    answer = case("llama-2@2023-07-18", use(init_from=start)).in_family()
    assert answer == Answer(holds, facts={"student.init_from": start})


def test_weights_of_which_the_text_does_not_say_are_unknown_with_nothing_missing() -> None:
    assert case(QWEN15, use(init_from="Qwen/Qwen3-8B-Base")).in_family() == Answer(
        None, facts={"student.init_from": "Qwen/Qwen3-8B-Base"}
    )
    assert case(QWEN15, use(init_from="allenai/OLMo-2-1124-7B")).in_family().holds is False


def test_weights_that_are_not_named_are_asked_for_only_where_there_is_a_family() -> None:
    unnamed = use(without=("init_from",))
    assert case("llama-2@2023-07-18", unnamed).in_family() == missing("student.init_from")
    none = case("gemma-tou@2025-03-24", unnamed)
    assert none.document.family is None
    assert none.in_family() == Answer(False, facts={"student.init_from": None})


# --- what it is released under, and whether it is a derivative


def test_a_documents_own_licence_goes_by_either_of_its_names() -> None:
    gemma = document("gemma-tou@2025-03-24")
    for licence in (gemma.licence, "LicenseRef-gemma-tou"):
        answer = case(gemma, use(licence=licence)).under_this_licence()
        assert answer == Answer(True, facts={"student.licence": licence})
    assert case(gemma, use(licence="MIT")).under_this_licence().holds is False
    assert case(gemma, use(without=("licence",))).under_this_licence() == missing("student.licence")


@pytest.mark.parametrize(("said", "holds"), [("yes", True), ("unclear", None), ("no", False), ("silent", False)])
def test_a_derivative_is_what_the_text_calls_one(said: str, holds: bool | None) -> None:
    reading = StudentReading.model_validate({"is_derivative": said})
    found = document("gemma-tou@2025-03-24", student=reading)
    assert case(found, use()).derivative() == Answer(holds)


# --- where and how large


def test_places_that_are_not_given_are_asked_for() -> None:
    nowhere = case("hunyuan-large@2024-11-05", use(without=("deploys_in",)))
    assert nowhere.deployed(("EU",)) == missing("organisation.deploys_in")
    here = case("hunyuan-large@2024-11-05", use(deploys_in=["US", "FR"]))
    assert here.deployed(("EU",)) == Answer(True, facts={"organisation.deploys_in": ["US", "FR"]})
    assert here.deployed(("KR",)).holds is False
    overseas = case("hunyuan-large@2024-11-05", use(deploys_in=["US", "GF"]))
    assert overseas.deployed(("EU",)).holds is True


def test_users_of_the_licences_own_day_are_named_with_it() -> None:
    day = date(2024, 12, 6)
    of = use(monthly_active_users_on={day: 701_000_000})
    answer = case("llama-3.3@2024-12-06", of).users_over(700_000_000, day)
    assert answer == Answer(True, facts={"organisation.monthly_active_users_on.2024-12-06": 701_000_000})
    other = case("llama-3.3@2024-12-06", of).users_over(700_000_000, date(2025, 1, 1))
    assert other == Answer(False, facts={"organisation.monthly_active_users": 1_000_000})


def threshold(**facts: object) -> Duty:
    return Duty.model_validate({"type": "separate_license", "trigger": "on_commercial_use", **facts})


@pytest.mark.parametrize(("revenue", "holds"), [(240_000_000, False), (240_000_001, True), (250_000_000, True)])
def test_revenue_a_month_is_a_twelfth_of_the_years(revenue: int, holds: bool) -> None:
    duty = threshold(monthly_revenue_over_usd=20_000_000)
    assert passed(case("kimi-k3@2026-07", use(annual_revenue_usd=revenue)), duty).holds is holds


def test_a_threshold_of_users_is_taken_on_the_licences_day() -> None:
    day = date(2025, 4, 5)
    duty = threshold(users_over=100, measured_on=day)
    grown = use(monthly_active_users_on={day: 99}, monthly_active_users=10**6)
    assert passed(case("kimi-k3@2026-07", grown), duty).holds is False


def test_without_a_threshold_the_business_alone_decides() -> None:
    duty = threshold(business=["model_as_a_service"])
    for business, holds in ((["model_as_a_service"], True), (["other"], False)):
        assert passed(case("kimi-k3@2026-07", use(business=business)), duty).holds is holds
    assert passed(case("kimi-k3@2026-07", use()), threshold()).holds is True


# --- what is asked for


def test_a_name_that_decides_is_asked_for() -> None:
    unnamed = use(without=("name",))
    assert decide(material("deepseek-chat#deepseek-platform"), unnamed).missing_facts == ("student.name",)
    assert decide(material(LLAMA), unnamed).missing_facts == ("student.name",)


def test_a_licence_that_is_not_given_is_not_named_in_the_sentence() -> None:
    found = decide(material(GEMMA), use(without=("licence",)))
    (wanted,) = [r.gist for r in found.reasons if r.code == "MISSING_FACT"]
    says = "The student's licence cannot carry the use restrictions that must go with it"
    assert wanted == f"student.licence decides: {says}"


def test_a_doubt_about_a_licence_that_does_not_follow_outputs_is_none_on_its_makers_service() -> None:
    teacher = Teacher.parse("deepseek-ai/DeepSeek-V3#deepseek-platform")
    silent = bundle_with(document("deepseek-license-1.0@2023-10-23", follows_outputs=False))
    assert [p.code for p in bind(teacher, bundle_with(), TODAY).problems] == ["IDENTITY_INCOMPLETE"]
    assert bind(teacher, silent, TODAY).problems == ()
