"""How a person reads a decision: the verdict, why teacher by teacher, the ways out, and what is owed when.

Everything is plain rich Text, so a model's name can neither style the terminal nor break out of its width.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from policies.decision import VERDICTS, Decision, Obligation, Reason, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from policies.reaudit import Change

STYLES: dict[Verdict, str] = {"allow": "green", "conditional": "cyan", "review": "yellow", "deny": "red"}
WORDS: dict[Verdict, str] = {
    "allow": "ALLOWED",
    "conditional": "ALLOWED UNDER CONDITIONS",
    "review": "NEEDS REVIEW",
    "deny": "REFUSED",
}
_WHEN = {
    "on_collect": "when collecting",
    "on_train": "when training",
    "on_publish_dataset": "when the data set is published",
    "on_distribute_student": "when the student is distributed or hosted",
    "on_commercial_use": "when used commercially",
    "always": "always",
}
"""The triggers that concern a student's maker; passing the teacher's own weights on is left to the record."""


def render(decision: Decision) -> RenderableType:
    """A rich renderable of a decision, for any width; the record itself is `Decision.to_json`."""
    from rich.console import Group

    return Group(*_parts(decision))


def render_changes(changes: Sequence[Change], since: Decision | None) -> RenderableType:
    """What changed since an earlier decision, each verdict with its one cause."""
    from rich.console import Group

    when = f"decision {since.digest[:16]} of {since.decided_at:%Y-%m-%d}" if since else "the register that ships"
    lines = [_line(0, (f"Changed since {when}" if changes else f"No verdict changed since {when}", "bold"))]
    for change in changes:
        before, after = (WORDS[v].lower() if v else "no rows" for v in (change.before, change.after))
        who = change.teacher or "all together"
        lines.append(_line(2, (who, "bold"), (f"  {before} → {after}  ", ""), (change.cause, "cyan")))
        if change.because:
            lines.append(_line(4, (change.because, "")))
    return Group(*lines, _line(0))


def _parts(decision: Decision) -> Iterator[RenderableType]:
    yield from _headline(decision)
    for teacher in [*decision.per_teacher, None]:
        yield from _teacher(decision, teacher)
    yield from _ways_out(decision)
    yield from _obligations(decision)
    yield _line(0, (f"bundle {decision.bundle} · decision {decision.digest[:16]}", "dim"))


def _headline(decision: Decision) -> Iterator[RenderableType]:
    verdict = decision.verdict
    student = decision.facts["use"].get("student", {})
    what = decision.action + (f" {student['name']}" if student.get("name") else "")
    licence = f" under {student['licence']}" if student.get("licence") else ""
    yield _line(0, (WORDS[verdict], f"bold {STYLES[verdict]}"), (f"  {what}{licence}", "bold"))
    yield _line(0, ("A policy verdict on the terms as they were read, not legal advice.", "dim"))
    yield _line(0)


def _teacher(decision: Decision, teacher: str | None) -> Iterator[RenderableType]:
    reasons = _worth_saying(r for r in decision.reasons if r.teacher == teacher)
    if teacher is None and not reasons:
        return
    if teacher is None:
        yield _line(0, ("together", "bold"))
    else:
        found = decision.per_teacher[teacher]
        rows = f"  {found.rows:,} rows, {found.tokens:,} tokens" if found.rows else ""
        style = STYLES[found.verdict]
        yield _line(0, (teacher, "bold"), ("  " + WORDS[found.verdict].lower(), style), (rows, "dim"))
    for reason in reasons:
        yield from _reason(reason)
    yield _line(0)


def _worth_saying(reasons: Iterable[Reason]) -> list[Reason]:
    """Where something stands in the way, what merely permits is left to the record."""
    found = list(reasons)
    stops = any(r.verdict in ("review", "deny") for r in found)
    return [r for r in found if not (stops and r.code in ("SILENT_PERMISSIVE", "EXPRESS_PERMIT"))]


def _reason(reason: Reason) -> Iterator[RenderableType]:
    where = reason.document or ""
    if reason.section:
        where += f", {reason.section}"
    yield _line(2, (reason.code, STYLES[reason.verdict]), (f"  {where}" if where else "", "dim"))
    yield _line(4, (reason.gist, ""))


def _ways_out(decision: Decision) -> Iterator[RenderableType]:
    """Each way out once: those of what refuses before those of what wants review."""
    stopping = [r for r in decision.reasons if r.verdict in ("review", "deny")]
    ways = list(dict.fromkeys(way for r in sorted(stopping, key=_strictest) for way in r.fix))
    drop = decision.drop
    if drop is not None:
        share = "" if drop.share_of_rows is None else f" ({drop.share_of_rows:.0%} of the rows)"
        ways.append(f"leave out {', '.join(drop.teachers)}{share}: the rest is {WORDS[drop.verdict].lower()}")
    if ways:
        yield _line(0, ("Ways out", "bold"))
        for way in ways:
            yield _item("•", (way, ""))
        yield _line(0)
    if decision.missing_facts:
        yield _line(0, ("Facts that would settle it: ", "bold"), (", ".join(decision.missing_facts), ""))
        yield _line(0)


def _strictest(reason: Reason) -> int:
    return -VERDICTS.index(reason.verdict)


def _obligations(decision: Decision) -> Iterator[RenderableType]:
    due = [o for o in decision.obligations if o.due and o.trigger != "always"]
    for title, group in (("Owed for this use", due), *_later(decision)):
        if not group:
            continue
        yield _line(0, (title, "bold"))
        for obligation in group:
            where = f"  {obligation.document}" + (f", {obligation.section}" if obligation.section else "")
            yield _item("✓" if obligation.discharged else "•", (obligation.text, ""), (where, "dim"))
        yield _line(0)


def _later(decision: Decision) -> Iterator[tuple[str, list[Obligation]]]:
    for trigger, when in _WHEN.items():
        group = [o for o in decision.obligations if o.trigger == trigger and (not o.due or trigger == "always")]
        yield f"Owed {when}", group


def _line(indent: int, *parts: tuple[str, str]) -> RenderableType:
    from rich.padding import Padding

    return Padding(_text(*parts), (0, 0, 0, indent))


def _item(mark: str, *parts: tuple[str, str]) -> RenderableType:
    """One line of a list, whose later lines hang under its text."""
    from rich.padding import Padding
    from rich.table import Table

    row = Table.grid(padding=(0, 1))
    row.add_row(mark, _text(*parts))
    return Padding(row, (0, 0, 0, 2))


def _text(*parts: tuple[str, str]) -> Text:
    from rich.text import Text

    text = Text(overflow="fold")
    for words, style in parts:
        text.append(printable(words), style)
    return text


def printable(text: str) -> str:
    """Text without control and formatting characters, which a name from a file could smuggle into a terminal."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
