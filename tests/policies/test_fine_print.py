"""Cases that hang on one line of the code each: what mutations of it left standing until there was a test."""

from __future__ import annotations

from datetime import date

import pytest

from policies.binding import _days, _follows, bind
from policies.documents import Bundle, Condition, Document, Duty, ModelEntry, load_bundle
from policies.evaluate import evaluate
from policies.facts import Answer, Case
from policies.identity import Teacher
from tests.policies.cases import TODAY
from tests.policies.test_binding import problems, terms
from tests.policies.test_evaluate import GEMMA, LLAMA, QWEN, decide, material, stopping, use
from tests.policies.test_reaudit import bundle_with, document

OPENROUTER = "openrouter@2026-05-06"


def gist(text: str) -> str:
    return bind(Teacher.parse(text), load_bundle(), TODAY).problems[0].gist


# --- time


def test_a_recorded_version_outside_its_dates_is_told_and_judged() -> None:
    """Rows of late August name the terms of early July: both texts count, and the reader is told."""
    name = "meta-model-api@2026-07-02"
    rows = material(
        "llama-4#meta-model-api", terms=(name,), collected_from=date(2026, 8, 25), collected_to=date(2026, 8, 26)
    )
    decision = decide(rows, use("internal_use"))
    assert decision.per_teacher[rows.teacher.label].terms == (name, "meta-model-api@2026-08-21")
    told = [r.gist for r in decision.reasons if r.code == "TERMS_CHANGED_SINCE_COLLECTION"]
    assert told == [f"{name} held when the rows were made, meta-model-api@2026-08-21 holds now"]


def doubted(name: str, **changes: object) -> Document:
    """The document, of which only secondary sources say that it binds its models."""
    found = document(name)
    entries = tuple(ModelEntry(match=e.match, confidence="secondary") for e in found.models)
    return found.model_copy(update={"models": entries, **changes})


def test_recorded_terms_are_no_surer_to_bind_than_the_model_entry() -> None:
    bundle = bundle_with(doubted("gemma-tou@2025-03-24"))
    recorded = material(GEMMA, terms=("gemma-tou@2025-03-24",))
    for rows in (material(GEMMA), recorded):
        assert stopping(decide(rows, use("internal_use"), bundle)) == {"RULE_UNVERIFIED"}


def test_terms_of_then_are_no_surer_to_bind_than_those_of_now() -> None:
    """A licence that is doubted makes a service's terms binding: those of the rows' time are doubted as well."""
    inner = (
        document("gpt-oss-usage-policy@2025-08")
        .incorporates[0]
        .model_copy(update={"document": "xai-enterprise", "models": ("*",)})
    )
    bundle = bundle_with(doubted("gemma-tou@2025-03-24", incorporates=(inner,)))
    rows = material(GEMMA, collected_from=date(2026, 6, 1), collected_to=date(2026, 6, 2))
    doubts = {r.document for r in decide(rows, use("internal_use"), bundle).reasons if r.code == "RULE_UNVERIFIED"}
    assert {"gemma-tou@2025-03-24", "xai-enterprise@2026-05-12"} <= doubts


def test_a_stale_reading_still_claims_what_it_claims() -> None:
    duties = tuple(
        d.model_copy(update={"mark": "Llama"}) if d.mark else d
        for d in document("deepseek-platform@2026-04-29").obligations
    )
    stale = document("deepseek-platform@2026-04-29", obligations=duties, next_review=date(2026, 6, 1))
    both = [material("deepseek-chat#deepseek-platform"), material(LLAMA)]
    decision = decide(both, use(name="Llama-acme"), bundle_with(stale))
    assert {"RULE_STALE", "NAME_PREFIX_UNSATISFIABLE"} <= {r.code for r in decision.reasons}


# --- order


def test_reasons_alike_in_all_but_their_facts_keep_one_order() -> None:
    one, other = (material("deepseek-chat#deepseek-platform", prompt_licence=text) for text in ("odd A", "odd B"))
    alike = [material(GEMMA, signal="top_k_logprobs"), material(GEMMA, signal="logits")]
    for groups in ([one, other], alike):
        decisions = [decide(order, use()) for order in (groups, groups[::-1])]
        assert decisions[0].reasons == decisions[1].reasons
        assert decisions[0].digest == decisions[1].digest


def test_duties_alike_in_all_but_their_section_keep_one_order() -> None:
    duties = tuple(
        Duty(
            type="mark_modified", trigger="on_distribute_student", section=section, when=(Condition(signal=(signal,)),)
        )
        for section, signal in (("1", "text"), ("2", "logits"))
    )
    bundle = bundle_with(document("gemma-tou@2025-03-24", obligations=duties))
    groups = [material(GEMMA, signal=signal) for signal in ("text", "logits")]
    one, other = (decide(order, use(), bundle) for order in (groups, groups[::-1]))
    assert sorted(o.section or "" for o in one.obligations) == ["1", "2"]
    assert one.digest == other.digest


def test_what_concerns_all_teachers_is_said_before_what_concerns_one() -> None:
    decision = decide([material(LLAMA), material("THUDM/glm-4-9b-chat")], use(name="acme"))
    denied = [reason.teacher for reason in decision.reasons if reason.verdict == "deny"]
    assert denied[0] is None and set(denied[1:]) == {LLAMA, "THUDM/glm-4-9b-chat"}


def test_a_reason_without_a_document_is_said_before_those_with_one() -> None:
    early = document("llama-2@2023-07-18", id="1-terms")
    bundle = Bundle([*load_bundle().documents, early])
    rows = material("meta-llama/Llama-2-7b", terms=("1-terms@2023-07-18", "unknown@2020"))
    decision = decide(rows, use("internal_use"), bundle)
    documents = [reason.document for reason in decision.reasons if reason.verdict == "deny"]
    assert documents[:2] == [None, "1-terms@2023-07-18"]


# --- who the teacher is


@pytest.mark.parametrize(
    ("revision", "span"),
    [
        ("2024-12-26", (date(2024, 12, 26), date(2024, 12, 26))),
        ("2024-12", (date(2024, 12, 1), date(2024, 12, 31))),
        ("2024-11", (date(2024, 11, 1), date(2024, 11, 30))),
        ("2024-02", (date(2024, 2, 1), date(2024, 2, 29))),
        ("2024-01", (date(2024, 1, 1), date(2024, 1, 31))),
        ("2023", (date(2023, 1, 1), date(2023, 12, 31))),
        ("2025-13", None),
        ("2025-02-30", None),
        ("main", None),
        ("0324", None),
        ("v2024", None),
        ("2024-12-26b", None),
    ],
)
def test_a_dated_revision_spans_its_days(revision: str, span: tuple[date, date] | None) -> None:
    assert _days(revision) == span


@pytest.mark.parametrize(
    ("teacher", "documents"),
    [
        ("openai/gpt-4o#openrouter/OpenAI", ["openai-services-agreement@2026-01-01", OPENROUTER]),
        ("OpenAI/o3-mini#openrouter/openai", ["openai-services-agreement@2026-01-01", OPENROUTER]),
        (
            "anthropic/claude-sonnet-4#openrouter/Anthropic",
            ["anthropic-commercial@2025-06-17", OPENROUTER],
        ),
        ("command-r-plus#openrouter/Cohere_API", ["cohere-api@2024-02-29", OPENROUTER]),
    ],
)
def test_an_aggregators_names_are_those_of_the_provider_that_served(teacher: str, documents: list[str]) -> None:
    assert (terms(teacher), problems(teacher)) == (documents, [])


def test_a_vendors_prefix_is_dropped_only_where_that_vendor_served() -> None:
    assert problems("openai/gpt-4o#openrouter/Together") == ["UNKNOWN_TERMS"]
    assert problems("anthropic/o3#openrouter/OpenAI") == ["UNKNOWN_TERMS"]
    assert problems("openai/o3#openrouter/Azure") == ["UNKNOWN_TERMS"]


def test_an_aggregator_cannot_have_served_itself_nor_can_the_asker() -> None:
    for served in ("OpenRouter", "self-host", "Self_Host"):
        assert gist(f"Qwen/Qwen3-32B#openrouter/{served}") == f"{served} is no provider that can have served"


def test_without_the_provider_the_models_own_licence_is_still_told_by_its_revision() -> None:
    for revision, licence in (("2024-12", "deepseek-license-1.0@2023-10-23"), ("0324", "mit@undated")):
        teacher = f"deepseek-ai/DeepSeek-V3@{revision}#openrouter"
        assert (terms(teacher), problems(teacher)) == ([licence, OPENROUTER], ["SERVED_PROVIDER_MISSING"])


def test_without_the_provider_what_somebody_offers_needs_it_and_what_nobody_does_is_unknown() -> None:
    """With the vendor that the aggregator puts before the name, which only some terms write."""
    for model in ("openai/o3-mini", "anthropic/claude-sonnet-4", "gpt-4o"):
        assert problems(f"{model}#openrouter") == ["SERVED_PROVIDER_MISSING"]
    for model in ("nobody/x", "gpt", "x/y/o3"):
        assert problems(f"{model}#openrouter") == ["UNKNOWN_TERMS"]


def test_only_a_licence_that_follows_outputs_makes_a_doubt_count_on_its_makers_own_service() -> None:
    bundle = load_bundle()
    followed = [_follows(bundle, name) for name in ("deepseek-license-1.0@2023-10-23", "mit@undated", "nothing@2020")]
    assert followed == [True, False, False]


def test_what_is_not_known_names_the_path_where_it_is_one() -> None:
    assert gist("nobody/x#together").endswith("known to bind nobody/x on together")
    assert gist("nobody/x").endswith("known to bind nobody/x")


# --- what is said


def test_a_condition_on_the_teacher_answers_with_the_teacher() -> None:
    case = Case(Teacher.parse(LLAMA), "text", use(), document("llama-3.3@2024-12-06"))
    assert case.about_teacher(("META-LLAMA/*",)) == Answer(True, facts={"teacher": LLAMA})
    assert case.about_teacher(("Qwen/*",)) == Answer(False, facts={"teacher": LLAMA})


def test_a_registration_that_is_known_to_be_missing_is_asked_for() -> None:
    decision = decide(material("01-ai/Yi-34B@2023-12"), use(registrations=[]))
    assert decision.missing_facts == ("organisation.registrations",)


def test_share_alike_names_the_licence_that_it_asks_for() -> None:
    of = use(commercial=False, licence="Apache-2.0", annual_revenue_usd=0)
    said = [r.gist for r in decide(material("stabilityai/stablelm-2-12b-chat"), of).reasons]
    title = document("stability-nc-2023@2023-12-06").title
    assert f"The student's licence Apache-2.0 is not {title}, under which it must be" in said


def test_the_day_of_a_decision_is_the_one_given() -> None:
    decision = evaluate([material(QWEN)], use(), bundle=load_bundle(), today=date(2026, 12, 24))
    assert decision.decided_at.date() == date(2026, 12, 24)


# --- duties that no ordinary use meets


@pytest.mark.parametrize(
    ("revenue", "business", "verdict"),
    [(11e9, ["model_as_a_service"], "deny"), (9e9, ["model_as_a_service"], "review"), (11e9, ["other"], "review")],
)
def test_the_largest_who_sell_models_need_an_approval(revenue: float, business: list[str], verdict: str) -> None:
    """Otherwise it is the reading alone, from secondary sources, that stops at review."""
    of = use(annual_revenue_usd=revenue, business=business)
    decision = decide(material("zai-org/GLM-5.3"), of)
    assert decision.verdict == verdict
    asked = [o.due for o in decision.obligations if o.type == "separate_approval"]
    assert asked == [verdict == "deny"]
    assert ("REVENUE_GATE" in stopping(decision)) == (verdict == "deny")


@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        ("mistral-commercial@2026-08-05", "mistral-large-2512#mistral-api"),
        ("mistral-consumer-eu@2026-08-07", "mistral-large#mistral-consumer"),
    ],
)
def test_a_duty_on_images_does_not_reach_a_student_of_text(name: str, teacher: str) -> None:
    images = [duty.type for duty in document(name).obligations if duty.modality == "image"]
    assert images == ["no_competing_model"]
    assert {o.type for o in decide(material(teacher), use()).obligations}.isdisjoint(images)


def test_what_goes_with_the_teachers_own_weights_is_said_and_never_owed_by_a_student() -> None:
    for action in ("collect", "train", "publish_dataset", "distribute_student", "host_student", "internal_use"):
        decision = decide(material(QWEN), use(action))
        passing_on = [o for o in decision.obligations if o.trigger == "on_distribute_teacher"]
        assert [o.type for o in passing_on] == ["license_copy", "notice_file"]
        assert not any(o.due for o in passing_on)


def test_an_action_that_no_rule_permits_is_refused_in_the_documents_name() -> None:
    rule = document("gemma-tou@2025-03-24").rules[0].model_copy(update={"actions": ("collect",)})
    decision = decide(
        material(GEMMA), use("internal_use"), bundle_with(document("gemma-tou@2025-03-24", rules=(rule,)))
    )
    refused = [(r.code, r.verdict, r.document, r.section, r.gist) for r in decision.reasons if r.verdict == "deny"]
    says = "gemma-tou@2025-03-24 says nothing that permits internal_use"
    assert refused == [("UNKNOWN_TERMS", "deny", "gemma-tou@2025-03-24", None, says)]


def test_what_would_be_refused_later_is_said_ahead_unless_the_facts_rule_it_out() -> None:
    """Whoever starts from the family is told nothing; whoever does not is, with the actions that would be refused."""
    llama = material("meta-llama/Llama-2-7b-hf")
    ahead = [r for r in decide(llama, use("collect")).reasons if r.code == "SAME_FAMILY_ONLY"]
    assert [r.verdict for r in ahead] == ["conditional"]
    assert ahead[0].gist.startswith(
        "May be kept, but train or distribute_student or host_student or internal_use would be refused: "
    )
    inside = use("collect", init_from="meta-llama/Llama-2-13b-hf", licence="LicenseRef-llama-2")
    assert "SAME_FAMILY_ONLY" not in {r.code for r in decide(llama, inside).reasons}
    ban = document("llama-2@2023-07-18").rules
    spared = tuple(
        r.model_copy(update={"unless": (Condition(commercial=False),)}) if r.code == "SAME_FAMILY_ONLY" else r
        for r in ban
    )
    bundle = bundle_with(document("llama-2@2023-07-18", rules=spared))
    for commercial in (True, False):
        found = decide(llama, use("collect", commercial=commercial), bundle)
        assert ("SAME_FAMILY_ONLY" in {r.code for r in found.reasons}) == commercial
