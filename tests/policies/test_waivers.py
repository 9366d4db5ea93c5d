"""The two kinds of waiver: what each may lift, and what voids it."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from policies.decision import Decision
from policies.documents import load_bundle
from policies.errors import FactsError
from policies.evaluate import evaluate
from policies.identity import Material, Teacher
from policies.settings import ConfigError, read_toml
from policies.use import Use
from policies.waivers import Waiver

TODAY = date(2026, 11, 24)
CLAUDE = "claude-sonnet#anthropic-api"
BAN = "OUTPUT_TRAIN_BAN_ANY_MODEL"


def waiver(document: str = "anthropic-commercial@2025-06-17", **changes: Any) -> Waiver:
    found = load_bundle().get(document)
    facts: dict[str, Any] = {
        "kind": "external_permission",
        "document": document,
        "document_digest": found.digest if found else "0" * 64,
        "rules": [BAN],
        "valid_from": date(2026, 11, 1),
        "valid_until": date(2027, 4, 1),
        "permission": {
            "title": "letter",
            "sha256": "ab" * 32,
            "granted_by": "Anthropic",
            "granted_on": date(2026, 10, 1),
        },
    }
    if changes.get("kind") == "internal_risk_acceptance":
        del facts["permission"]
        facts |= {"reason": "small", "approvers": ["Ada", "Grace"]}
    return Waiver.model_validate({**facts, **changes})


def decide(*waivers: Waiver, teacher: str = CLAUDE, action: str = "internal_use", today: date = TODAY) -> Decision:
    use = Use.model_validate({"action": action, "student": {"kind": "general_llm"}})
    material = Material(teacher=Teacher.parse(teacher), signal="text")
    return evaluate([material], use, bundle=load_bundle(), today=today, waivers=waivers)


def codes(decision: Decision) -> dict[str, str]:
    return {reason.code: reason.verdict for reason in decision.reasons}


def test_the_licensors_permission_lifts_a_ban() -> None:
    assert decide().verdict == "deny"
    decision = decide(waiver())
    assert decision.verdict == "conditional"
    assert codes(decision) == {BAN: "conditional", "WAIVER_APPLIED": "conditional"}
    applied = next(r for r in decision.reasons if r.code == "WAIVER_APPLIED")
    assert applied.facts["waiver"] == waiver().digest
    assert decision.facts["waivers"] == [waiver().record()]
    assert Waiver.from_record(decision.facts["waivers"][0]) == waiver()


def test_the_order_of_waivers_does_not_matter() -> None:
    two = waiver(), waiver(valid_until=date(2027, 3, 1))
    assert decide(*two).digest == decide(*two[::-1]).digest
    assert len(decide(*two).facts["waivers"]) == 2
    risk, expired = waiver(kind="internal_risk_acceptance"), waiver(valid_until=TODAY - timedelta(days=1))
    for other in (risk, expired):
        for order in ((waiver(), other), (other, waiver())):
            assert decide(*order).verdict == "conditional"
            assert not {"WAIVER_CLASS_FORBIDDEN", "WAIVER_EXPIRED"} & set(codes(decide(*order)))


def test_an_accepted_risk_never_lifts_a_ban() -> None:
    decision = decide(waiver(kind="internal_risk_acceptance"))
    assert decision.verdict == "deny"
    assert codes(decision) == {BAN: "deny", "WAIVER_CLASS_FORBIDDEN": "deny"}


def test_an_accepted_risk_turns_review_into_conditional() -> None:
    gemini = "gemini-2.5-pro#gemini-api"
    assert decide(teacher=gemini).verdict == "review"
    risk = waiver("gemini-api@2025-05-20", kind="internal_risk_acceptance", rules=["COMPETING_MODEL", "RULE_STALE"])
    assert decide(risk, teacher=gemini).verdict == "conditional"
    half = waiver("gemini-api@2025-05-20", kind="internal_risk_acceptance", rules=["COMPETING_MODEL"])
    assert decide(half, teacher=gemini).verdict == "review"


def test_a_missing_fact_can_be_an_accepted_risk() -> None:
    llama = "meta-llama/Llama-3.3-70B-Instruct"
    assert decide(teacher=llama).verdict == "review"
    risk = waiver("llama-3.3@2024-12-06", kind="internal_risk_acceptance", rules=["MISSING_FACT"])
    assert decide(risk, teacher=llama).verdict == "conditional"


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": ["train"]},
        {"teachers": ["claude-opus#anthropic-api"]},
        {"rules": ["COMPETING_MODEL"]},
        {"document": "anthropic-consumer@2025-10-08"},
    ],
)
def test_a_waiver_of_something_else_changes_nothing(changes: dict[str, Any]) -> None:
    other = waiver(**changes)
    decision = decide(other)
    assert decision.verdict == "deny"
    assert codes(decision) == {BAN: "deny"}


def test_a_waiver_within_its_scope() -> None:
    assert decide(waiver(actions=["internal_use"], teachers=[CLAUDE])).verdict == "conditional"


def test_a_waiver_runs_out() -> None:
    assert decide(waiver(), today=date(2027, 4, 1)).verdict == "conditional"
    decision = decide(waiver(), today=date(2027, 4, 2))
    assert decision.verdict == "deny"
    assert codes(decision) == {BAN: "deny", "WAIVER_EXPIRED": "allow"}


def test_a_permission_frees_what_the_rule_claimed() -> None:
    """Two families that exclude each other: with one ban lifted the other family remains."""
    use = Use.model_validate({"action": "internal_use", "student": {"init_from": "meta-llama/Meta-Llama-3-8B"}})
    groups = [
        Material(teacher=Teacher(model=m), signal="text")
        for m in ("meta-llama/Meta-Llama-3-8B", "databricks/dbrx-base")
    ]
    facts = use.model_copy(update={"organisation": use.organisation.model_copy(update={"monthly_active_users": 1})})
    lifted = waiver("dbrx@2024-03-27", rules=["SAME_FAMILY_ONLY"])
    before = evaluate(groups, facts, bundle=load_bundle(), today=TODAY)
    assert "No initial weights belong to all the families that these terms ask for" in {r.gist for r in before.reasons}
    assert evaluate(groups, facts, bundle=load_bundle(), today=TODAY, waivers=[lifted]).verdict == "conditional"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"document": "anthropic-commercial@2024-01-01"},
            "waiver: document: anthropic-commercial@2024-01-01 is not in",
        ),
        ({"document_digest": "1" * 64}, "waiver: document_digest: anthropic-commercial@2025-06-17 reads otherwise now"),
        ({"valid_from": date(2026, 11, 25)}, "waiver: valid_from: 2026-11-25 lies in the future"),
        (
            {
                "permission": {
                    "title": "letter",
                    "sha256": "ab" * 32,
                    "granted_by": "Anthropic",
                    "granted_on": date(2026, 12, 1),
                }
            },
            "waiver: permission.granted_on: 2026-12-01 lies in the future",
        ),
    ],
)
def test_a_waiver_that_does_not_fit_is_refused_naming_the_field(changes: dict[str, Any], says: str) -> None:
    facts = waiver().model_dump() | changes
    with pytest.raises(FactsError) as caught:
        decide(Waiver.model_validate(facts))
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


INTERNAL = """kind = "internal_risk_acceptance"
document = "gemini-api@2025-05-20"
document_digest = "%s"
rules = ["RULE_STALE"]
valid_from = 2026-11-01
valid_until = 2027-04-30
reason = "small"
approvers = ["Ada", "Grace"]
""" % ("a" * 64)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('approvers = ["Ada", "Grace"]', 'approvers = ["Ada", "ada "]', "needs two different approvers"),
        ('approvers = ["Ada", "Grace"]', "", "needs two different approvers"),
        ('reason = "small"', "", "needs a reason"),
        ("valid_until = 2027-04-30", "valid_until = 2027-05-01", "lasts 180 days at most"),
        ("valid_until = 2027-04-30", "valid_until = 2026-10-30", "valid_until lies before valid_from"),
        ('"RULE_STALE"', '"RULE_TIRED"', "rules: no such reason code: RULE_TIRED"),
        ('rules = ["RULE_STALE"]', "rules = []", "rules: Tuple should have at least 1 item"),
        ("internal_risk_acceptance", "external_permission", "an external permission needs [permission]"),
        ("gemini-api@2025-05-20", "gemini-api", "document: String should match pattern"),
        ('reason = "small"', 'reason = "small"\nreazon = "x"', "reazon: unknown key; did you mean reason?"),
    ],
)
def test_a_waiver_file_that_is_none(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "waiver.toml"
    path.write_text(INTERNAL)
    assert read_toml(path, Waiver).approvers == ("Ada", "Grace")
    path.write_text(INTERNAL.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_toml(path, Waiver)
    assert says in str(caught.value)


def test_the_kinds_do_not_mix() -> None:
    with pytest.raises(ValueError, match="belongs to an external permission"):
        waiver(kind="internal_risk_acceptance", permission=waiver().permission)
    with pytest.raises(ValueError, match="approvers belong to an internal risk acceptance"):
        waiver(approvers=["Ada"])
