"""Waivers: the recorded ways round a rule, of two kinds that never mix.

An external permission is the licensor's own document and may lift a ban; an internal risk acceptance may only turn
review into conditional. Both name the document by digest, so they void themselves when a rule of it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from policies.clauses import Finding
from policies.codes import CODES
from policies.decision import Reason, digest_of
from policies.documents import Bundle
from policies.errors import FactsError
from policies.facts import Case
from policies.merge import PURPOSES
from policies.reasons import reason_of
from policies.settings import Settings, read_toml
from policies.use import ACTIONS, Action

LONGEST_RISK = timedelta(days=180)

_CLAIMED: dict[str, dict[str, Any]] = {
    "MARK_FORBIDDEN_IN_NAME": {"marks": frozenset()},
    "NAME_PREFIX_MISSING": {"name_prefixes": frozenset()},
    "NONCOMMERCIAL": {"purposes": PURPOSES},
    "SAME_FAMILY_ONLY": {"families": None},
    "STUDENT_LICENCE_CONFLICT": {"share_alike": frozenset(), "use_restrictions": frozenset()},
}
"""What a rule claims of the student, which goes with the rule when a permission lifts it."""


class Permission(Settings):
    """The licensor's document, kept by whoever holds it: what it is called, its sha256, who gave it and when."""

    title: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    granted_by: str = Field(min_length=1)
    granted_on: date


class Waiver(Settings):
    """One waiver file. `rules` are the reason codes that it settles, `teachers` labels (empty: all under the document).

    `document_digest` is what `potstill terms ID` prints for the version.
    """

    kind: Literal["external_permission", "internal_risk_acceptance"]
    document: str = Field(pattern=r"^\S+@\S+$")
    document_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    rules: tuple[str, ...] = Field(min_length=1)
    actions: tuple[Action, ...] = ACTIONS
    teachers: tuple[str, ...] = ()
    valid_from: date
    valid_until: date
    permission: Permission | None = None
    reason: str | None = Field(default=None, min_length=1)
    approvers: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of what the waiver says."""
        return digest_of(self.model_dump(mode="json"))

    def record(self) -> dict[str, Any]:
        """What a decision keeps of the waiver: all of it, with its digest, so that it can be read without the file."""
        return {"digest": self.digest, **self.model_dump(mode="json", exclude_defaults=True)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Waiver:
        """Read `record` back."""
        return cls.model_validate({name: value for name, value in record.items() if name != "digest"})

    @field_validator("rules")
    @classmethod
    def _codes_exist(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [rule for rule in rules if rule not in CODES]
        if unknown:
            raise ValueError(f"no such reason code: {', '.join(unknown)}")
        return rules

    @model_validator(mode="after")
    def _of_one_kind(self) -> Waiver:
        if self.valid_until < self.valid_from:
            raise ValueError("valid_until lies before valid_from")
        if self.kind == "external_permission":
            if self.permission is None:
                raise ValueError("an external permission needs [permission]: title, sha256, granted_by, granted_on")
            if self.approvers:
                raise ValueError("approvers belong to an internal risk acceptance, not to an external permission")
            return self
        if self.permission is not None:
            raise ValueError("[permission] belongs to an external permission, not to an internal risk acceptance")
        if self.reason is None:
            raise ValueError("an internal risk acceptance needs a reason")
        if len({name.strip().casefold() for name in self.approvers} - {""}) < 2:
            raise ValueError("an internal risk acceptance needs two different approvers")
        if self.valid_until - self.valid_from > LONGEST_RISK:
            raise ValueError(f"an internal risk acceptance lasts {LONGEST_RISK.days} days at most")
        return self


def read_waivers(files: Iterable[Path]) -> tuple[Waiver, ...]:
    """The waivers in these files; raises ConfigError with all that is wrong in one of them."""
    return tuple(read_toml(file, Waiver) for file in files)


def check_waivers(waivers: Iterable[Waiver], bundle: Bundle, today: date) -> None:
    """Raise FactsError for a waiver that cannot be one: of a document that the bundle lacks or has in another text, or
    from the future."""
    for waiver in waivers:
        document = bundle.get(waiver.document)
        if document is None:
            known = ", ".join(d.name for d in bundle.versions(waiver.document.partition("@")[0])) or "none of that id"
            raise FactsError(f"waiver: document: {waiver.document} is not in the bundle (it has {known})")
        if document.digest != waiver.document_digest:
            raise FactsError(
                f"waiver: document_digest: {waiver.document} reads otherwise now ({document.digest}); "
                "read what changed and have the waiver given anew"
            )
        if waiver.valid_from > today:
            raise FactsError(f"waiver: valid_from: {waiver.valid_from} lies in the future")
        if waiver.permission is not None and waiver.permission.granted_on > today:
            raise FactsError(f"waiver: permission.granted_on: {waiver.permission.granted_on} lies in the future")


def apply_waivers(finding: Finding, case: Case, waivers: Sequence[Waiver], today: date) -> Finding:
    """What is left of a document's reasons once the waivers that fit have spoken.

    Those in force speak before those that ran out, and permissions before accepted risks, so that neither the order
    in which they are given nor one that says nothing new changes what comes out.
    """
    reasons = list(finding.reasons)
    for waiver in sorted(waivers, key=lambda w: (w.valid_until < today, w.kind, w.digest)):
        if waiver.document != case.document.name or case.use.action not in waiver.actions:
            continue
        if waiver.teachers and case.teacher.label not in waiver.teachers:
            continue
        reasons = _applied(reasons, case, waiver, today)
    before = {r.code for r in finding.reasons if r.verdict == "deny"}
    lifted = before - {r.code for r in reasons if r.verdict == "deny"}
    freed = {field: value for code in lifted for field, value in _CLAIMED.get(code, {}).items()}
    return replace(finding, reasons=tuple(reasons), claims=replace(finding.claims, **freed))


def _applied(reasons: list[Reason], case: Case, waiver: Waiver, today: date) -> list[Reason]:
    stopping = [r for r in reasons if r.code in waiver.rules and r.verdict in ("review", "deny")]
    if not stopping:
        return reasons
    facts = {"waiver": waiver.digest, "kind": waiver.kind, "valid_until": waiver.valid_until.isoformat()}
    about = ", ".join(dict.fromkeys(r.code for r in stopping))
    if waiver.valid_until < today:
        gist = f"The waiver of {about} ran out on {waiver.valid_until}"
        return [*reasons, _say(case, "WAIVER_EXPIRED", "allow", gist, facts)]
    lifted = [r for r in stopping if waiver.kind == "external_permission" or r.verdict == "review"]
    kept = [r for r in stopping if r not in lifted]
    result = [r.model_copy(update={"verdict": "conditional"}) if r in lifted else r for r in reasons]
    if lifted:
        what = ", ".join(dict.fromkeys(r.code for r in lifted))
        gist = f"{what} settled by {waiver.kind.replace('_', ' ')} until {waiver.valid_until}"
        result.append(_say(case, "WAIVER_APPLIED", "conditional", gist, facts))
    if kept:
        what = ", ".join(dict.fromkeys(r.code for r in kept))
        result.append(_say(case, "WAIVER_CLASS_FORBIDDEN", "deny", f"An accepted risk cannot lift {what}", facts))
    return result


def _say(
    case: Case, code: str, verdict: Literal["allow", "conditional", "deny"], gist: str, facts: dict[str, str]
) -> Reason:
    return reason_of(case, code, verdict, gist, None).model_copy(update={"facts": facts})
