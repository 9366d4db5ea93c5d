"""Does a new bundle let through what the old one stopped? Nobody may loosen the register without saying so.

Cases are tried one by one under both bundles; a looser verdict is accepted only where a document that decided it then
or decides it now carries a `loosens` note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from policies.decision import VERDICTS, Decision, Verdict
from policies.documents import Bundle
from policies.evaluate import evaluate
from policies.identity import Material
from policies.use import Use


@dataclass(frozen=True)
class Case:
    """One thing to try: outputs and a use, under a name that a person can find again."""

    name: str
    materials: tuple[Material, ...]
    use: Use


@dataclass(frozen=True)
class Loosened:
    """A case that comes out milder, and the documents of which one would have to say why."""

    case: str
    before: Verdict
    after: Verdict
    documents: tuple[str, ...]


def loosened(old: Bundle, new: Bundle, cases: Iterable[Case], today: date) -> tuple[Loosened, ...]:
    """The cases that the new bundle judges more mildly than the old one, without a note in a document concerned."""
    found = []
    for case in cases:
        before, after = (evaluate(case.materials, case.use, bundle=bundle, today=today) for bundle in (old, new))
        if VERDICTS.index(after.verdict) >= VERDICTS.index(before.verdict):
            continue
        names = sorted({*_documents(before), *_documents(after)})
        if not any(_noted(name, old, new) for name in names):
            found.append(Loosened(case.name, before.verdict, after.verdict, tuple(names)))
    return tuple(found)


def _documents(decision: Decision) -> Sequence[str]:
    return [name for teacher in decision.per_teacher.values() for name in teacher.terms]


def _noted(name: str, old: Bundle, new: Bundle) -> bool:
    """Whether the document says why it loosens, in words that the old bundle did not have yet."""
    now, then = new.get(name), old.get(name)
    return now is not None and now.loosens is not None and (then is None or then.loosens != now.loosens)
