"""A decision as SARIF 2.1.0, which code hosts and CI systems show beside other findings."""

from __future__ import annotations

from typing import Any

from policies.codes import CODES
from policies.decision import Decision, Reason, Verdict

LEVELS: dict[Verdict, str] = {"allow": "none", "conditional": "note", "review": "warning", "deny": "error"}


def sarif(decision: Decision) -> dict[str, Any]:
    """The SARIF log of a decision: a rule for each reason code that occurs, a result for each reason.

    Results have logical locations (the teacher), since a decision is about rows and not about lines of a file.
    """
    codes = sorted({reason.code for reason in decision.reasons})
    return {
        "version": "2.1.0",
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "runs": [
            {
                "tool": {"driver": {"name": "potstill", "rules": [_rule(code) for code in codes]}},
                "results": [_result(reason, codes) for reason in decision.reasons],
                "properties": {
                    "verdict": decision.verdict,
                    "action": decision.action,
                    "bundle": decision.bundle,
                    "decision": decision.digest,
                },
            }
        ],
    }


def _rule(code: str) -> dict[str, Any]:
    meaning, ways = CODES[code]
    rule: dict[str, Any] = {"id": code, "shortDescription": {"text": meaning}}
    if ways:
        rule["help"] = {"text": "; ".join(ways)}
    return rule


def _result(reason: Reason, codes: list[str]) -> dict[str, Any]:
    where = ", ".join(part for part in (reason.document, reason.section) if part)
    level = LEVELS[reason.verdict]
    result: dict[str, Any] = {
        "ruleId": reason.code,
        "ruleIndex": codes.index(reason.code),
        "kind": "pass" if level == "none" else "fail",
        "level": level,
        "message": {"text": f"{reason.gist} ({where})" if where else reason.gist},
        "properties": {"verdict": reason.verdict, "fix": list(reason.fix), "facts": dict(reason.facts)},
    }
    if reason.teacher is not None:
        name = {"fullyQualifiedName": reason.teacher, "kind": "resource"}
        result["locations"] = [{"logicalLocations": [name]}]
    return result
