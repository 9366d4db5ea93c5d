"""The reference cases: every one must come out by general rules."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from policies.binding import bind
from policies.cli import check
from policies.decision import EXIT_CODES
from policies.documents import load_bundle
from policies.evaluate import evaluate
from policies.identity import Material, Teacher
from policies.use import Use
from policies.waivers import Waiver

VECTORS = json.loads((Path(__file__).parent / "data" / "vectors.json").read_text())
TODAY = date(2026, 11, 24)
ACTIONS = {"distribute": "distribute_student", "internal": "internal_use"}


def use_of(case: dict[str, Any]) -> Use:
    defaults = VECTORS["defaults"]
    organisation = dict(defaults["organisation"])
    organisation["monthly_active_users"] = organisation.pop("mau")
    student = {**defaults["student"], **case.get("student", {})}
    action = case.get("action") or ACTIONS[case["use"]]
    if action == "internal_use":
        student["distributed"] = False
    return Use.model_validate({"action": action, "student": student, "organisation": organisation})


def materials_of(case: dict[str, Any]) -> list[Material]:
    path = case.get("access_path", VECTORS["defaults"]["access_path"])
    signal = case.get("signal", VECTORS["defaults"]["signal"])
    teachers = [Teacher(model=m, revision=case.get("revision"), access_path=path) for m in case["teachers"]]
    return [Material(teacher=teacher, signal=signal) for teacher in teachers]


def waiver_of(kind: str, teacher: Teacher, **changes: Any) -> Waiver:
    document = bind(teacher, load_bundle(), TODAY).bound[0].document
    facts: dict[str, Any] = {
        "kind": kind,
        "document": document.name,
        "document_digest": document.digest,
        "rules": sorted({rule.code for rule in document.rules if rule.verdict == "deny"}) or ["RULE_UNVERIFIED"],
        "valid_from": date(2026, 11, 1),
        "valid_until": date(2027, 1, 31),
    }
    if kind == "external_permission":
        facts["permission"] = {
            "title": "Letter of 2026-10-20",
            "sha256": "ab" * 32,
            "granted_by": document.provider,
            "granted_on": date(2026, 10, 20),
        }
    else:
        facts |= {"reason": "small risk", "approvers": ["Ada", "Grace"]}
    return Waiver.model_validate({**facts, **changes})


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["id"])
def test_vector(case: dict[str, Any]) -> None:
    materials = materials_of(case)
    waivers = [waiver_of(case["waiver"], materials[0].teacher)] if "waiver" in case else []
    decision = evaluate(materials, use_of(case), bundle=load_bundle(), today=TODAY, waivers=waivers)
    codes = {reason.code for reason in decision.reasons}
    assert decision.verdict == case["verdict"], decision.to_json()
    assert set(case.get("codes", ())) <= codes, decision.to_json()


def toml(table: dict[str, Any]) -> str:
    """A table of plain values as TOML."""
    return "".join(f"{name} = {json.dumps(value, default=str)}\n" for name, value in table.items())


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["id"])
def test_vector_from_the_command_line(case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`potstill check --json`, on the day of the readings."""

    class ThatDay(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC)

    monkeypatch.setattr("policies.evaluate.datetime", ThatDay)
    use, materials = use_of(case), materials_of(case)
    tables = use.model_dump(mode="json", exclude_none=True)
    del tables["organisation"]["monthly_active_users_on"]
    text = toml({"action": use.action}) + "".join(
        f"[{name}]\n{toml(tables[name])}" for name in ("student", "organisation", "data")
    )
    (tmp_path / "use.toml").write_text(f"{text}signal = {json.dumps(materials[0].signal)}\n")
    arguments = ["--use", str(tmp_path / "use.toml"), "--json"]
    for material in materials:
        arguments += ["--teacher", material.teacher.label]
    if "waiver" in case:
        given = waiver_of(case["waiver"], materials[0].teacher).model_dump(exclude_none=True)
        permission = given.pop("permission", None)
        dates = "".join(f"{name} = {given.pop(name)}\n" for name in ("valid_from", "valid_until"))
        file = toml(given) + dates
        if permission is not None:
            granted = permission.pop("granted_on")
            file += f"[permission]\n{toml(permission)}granted_on = {granted}\n"
        (tmp_path / "waiver.toml").write_text(file)
        arguments += ["--waiver", str(tmp_path / "waiver.toml")]
    done = CliRunner().invoke(check, arguments)
    record = json.loads(done.stdout)
    assert record["verdict"] == case["verdict"], done.output
    assert done.exit_code == EXIT_CODES[case["verdict"]]
    assert set(case.get("codes", ())) <= {reason["code"] for reason in record["reasons"]}
