"""For every document of the register a teacher that it binds, and the uses that its rules are tried on."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import date
from typing import Any

from pydantic import BaseModel

from policies.clauses import judge
from policies.decision import Decision
from policies.documents import Bundle, Document
from policies.evaluate import evaluate
from policies.facts import Case
from policies.identity import Material, Teacher
from policies.merge import Claims
from policies.use import ACTIONS, Action, Use

TODAY = date(2026, 11, 24)

STUDENT: dict[str, Any] = {
    "name": "acme-7b",
    "licence": "Apache-2.0",
    "init_from": "allenai/OLMo-2-1124-7B",
    "kind": "general_llm",
    "intent_similar": True,
}
ORGANISATION: dict[str, Any] = {
    "domicile": "US",
    "deploys_in": ["US"],
    "commercial": True,
    "annual_revenue_usd": 50_000_000,
    "monthly_active_users": 1_000_000,
}
LARGE = {"annual_revenue_usd": 90_000_000_000, "monthly_active_users": 900_000_000, "business": ["model_as_a_service"]}

MULTIMODAL = {"llama-3.2": "meta-llama/Llama-3.2-11B-Vision-Instruct"}
"""Where a duty concerns only some of a document's models."""

# name → (student, organisation, signal) that differ from the two above
VARIATIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "default": ({}, {}, "top_k_logprobs"),
    "own licence": ({"licence": "LicenseRef-acme"}, {}, "top_k_logprobs"),
    "named Llama": ({"name": "Llama-3-acme", "licence": "LicenseRef-acme"}, {}, "top_k_logprobs"),
    "bears marks": ({"name": "glm-4-DeepSeek", "licence": "LicenseRef-acme"}, {}, "top_k_logprobs"),
    "classifier on text": ({"kind": "classifier", "intent_similar": False}, {}, "text"),
    "narrow": ({"kind": "narrow_llm", "intent_similar": False}, {"annual_revenue_usd": 500_000}, "text"),
    "logits": ({}, {}, "logits"),
    "not commercial": ({}, {"commercial": False, "annual_revenue_usd": 0}, "top_k_logprobs"),
    "large": ({"licence": "LicenseRef-acme", "name": "Llama 3"}, LARGE, "top_k_logprobs"),
    "in Europe": ({"name": "Llama", "licence": "LicenseRef-acme"}, {"domicile": "DE"}, "top_k_logprobs"),
    "in Korea": ({"licence": "LicenseRef-acme"}, {"deploys_in": ["US", "KR"]}, "top_k_logprobs"),
    "of the family": ({"init_from": "(family)", "licence": "(document)"}, {}, "top_k_logprobs"),
    "under its licence": ({"licence": "(document)"}, {}, "top_k_logprobs"),
}


def teacher_of(document: Document, bundle: Bundle) -> Teacher:
    """A teacher that the document binds."""
    path = document.access_paths[0]
    served = "fireworks" if path == "openrouter" else None
    if not document.models:
        return Teacher(model="Qwen/Qwen3-32B", access_path=path, served_by=served)
    entry = next((e for e in document.models if not e.needs_revision), document.models[0])
    revision = None
    if entry.needs_revision:
        revision = "2023-12" if entry.before else "2026-10"
    model = MULTIMODAL.get(document.id) or entry.match[0].replace("*", "8B")
    return Teacher(model=model, revision=revision, access_path=path)


def use_of(document: Document, action: Action, variation: str) -> Use:
    """A use for the document; "(family)" and "(document)" stand for what is the document's own."""
    student, organisation, _ = VARIATIONS[variation]
    student = {**STUDENT, **student}
    if student["init_from"] == "(family)":
        members = document.family.members if document.family else ("allenai/OLMo-2-1124-7B",)
        student["init_from"] = members[0].replace("*", "8B")
    if student["licence"] == "(document)":
        student["licence"] = f"LicenseRef-{document.id}"
    return Use.model_validate({"action": action, "student": student, "organisation": {**ORGANISATION, **organisation}})


def decide(document: Document, bundle: Bundle, action: Action, variation: str) -> Decision:
    """The decision on one case, on rows of the time when the document was in force."""
    superseded = document.effective_to and not document.fixed_at_download
    material = Material(
        teacher=teacher_of(document, bundle),
        signal=VARIATIONS[variation][2],
        terms=(document.name,) if superseded else None,
        collected_from=document.effective_to if superseded else None,
        collected_to=document.effective_to if superseded else None,
    )
    return evaluate([material], use_of(document, action, variation), bundle=bundle, today=TODAY)


def outcome(document: Document, bundle: Bundle, action: Action, variation: str) -> str:
    """Verdict, and what the document itself says and is owed, as one line."""
    decision = decide(document, bundle, action, variation)
    own = {f"{r.code}={r.verdict}" for r in decision.reasons if r.document == document.name}
    owed = {o.type for o in decision.obligations if o.document == document.name and o.due and o.trigger != "always"}
    return " ".join([decision.verdict, *sorted(own), *sorted(owed)])


def standing(document: Document, bundle: Bundle) -> list[str]:
    """What the document demands always."""
    decision = decide(document, bundle, "collect", "default")
    return [o.type for o in decision.obligations if o.document == document.name and o.trigger == "always"]


def recorded(document: Document, bundle: Bundle) -> dict[str, Any]:
    """What data/documents.json holds of a document: the outcomes, each with the cases that come to it."""
    cases: dict[str, dict[str, list[str]]] = {}
    for action in ACTIONS:
        for variation in VARIATIONS:
            line = outcome(document, bundle, action, variation)
            cases.setdefault(line, {}).setdefault(action, []).append(variation)
    return {"standing": standing(document, bundle), "cases": cases}


def said(document: Document, bundle: Bundle) -> list[str]:
    """What data/said.json holds of a document: every reason, duty and claim of these cases, word for word."""
    lines: set[str] = set()
    for action in ACTIONS:
        for variation in VARIATIONS:
            decision = decide(document, bundle, action, variation)
            own = [r for r in decision.reasons if r.document == document.name]
            lines |= {f"reason {_line(r)}" for r in own}
            lines |= {f"duty {_line(o)}" for o in decision.obligations if o.document == document.name}
            signal = VARIATIONS[variation][2]
            case = Case(teacher_of(document, bundle), signal, use_of(document, action, variation), document)  # type: ignore[arg-type]
            lines.add(f"claims {json.dumps(_claims(judge(case, 'stored-copy').claims), ensure_ascii=False)}")
            lines.add(f"claims {json.dumps(_claims(judge(case, 'secondary').claims), ensure_ascii=False)}")
    return sorted(lines)


def _line(found: BaseModel) -> str:
    said_ = found.model_dump(mode="json", exclude_defaults=True, exclude={"document", "teacher", "teachers"})
    return json.dumps(said_, sort_keys=True, ensure_ascii=False)


def _claims(claims: Claims) -> dict[str, Any]:
    """Those that demand something."""
    found = {f.name: getattr(claims, f.name) for f in fields(Claims) if getattr(claims, f.name) != f.default}
    return {name: sorted(map(str, v)) if isinstance(v, frozenset) else v for name, v in sorted(found.items())}
