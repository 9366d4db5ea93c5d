"""What the licence of the prompts adds: they are inside the rows, so it binds whoever trains on or publishes them.

An expression is judged branch by branch: AND asks for all, OR lets the holder choose the mildest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from policies import licences
from policies.codes import ways_out
from policies.decision import VERDICTS, Obligation, Reason, Verdict
from policies.duties import SHIPPING
from policies.identity import Material
from policies.merge import worst
from policies.use import Use

NOT_STATED = ("NOASSERTION", "NONE")
"""SPDX's words for a licence that was asked for and is not known."""


@dataclass(frozen=True)
class PromptFinding:
    """Reasons and obligations that come from the prompts' licence."""

    reasons: tuple[Reason, ...] = ()
    obligations: tuple[Obligation, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """The strictest of them."""
        owed = any(o.due for o in self.obligations)
        return worst([*(r.verdict for r in self.reasons), "conditional" if owed else "allow"])

    def __add__(self, other: PromptFinding) -> PromptFinding:
        return PromptFinding(self.reasons + other.reasons, self.obligations + other.obligations)


def judge_prompts(material: Material, use: Use) -> PromptFinding:
    """Judge a group's prompt licence; None says nothing before there are rows, then it is a missing fact."""
    licence = material.prompt_licence
    if licence is None and material.rows == 0:
        return PromptFinding()
    if licence is None or licence.strip().upper() in NOT_STATED:
        reason = _reason(
            material,
            "MISSING_FACT",
            "review",
            "The licence of the prompts is not stated",
            ("state it: [prompts] licence = an SPDX expression, LicenseRef-own for prompts of your own making",),
            {"missing": ["prompts.licence"], "rule": "UNKNOWN_TERMS", "could_be": "deny"},
        )
        return PromptFinding((reason,))
    tree = licences.parse(licence)
    if tree is None:
        return PromptFinding((_unknown(material, licence),))
    return _judge_tree(tree, material, use)


def _judge_tree(tree: licences.LicenceTree, material: Material, use: Use) -> PromptFinding:
    if tree.operator == "leaf":
        return _judge_one(tree.key, material, use)
    parts = [_judge_tree(part, material, use) for part in tree.parts]
    if tree.operator == "OR":
        return min(parts, key=lambda part: VERDICTS.index(part.verdict))
    return sum(parts, PromptFinding())


def _judge_one(key: str, material: Material, use: Use) -> PromptFinding:
    traits = licences.traits(key)
    if traits is None:
        return PromptFinding((_unknown(material, key),))
    reasons: list[Reason] = []
    if "noncommercial" in traits:
        reasons += _noncommercial(key, material, use)
    if "no_derivatives" in traits and use.action == "publish_dataset":
        gist = f"Prompts under {key} may not be passed on in changed form"
        reasons.append(_reason(material, "DATASET_PUBLICATION", "deny", gist))
    elif "no_derivatives" in traits and use.action != "collect":
        gist = f"Whether training on prompts under {key} makes an adaptation, which it bars, is not settled"
        reasons.append(_reason(material, "STUDENT_IS_DERIVATIVE", "review", gist))
    if "share_alike" in traits and use.action in SHIPPING:
        reasons += _share_alike(key, material, use)
    return PromptFinding(tuple(reasons), tuple(_owed(key, material, use, traits)))


def _noncommercial(key: str, material: Material, use: Use) -> list[Reason]:
    commercial = use.organisation.commercial
    gist = f"Prompts under {key} are not for commercial purposes"
    if commercial is None:
        facts = {"missing": ["organisation.commercial"], "rule": "NONCOMMERCIAL", "could_be": "deny"}
        fix = ("give organisation.commercial in use.toml",)
        return [_reason(material, "MISSING_FACT", "review", f"organisation.commercial decides: {gist}", fix, facts)]
    return [_reason(material, "NONCOMMERCIAL", "deny", gist, ("use other prompts",))] if commercial else []


def _share_alike(key: str, material: Material, use: Use) -> list[Reason]:
    licence = use.student.licence
    if licence is not None and licences.under(licence, key, key):
        return []
    gist = (
        f"Whether share-alike of prompts under {key} reaches a student under {licence or 'no licence'} is not settled"
    )
    fix = (f"put the student under {key}", "use other prompts")
    return [_reason(material, "STUDENT_LICENCE_CONFLICT", "review", gist, fix)]


def _owed(key: str, material: Material, use: Use, traits: frozenset[licences.Trait]) -> list[Obligation]:
    texts: dict[licences.Trait, tuple[str, str]] = {
        "attribution": ("attribution_statement", f"Name the prompts' authors and their licence, {key}"),
        "share_alike": ("share_alike", f"Publish the data set under {key}"),
    }
    return [
        Obligation(
            type=texts[trait][0],
            text=texts[trait][1],
            trigger="on_publish_dataset",
            document=f"prompts: {key}",
            teachers=(material.teacher.label,),
            due=use.action == "publish_dataset",
        )
        for trait in ("attribution", "share_alike")
        if trait in traits
    ]


def _unknown(material: Material, licence: str) -> Reason:
    gist = f"The licence of the prompts, {licence!r}, is not one that the register knows"
    fix = ("state an SPDX expression of known licences", "write LicenseRef-own for prompts of your own making")
    return _reason(material, "UNKNOWN_TERMS", "deny", gist, fix)


def _reason(
    material: Material,
    code: str,
    verdict: Verdict,
    gist: str,
    fix: tuple[str, ...] = (),
    facts: Mapping[str, object] | None = None,
) -> Reason:
    return Reason(
        code=code,
        verdict=verdict,
        teacher=material.teacher.label,
        gist=gist,
        fix=fix or ways_out(code),
        facts={"prompt_licence": material.prompt_licence, **(facts or {})},
    )
