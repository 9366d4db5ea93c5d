"""The register as a person reads it: a list, and one document whole, with how sure each reading is."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING, Any

from policies.documents import Bundle, Document
from policies.duties import describe
from policies.errors import RegisterError
from policies.report import STYLES, printable

if TYPE_CHECKING:
    from rich.console import RenderableType


def find(bundle: Bundle, name: str) -> tuple[Document, ...]:
    """The document called `id@version`, or all versions of `id`; raises RegisterError with the nearest ids."""
    document = bundle.get(name)
    found = (document,) if document is not None else bundle.versions(name)
    if found:
        return found
    ids = sorted({d.id for d in bundle.documents})
    near = difflib.get_close_matches(name, [*ids, *(d.name for d in bundle.documents)], n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `potstill terms` lists what there is"
    raise RegisterError(f"{name!r} is not in the register{hint}")


def doubts(document: Document, today: date) -> tuple[str, ...]:
    """What a reader must know before relying on the reading: unverified, a newer version unread, past its review."""
    source = document.source
    found = []
    if source.confidence != "stored-copy":
        found.append(f"unverified: not read in a stored copy ({source.confidence})")
    if source.newer_version_unread:
        found.append(f"stale: {source.newer_version_unread}")
    if document.next_review < today:
        found.append(f"stale: to be reviewed by {document.next_review}")
    if document.effective_to is not None and document.effective_to < today:
        found.append(f"no longer in force since {document.effective_to}")
    return tuple(found)


def record(document: Document, today: date) -> dict[str, Any]:
    """The document for `terms --json`: its content, its name and digest, and the doubts."""
    return {
        "name": document.name,
        "digest": document.digest,
        "doubts": list(doubts(document, today)),
        **document.model_dump(mode="json", exclude_defaults=True),
    }


def render_list(bundle: Bundle, today: date) -> RenderableType:
    """One line a document version, what matters most first, so that it may be cut at the width of a terminal."""
    from rich.console import Group
    from rich.text import Text

    width = max(len(document.name) for document in bundle.documents)
    rows = [("document", "outputs", "read", "verified", "binds")]
    rows += [_row(document, today) for document in bundle.documents]
    lines = [
        Text(f"{name:<{width}}  {outputs:<10}  {read:<13}  {verified:<10}  {printable(binds)}")
        for name, outputs, read, verified, binds in rows
    ]
    lines[0].stylize("bold")
    return Group(*lines, Text(f"bundle {bundle.id}", style="dim"))


def _row(document: Document, today: date) -> tuple[str, str, str, str, str]:
    words = [doubt.partition(":")[0] for doubt in doubts(document, today)]
    ended = "superseded" if document.effective_to and document.effective_to < today else ""
    read = ended or (words[0] if words else document.source.confidence)
    outputs = document.outputs.training.replace("allow-with-", "")
    return document.name, outputs, read, document.source.verified_at.isoformat(), ", ".join(_binds(document))


def _binds(document: Document) -> list[str]:
    models = [pattern for entry in document.models for pattern in entry.match]
    if document.kind != "model_licence":
        return list(document.access_paths)
    return models[:3] + ([f"… {len(models) - 3} more"] if len(models) > 3 else [])


def render_document(document: Document, today: date) -> RenderableType:
    """One document whole; what does not fit a line goes on under its own beginning."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    lines = [(line.lstrip(), style, len(line) - len(line.lstrip())) for line, style in _lines(document, today)]
    texts = [(Text(line, style, overflow="fold"), (0, 0, 0, indent)) for line, style, indent in lines]
    return Group(*(Padding(text, room, expand=False) for text, room in texts))


def _lines(document: Document, today: date) -> Iterator[tuple[str, str]]:
    yield f"{document.title}  {document.name}", "bold"
    for doubt in doubts(document, today):
        yield f"  {doubt}", "yellow"
    since = f", in force from {document.effective_from}" if document.effective_from else ""
    yield f"  {document.kind.replace('_', ' ')} of {document.provider}, {document.licence}{since}", ""
    yield f"  outputs may train others: {document.outputs.training} ({document.outputs.scope.replace('_', ' ')})", ""
    yield f"  {document.outputs.gist}", ""
    derivative = f"  student is a derivative: {document.student.is_derivative}"
    yield derivative + (f" ({document.student.gist})" if document.student.gist else ""), ""
    yield f"  termination reaches: {document.reach.replace('_', ' ')}", ""
    yield from _binding(document)
    yield from _rules(document)
    if document.obligations:
        yield "Obligations", "bold"
    for duty in document.obligations:
        yield f"  {duty.trigger}: {describe(document, duty)}{_where(duty.section)}", ""
    yield from _source(document)


def _where(section: str | None) -> str:
    return f" [{section}]" if section else ""


def _binding(document: Document) -> Iterator[tuple[str, str]]:
    yield "Binds", "bold"
    yield f"  access paths: {', '.join(document.access_paths)}", ""
    for entry in document.models:
        which = [f"revision {', '.join(entry.revision)}"] if entry.revision else []
        which += [f"revisions before {entry.before}"] if entry.before else []
        which += [f"revisions since {entry.since}"] if entry.since else []
        which += [f"not {', '.join(entry.without)}"] if entry.without else []
        which += [f"by {entry.confidence} sources"] if entry.confidence != "stored-copy" else []
        yield f"  {', '.join(entry.match)}" + (f" ({'; '.join(which)})" if which else ""), ""
    for inner in document.incorporates:
        yield f"  and makes {inner.document} binding for {', '.join(inner.models)}", ""


def _rules(document: Document) -> Iterator[tuple[str, str]]:
    yield "Rules", "bold"
    for rule in document.rules:
        yield f"  {rule.verdict} {rule.code} {', '.join(rule.actions)}", STYLES[rule.verdict]
        yield f"    {rule.gist}{_where(rule.section)}", ""
        for word, conditions in (("when", rule.when), ("unless", rule.unless)):
            for condition in conditions:
                asked = condition.model_dump(mode="json", exclude_none=True)
                yield f"    {word} " + " and ".join(f"{name} = {value}" for name, value in asked.items()), "dim"


def _source(document: Document) -> Iterator[tuple[str, str]]:
    yield "Source", "bold"
    yield f"  {document.source.url}", ""
    yield f"  read in: {document.source.read_in}, by {document.source.reader}, {document.source.verified_at}", ""
    if document.source.sha256:
        yield f"  sha256 of the text: {document.source.sha256}", ""
    yield f"  next review {document.next_review}, owner {document.owner}", ""
    if document.notes:
        yield f"  {document.notes}", "dim"
    yield f"  digest {document.digest}", "dim"
