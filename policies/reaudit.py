"""Why a verdict changed: each change explained by exactly one cause.

Everything that may have changed is changed one thing at a time, in a fixed order; the cause is the step after which the
verdict is what it is now and stays so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Literal

from policies.decision import VERDICTS, Decision, Verdict
from policies.documents import Bundle
from policies.evaluate import evaluate
from policies.identity import Material
from policies.use import Use
from policies.waivers import Waiver

Cause = Literal["rows", "fact changed", "waiver", "terms changed", "rule corrected", "time"]
"""rows: other groups of outputs · fact changed: another use · waiver: given, withdrawn or run out · terms changed: a
document version came or went · rule corrected: the same version reads otherwise · time: the day alone."""


@dataclass(frozen=True)
class Situation:
    """All that a decision is made of."""

    materials: tuple[Material, ...]
    use: Use
    bundle: Bundle
    today: date
    waivers: tuple[Waiver, ...] = ()

    def decide(self) -> Decision:
        """The decision on it; waivers that do not fit the bundle have voided themselves and do not count."""
        waivers = [w for w in self.waivers if self._fits(w)]
        return evaluate(self.materials, self.use, bundle=self.bundle, today=self.today, waivers=waivers)

    def _fits(self, waiver: Waiver) -> bool:
        document = self.bundle.get(waiver.document)
        return document is not None and document.digest == waiver.document_digest


@dataclass(frozen=True)
class Change:
    """One verdict that changed. `teacher` is None for the verdict on all together.

    `because` is the reason that came or went with it, "" where none did.
    """

    teacher: str | None
    before: Verdict | None
    after: Verdict | None
    cause: Cause
    because: str = field(default="", compare=False)


def changes(before: Situation, after: Situation) -> tuple[Change, ...]:
    """Every verdict that differs between two situations, with the one cause; None stands for a teacher without rows."""
    path = list(_steps(before, after))
    decisions = [situation.decide() for _, situation in path]
    labels: list[str | None] = [None, *sorted({label for d in decisions for label in d.per_teacher})]
    found = []
    for label in labels:
        verdicts = [_verdict(decision, label) for decision in decisions]
        if verdicts[0] != verdicts[-1]:
            last = max(i for i in range(1, len(verdicts)) if verdicts[i] != verdicts[i - 1])
            because = _because(decisions[last - 1], decisions[last], label)
            found.append(Change(label, verdicts[0], verdicts[-1], path[last][0], because))
    return tuple(found)


def _because(before: Decision, after: Decision, label: str | None) -> str:
    """The strictest reason that only one side of the step has; of a stricter verdict the new one, else the old one."""
    sides = [[r for r in decision.reasons if label in (None, r.teacher)] for decision in (before, after)]
    stricter = VERDICTS.index(after.verdict) >= VERDICTS.index(before.verdict)
    new, old = (sides[1], sides[0]) if stricter else (sides[0], sides[1])
    known = {(r.code, r.document, r.gist) for r in old}
    for reason in sorted(new, key=lambda r: -VERDICTS.index(r.verdict)):
        if (reason.code, reason.document, reason.gist) not in known:
            return f"{reason.document}: {reason.gist}" if reason.document else reason.gist
    return ""


def _verdict(decision: Decision, label: str | None) -> Verdict | None:
    if label is None:
        return decision.verdict
    found = decision.per_teacher.get(label)
    return None if found is None else found.verdict


def _steps(before: Situation, after: Situation) -> Sequence[tuple[Cause, Situation]]:
    """From before to after, one thing at a time; the first entry is where it starts from.

    A waiver binds to the text that it was given for, so it changes sides only once the bundle has.
    """
    dated = replace(before, today=after.today)
    rows = replace(dated, materials=after.materials)
    used = replace(rows, use=after.use)
    versions = replace(used, bundle=_new_versions(before.bundle, after.bundle))
    rules = replace(versions, bundle=after.bundle)
    return [
        ("time", before),
        ("time", dated),
        ("rows", rows),
        ("fact changed", used),
        ("terms changed", versions),
        ("rule corrected", rules),
        ("waiver", after),
    ]


def _new_versions(old: Bundle, new: Bundle) -> Bundle:
    """The new bundle's set of document versions, each reading as the old one read it where it was there already."""
    return Bundle(old.get(document.name) or document for document in new.documents)
