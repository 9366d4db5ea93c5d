"""From a teacher to the documents that bind it: path ∧ model ∧ layers ∧ whatever these incorporate.

A vendor name or a hub tag alone never resolves anything; what cannot be resolved becomes a problem with a code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime

from policies.documents import CONFIDENCES, Bundle, Confidence, Document, ModelEntry
from policies.facts import matches
from policies.identity import Teacher

SERVED_BY: dict[str, str] = {
    "ai21": "ai21-api",
    "amazon bedrock": "aws-bedrock",
    "anthropic": "anthropic-api",
    "azure": "azure-openai",
    "bedrock": "aws-bedrock",
    "cohere": "cohere-api",
    "deepseek": "deepseek-platform",
    "fireworks": "fireworks",
    "google": "google-cloud-vertex",
    "google ai studio": "gemini-api",
    "google vertex": "google-cloud-vertex",
    "groq": "groq",
    "liquid": "liquid-api",
    "meta": "meta-model-api",
    "mistral": "mistral-api",
    "openai": "openai-api",
    "stability": "stability-api",
    "together": "together",
    "xai": "xai-api",
}
"""Names that an aggregator reports for the provider that served, as access paths; a path's own name also counts."""
AGGREGATOR = "openrouter"
"""The access path that passes requests on to others, whose terms then govern."""


@dataclass(frozen=True)
class Bound:
    """One document that binds, and how sure it is that it binds this teacher."""

    document: Document
    confidence: Confidence = "stored-copy"


@dataclass(frozen=True)
class Problem:
    """Why the terms of a teacher cannot be told: a reason code, what is the matter, and the fact that is missing."""

    code: str
    gist: str
    missing: str | None = None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Binding:
    """The documents that bind a teacher on a day, and what could not be resolved."""

    bound: tuple[Bound, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Sorted `id@version` of the documents."""
        return tuple(sorted({bound.document.name for bound in self.bound}))

    def __add__(self, other: Binding) -> Binding:
        return Binding(_once(self.bound + other.bound), tuple(dict.fromkeys(self.problems + other.problems)))


def binding_terms(teacher: Teacher, bundle: Bundle, on: date | None = None) -> tuple[str, ...]:
    """Sorted ids (`gemma-tou@2025-03-24`) of the documents that bind a teacher on a day; () when they are unknown."""
    return bind(teacher, bundle, on).names


def bind(teacher: Teacher, bundle: Bundle, on: date | None = None) -> Binding:
    """Resolve a teacher against a bundle, with the service terms in force on `on` (default: today, UTC)."""
    day = on or datetime.now(UTC).date()
    if teacher.access_path == "self_host":
        result = _by_layers(teacher, bundle)
    else:
        result = _by_path(teacher, teacher.access_path, bundle, day)
    if result.bound or result.problems:
        return _with_incorporated(result, teacher, bundle, day)
    return Binding((), (_unknown(teacher),))


def _unknown(teacher: Teacher) -> Problem:
    path = "" if teacher.access_path == "self_host" else f" on {teacher.access_path}"
    return Problem("UNKNOWN_TERMS", f"no document of the register is known to bind {teacher.model}{path}")


def _by_layers(teacher: Teacher, bundle: Bundle) -> Binding:
    """Weights: the model's own licence, and those of the models that it was made from."""
    own = licences(teacher.model, teacher.revision, bundle)
    if not teacher.layers:
        return own
    layers = Binding()
    for layer in teacher.layers:
        found = licences(layer, None, bundle)
        if not (found.bound or found.problems):
            found = Binding((), (Problem("UNKNOWN_TERMS", f"no document is known to bind {layer}, a layer of it"),))
        layers += found
    if not (own.bound or own.problems):
        gist = f"the layers of {teacher.model} are known, terms of its own are not"
        own = Binding((), (Problem("IDENTITY_INCOMPLETE", gist),))
    return own + layers


def licences(model: str, revision: str | None, bundle: Bundle) -> Binding:
    """The model licences that name a model; IDENTITY_INCOMPLETE where only the revision tells them apart."""
    bound: list[Bound] = []
    undecided: list[str] = []
    for document in bundle.documents:
        if document.kind != "model_licence":
            continue
        fits = [_fit(entry, model, revision) for entry in document.models]
        sure = [entry.confidence for entry, fit in zip(document.models, fits, strict=True) if fit]
        if sure:
            bound.append(Bound(document, min(sure, key=CONFIDENCES.index)))
        elif None in fits:
            undecided.append(document.name)
    if any(_by_revision(entry, model, revision) for b in bound for entry in b.document.models):
        undecided = []  # a revision that a document names outright leaves no doubt about the others
    several = {b.document.id for b in bound if sum(o.document.id == b.document.id for o in bound) > 1}
    undecided += [b.document.name for b in bound if b.document.id in several]
    if not undecided:
        return Binding(tuple(bound))
    gist = f"{' or '.join(sorted(undecided))} binds {model}, by its revision"
    problem = Problem("IDENTITY_INCOMPLETE", gist, "teacher.revision", tuple(sorted(undecided)))
    return Binding(tuple(bound), (problem,))


def _fit(entry: ModelEntry, model: str, revision: str | None) -> bool | None:
    """Whether an entry names the model at the revision; None when the revision decides and does not say."""
    if not matches(model, entry.match) or matches(model, entry.without):
        return False
    if not entry.needs_revision:
        return True
    if revision is None:
        return None
    if entry.revision and matches(revision, entry.revision):
        return True
    span = _days(revision)
    if span is None:
        return None if entry.before or entry.since else False
    first, last = span
    if (entry.before and last < entry.before) or (entry.since and first >= entry.since):
        return True
    outside = (entry.before and first >= entry.before) or (entry.since and last < entry.since) or entry.revision
    return False if outside else None


def _by_revision(entry: ModelEntry, model: str, revision: str | None) -> bool:
    return revision is not None and matches(revision, entry.revision) and bool(_fit(entry, model, revision))


def _days(revision: str) -> tuple[date, date] | None:
    """The first and last day that a revision such as 2024, 2024-12 or 2024-12-26 can mean; None for other text."""
    match = re.fullmatch(r"(20\d{2})(?:-(\d{2})(?:-(\d{2}))?)?", revision)
    if match is None:
        return None
    year, month, day = (int(part) if part else None for part in match.groups())
    try:
        assert year is not None
        if day is not None and month is not None:
            return (date(year, month, day),) * 2
        if month is not None:
            after = date(year + month // 12, month % 12 + 1, 1)
            return date(year, month, 1), date.fromordinal(after.toordinal() - 1)
        return date(year, 1, 1), date(year, 12, 31)
    except ValueError:
        return None


def _by_path(teacher: Teacher, path: str, bundle: Bundle, day: date) -> Binding:
    """A service: its terms in force that day, and the model's own licence where the model is not the service's."""
    ids = sorted({d.id for d in bundle.documents if path in d.access_paths and d.kind != "model_licence"})
    if not ids:
        return Binding((), (Problem("UNKNOWN_TERMS", f"the register knows no access path {path!r}"),))
    terms = [d for d in (bundle.in_force(id_, day) for id_ in ids) if d is not None]
    service = Binding(tuple(Bound(d) for d in terms))
    if any(d.kind == "consumer_terms" for d in terms):
        gist = f"{path} is a consumer product, which is never collected from"
        return service + Binding((), (Problem("CONSUMER_ENDPOINT", gist),))
    if path == AGGREGATOR:
        return service + _served(teacher, bundle, day)
    licence = licences(teacher.model, teacher.revision, bundle)
    if any(_fit(entry, teacher.model, None) for d in terms for entry in d.models):
        following = tuple(b for b in licence.bound if b.document.follows_outputs)
        follows = [n for p in licence.problems for n in p.candidates if _follows(bundle, n)]
        return service + Binding(following, licence.problems if follows else ())
    if licence.bound or licence.problems:
        return service + licence
    return service + Binding((), (_unknown(teacher),))


def _follows(bundle: Bundle, name: str) -> bool:
    document = bundle.get(name)
    return document is not None and document.follows_outputs


def _served(teacher: Teacher, bundle: Bundle, day: date) -> Binding:
    """An aggregator: the terms of the provider that served the request; without it nothing can be cleared."""
    if teacher.served_by is None:
        licence = licences(teacher.model, teacher.revision, bundle)
        if not (licence.bound or licence.problems or _some_service_offers(teacher.model, bundle)):
            return Binding((), (_unknown(teacher),))
        gist = "the provider that served the request governs, and it is not recorded"
        return licence + Binding((), (Problem("SERVED_PROVIDER_MISSING", gist, "teacher.served_by"),))
    name = re.sub(r"[\s_-]+", " ", teacher.served_by).casefold().strip()
    path = SERVED_BY.get(name, name.replace(" ", "-"))
    if path in (AGGREGATOR, "self-host"):
        return Binding((), (Problem("UNKNOWN_TERMS", f"{teacher.served_by} is no provider that can have served"),))
    vendor, _, short = teacher.model.partition("/")
    inner = _by_path(teacher, path, bundle, day)
    unknown = any(p.code == "UNKNOWN_TERMS" for p in inner.problems)
    if unknown and short and SERVED_BY.get(vendor.casefold()) == path:
        return _by_path(teacher.model_copy(update={"model": short}), path, bundle, day)
    return inner


def _some_service_offers(model: str, bundle: Bundle) -> bool:
    """Whether a service's terms name the model, with or without the vendor that an aggregator puts before it."""
    entries = [entry for document in bundle.documents if document.kind == "api_terms" for entry in document.models]
    return any(_fit(entry, name, None) for entry in entries for name in (model, model.partition("/")[2]))


def _with_incorporated(result: Binding, teacher: Teacher, bundle: Bundle, day: date) -> Binding:
    """Follow what the documents incorporate until nothing new appears."""
    bound = list(result.bound)
    for item in bound:  # grows while it is walked
        for inner in item.document.incorporates:
            if not matches(teacher.model, inner.models) and not any(matches(m, inner.models) for m in teacher.layers):
                continue
            document = bundle.in_force(inner.document, day)
            if document is not None and all(b.document.name != document.name for b in bound):
                bound.append(Bound(document, item.confidence))
    return Binding(_once(bound), result.problems)


def _once(bound: Iterable[Bound]) -> tuple[Bound, ...]:
    """Each document once, with the surest statement that it binds."""
    best: dict[str, Bound] = {}
    for item in bound:
        held = best.get(item.document.name)
        if held is None or CONFIDENCES.index(item.confidence) < CONFIDENCES.index(held.confidence):
            best[item.document.name] = item
    return tuple(best[name] for name in sorted(best))
