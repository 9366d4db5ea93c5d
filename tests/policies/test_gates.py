"""Thresholds × measures → reasons; the strictest word stands; a waiver lifts only for these thresholds and data."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.decision import VERDICTS, Decision, digest_of
from policies.documents import load_bundle
from policies.errors import FactsError
from policies.evaluate import evaluate
from policies.gates import DOCUMENT, Gates, gated, judge, subject
from policies.identity import Material, Teacher
from policies.use import Use
from policies.waivers import Waiver

TODAY = date(2026, 11, 24)
GATES = Gates(max_loops=0.01, min_accuracy=0.7)
GOOD = {"loops": 0.005, "accuracy": 0.8}
DATA = "d" * 64


@pytest.fixture(scope="module")
def allowed() -> Decision:
    teacher = Teacher(model="google/gemma-3-270m", revision="gguf-q4_k_m")
    material = Material(teacher=teacher, signal="top_k_logprobs", prompt_licence="CC0-1.0", rows=10, tokens=100)
    return evaluate([material], Use(action="train"), bundle=load_bundle(), today=TODAY)


def waiver(**changes: object) -> Waiver:
    values = {
        "kind": "internal_risk_acceptance",
        "document": DOCUMENT,
        "document_digest": subject(GATES, DATA),
        "rules": ("GATE_MISSED",),
        "valid_from": TODAY,
        "valid_until": TODAY + timedelta(days=30),
        "reason": "the loops are poems",
        "approvers": ("ada", "bob"),
    }
    return Waiver.model_validate(values | changes)


@pytest.mark.parametrize(
    ("measures", "codes"),
    [
        (GOOD, []),
        ({"loops": 0.01, "accuracy": 0.7}, []),
        ({"loops": 0.0101, "accuracy": 0.8}, [("GATE_MISSED", "max_loops")]),
        ({"loops": 0.0, "accuracy": 0.69}, [("GATE_MISSED", "min_accuracy")]),
        ({"loops": 0.0, "accuracy": None}, [("GATE_UNKNOWN", "min_accuracy")]),
        ({}, [("GATE_UNKNOWN", "max_loops"), ("GATE_UNKNOWN", "min_accuracy")]),
    ],
)
def test_each_threshold_holds_on_its_side(measures: dict[str, float | None], codes: list[tuple[str, str]]) -> None:
    assert [(reason.code, reason.section) for reason in judge(GATES, measures)] == codes


def test_a_missed_gate_denies_and_is_part_of_the_record(allowed: Decision) -> None:
    found = gated(allowed, GATES, {**GOOD, "loops": 0.2}, data=DATA, today=TODAY)
    assert (allowed.verdict, found.verdict, found.exit_code) == ("conditional", "deny", 3)
    assert found.facts["gates"]["measures"]["loops"] == 0.2 and found.digest != allowed.digest
    assert found.facts_digest == digest_of(found.facts)
    assert Decision.from_json(found.to_json()) == found
    assert found.obligations == allowed.obligations


def test_without_thresholds_the_decision_stays_as_it_is(allowed: Decision) -> None:
    assert gated(allowed, Gates(), {}, data=DATA) is allowed


def test_an_unknown_measure_is_never_a_yes(allowed: Decision) -> None:
    assert gated(allowed, GATES, {"loops": 0.0}, data=DATA, today=TODAY).verdict == "review"


def test_an_accepted_risk_lifts_what_it_names(allowed: Decision) -> None:
    bad = {"loops": 0.2, "accuracy": None}
    found = gated(allowed, GATES, bad, data=DATA, waivers=[waiver()], today=TODAY)
    assert found.verdict == "review"  # GATE_UNKNOWN is not waived
    both = waiver(rules=("GATE_MISSED", "GATE_UNKNOWN"))
    found = gated(allowed, GATES, bad, data=DATA, waivers=[both], today=TODAY)
    assert found.verdict == "conditional" and found.reasons[-1].code == "WAIVER_APPLIED"
    assert found.facts["gates"]["waivers"][0]["reason"] == "the loops are poems"


def test_a_waiver_ends_with_its_time_its_thresholds_and_its_data(allowed: Decision) -> None:
    bad = {**GOOD, "loops": 0.2}
    late = TODAY + timedelta(days=31)
    assert gated(allowed, GATES, bad, data=DATA, waivers=[waiver()], today=late).verdict == "deny"
    for gates, data in ((GATES, "e" * 64), (Gates(max_loops=0.02, min_accuracy=0.7), DATA)):
        with pytest.raises(FactsError, match="document_digest"):
            gated(allowed, gates, bad, data=data, waivers=[waiver()], today=TODAY)
    with pytest.raises(FactsError, match="future"):
        gated(allowed, GATES, bad, data=DATA, waivers=[waiver()], today=TODAY - timedelta(days=1))
    other = waiver(actions=("internal_use",))
    assert gated(allowed, GATES, bad, data=DATA, waivers=[other], today=TODAY).verdict == "deny"


def test_a_licensors_permission_lifts_no_gate(allowed: Decision) -> None:
    permission = {"title": "t", "sha256": "a" * 64, "granted_by": "g", "granted_on": TODAY}
    given_ = waiver(kind="external_permission", permission=permission, approvers=())
    with pytest.raises(FactsError, match="your own threshold"):
        gated(allowed, GATES, {**GOOD, "loops": 0.2}, data=DATA, waivers=[given_], today=TODAY)


@given(loops=st.none() | st.floats(0, 1), accuracy=st.none() | st.floats(0, 1))
def test_gates_never_make_a_verdict_milder(allowed: Decision, loops: float | None, accuracy: float | None) -> None:
    found = gated(allowed, GATES, {"loops": loops, "accuracy": accuracy}, data=DATA, today=TODAY)
    assert VERDICTS.index(found.verdict) >= VERDICTS.index(allowed.verdict)


@pytest.mark.parametrize("values", [{"max_loop": 0.1}, {"max_loops": 1.5}, {"min_accuracy": -0.1}])
def test_thresholds_that_cannot_be_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Gates.model_validate(values)
