"""The record of a verdict: immutable, named by its digest, readable years later without the code that made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from policies.use import Action

Verdict = Literal["allow", "conditional", "review", "deny"]
VERDICTS: tuple[Verdict, ...] = ("allow", "conditional", "review", "deny")
"""In order: merging takes the later one."""
EXIT_CODES: dict[Verdict, int] = {"allow": 0, "conditional": 0, "review": 5, "deny": 3}

Trigger = Literal[
    "always",
    "on_collect",
    "on_train",
    "on_publish_dataset",
    "on_distribute_student",
    "on_distribute_teacher",
    "on_commercial_use",
]


def canonical(value: object) -> bytes:
    """JSON in the form that digests are taken over: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(value: object) -> str:
    """Lower-case hex sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value)).hexdigest()


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reason(_Record):
    """Why: one rule that spoke. `facts` are those that it read, `fix` the ways out."""

    code: str
    verdict: Verdict
    teacher: str | None = None
    document: str | None = None
    section: str | None = None
    gist: str
    fix: tuple[str, ...] = ()
    facts: Mapping[str, Any] = {}


class Obligation(_Record):
    """What is owed, to whom (the document), and when it starts to bite (the trigger)."""

    type: str
    text: str
    trigger: Trigger
    document: str
    section: str | None = None
    params: Mapping[str, Any] = {}
    teachers: tuple[str, ...] = ()
    due: bool
    """Whether the action that was judged triggers it."""
    discharged: bool = False


class TeacherVerdict(_Record):
    """What one teacher's outputs come to on their own."""

    verdict: Verdict
    terms: tuple[str, ...] = ()
    rows: int = 0
    tokens: int = 0


class Drop(_Record):
    """The smallest set of teachers without which the rest is allowed, and what share of the data goes with them."""

    teachers: tuple[str, ...]
    rows: int
    tokens: int
    share_of_rows: float | None
    share_of_tokens: float | None
    verdict: Verdict
    """What the rest would come to."""


class Decision(_Record):
    """A policy verdict under one bundle on one set of facts; not a legal opinion."""

    verdict: Verdict
    action: Action
    reasons: tuple[Reason, ...]
    obligations: tuple[Obligation, ...]
    missing_facts: tuple[str, ...]
    per_teacher: Mapping[str, TeacherVerdict]
    drop: Drop | None = None
    bundle: str
    bundle_digest: str
    facts: Mapping[str, Any]
    facts_digest: str
    decided_at: datetime

    @property
    def digest(self) -> str:
        """sha256 of all that was decided and on what, but not when: the same facts under the same bundle agree."""
        return digest_of(self.model_dump(mode="json", exclude={"decided_at"}))

    @property
    def exit_code(self) -> int:
        """0 go on · 5 review · 3 refused."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> str:
        """The record of `check --json` and `audit --json`, its digest beside it."""
        record = {**self.model_dump(mode="json"), "digest": self.digest}
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Decision:
        """Read a record back; raises ValueError when it is not one or when its digest does not fit its content."""
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError("a decision is a JSON object")
        written = record.pop("digest", None)
        decision = cls.model_validate(record)
        if written != decision.digest:
            raise ValueError("the decision's digest does not fit its content: it was changed after it was made")
        return decision
