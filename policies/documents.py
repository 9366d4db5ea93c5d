"""The register: one TOML file per version of a terms document, read into checked models, bundled under a digest.

Documents are data, so that adding one needs no code; the trade-off is a small fixed vocabulary of conditions
(Condition) and duties (Duty) instead of free rules.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from policies.decision import Trigger, Verdict, canonical, digest_of
from policies.errors import RegisterError
from policies.identity import Signal
from policies.settings import explain
from policies.use import Action, Business, Country, StudentKind

Confidence = Literal["stored-copy", "secondary", "memory"]
CONFIDENCES: tuple[Confidence, ...] = ("stored-copy", "secondary", "memory")
"""From read in a stored copy down to remembered; merging takes the weakest."""
Reach = Literal["none", "access", "teacher_weights", "outputs", "student"]
REACHES: tuple[Reach, ...] = ("none", "access", "teacher_weights", "outputs", "student")
"""How far a termination reaches, in order; merging takes the furthest."""

Kind = Literal["model_licence", "api_terms", "host_terms", "consumer_terms"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _as_list(value: object) -> object:
    """One table may stand for a list of one, which reads better in a document."""
    return [value] if isinstance(value, Mapping) else value


class Condition(_Entry):
    """Facts that must all hold; what is not named is not asked. A list of conditions holds when one of them does."""

    commercial: bool | None = None
    student_kind: tuple[StudentKind, ...] | None = None
    student_in_family: bool | None = None
    student_distributed: bool | None = None
    student_under_this_licence: bool | None = None
    intent_similar: bool | None = None
    derivative: bool | None = None
    signal: tuple[Signal, ...] | None = None
    business: tuple[Business, ...] | None = None
    revenue_over_usd: float | None = None
    users_over: int | None = None
    users_on: date | None = None
    domicile: tuple[Country, ...] | None = None
    territory: tuple[Country, ...] | None = None
    teacher: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Condition:
        if not self.model_dump(exclude_none=True, exclude={"users_on"}):
            raise ValueError("asks nothing; leave the condition out to have it always hold")
        return self


AnyOf = Annotated[tuple[Condition, ...], BeforeValidator(_as_list)]


class Rule(_Entry):
    """What the text says of some actions: a permission (allow), a condition, a doubt (review) or a ban (deny)."""

    code: str = Field(pattern=r"^[A-Z_]+$")
    verdict: Verdict
    actions: tuple[Action, ...] = Field(min_length=1)
    when: AnyOf = ()
    unless: AnyOf = ()
    section: str | None = None
    gist: str = Field(min_length=1)
    fix: tuple[str, ...] = ()


class Duty(_Entry):
    """Something owed. `type` and `trigger` are the register's vocabulary; the rest are its parameters."""

    type: str = Field(pattern=r"^[a-z_]+$")
    trigger: Trigger
    section: str | None = None
    text: str | None = None
    value: str | float | None = None
    measured_on: date | None = None
    users_over: int | None = None
    monthly_revenue_over_usd: float | None = None
    annual_revenue_over_usd: float | None = None
    business: tuple[Business, ...] | None = None
    territory: tuple[Country, ...] | None = None
    mark: str | None = None
    policy: str | None = None
    applies: str | None = None
    exempt: tuple[Action, ...] = ()
    modality: Literal["text", "image"] = "text"
    teacher: tuple[str, ...] | None = None
    when: AnyOf = ()


class ModelEntry(_Entry):
    """Which teachers a document binds: globs over the whole `org/name` id, and over the revision where it decides.

    `before` and `since` are dates of the weights' revision, for licences that were replaced in place. `confidence`
    is that of the statement that these models are under this document.
    """

    match: tuple[str, ...] = Field(min_length=1)
    without: tuple[str, ...] = ()
    revision: tuple[str, ...] = ()
    before: date | None = None
    since: date | None = None
    confidence: Confidence = "stored-copy"

    @property
    def needs_revision(self) -> bool:
        return bool(self.revision or self.before or self.since)


class Incorporated(_Entry):
    """Another document that this one makes binding, for some models or for all."""

    document: str
    models: tuple[str, ...] = ("*",)
    section: str | None = None


class Outputs(_Entry):
    """What the text says on training other models with outputs, as read."""

    training: Literal["allow", "allow-with-conditions", "silent", "unclear", "deny"]
    scope: str
    gist: str
    sections: str


class StudentReading(_Entry):
    """Whether the student becomes a derivative of the teacher, and under which facts."""

    is_derivative: Literal["yes", "no", "silent", "unclear", "n/a"]
    gist: str | None = None
    section: str | None = None
    when: AnyOf = ()


class Family(_Entry):
    """Which initial weights count as the same family; `unclear` are those of which the text does not say."""

    name: str
    members: tuple[str, ...] = Field(min_length=1)
    unclear: tuple[str, ...] = ()


class Source(_Entry):
    """Where the reading comes from and how sure it is."""

    url: str
    read_in: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    confidence: Confidence
    verified_at: date
    reader: str
    newer_version_unread: str | None = None


class Document(_Entry):
    """One version of one terms document, as it was read."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    version: str = Field(pattern=r"^(\d{4}(-\d{2}(-\d{2})?)?|undated)$")
    title: str
    kind: Kind
    provider: str
    licence: str
    hub_tag: str | None = None
    effective_from: date | None = None
    effective_to: date | None = None
    access_paths: tuple[str, ...] = Field(min_length=1)
    follows_outputs: bool = False
    reach: Reach
    notes: str | None = None
    outputs: Outputs
    student: StudentReading
    family: Family | None = None
    models: tuple[ModelEntry, ...] = ()
    incorporates: tuple[Incorporated, ...] = ()
    rules: tuple[Rule, ...] = Field(min_length=1)
    obligations: tuple[Duty, ...] = ()
    source: Source
    owner: str
    next_review: date
    loosens: str | None = None

    @property
    def name(self) -> str:
        """`id@version`, as rows and reasons name it."""
        return f"{self.id}@{self.version}"

    @property
    def digest(self) -> str:
        """sha256 of what the document says; who owns it and when it is looked at again do not change it."""
        admin: Any = {"owner", "next_review", "loosens"}
        return digest_of(self.model_dump(mode="json", exclude=admin, exclude_defaults=True))

    @property
    def fixed_at_download(self) -> bool:
        """A licence that came with weights keeps its text for them; terms of a service move on."""
        return self.kind == "model_licence"

    @property
    def uncertain(self) -> str | None:
        """Why the reading can give at best review, None when it was read whole in a stored copy."""
        if self.source.confidence != "stored-copy":
            return f"not read in a stored copy ({self.source.confidence}: {self.source.read_in})"
        return None

    @model_validator(mode="after")
    def _hangs_together(self) -> Document:
        if self.kind == "model_licence" and not self.models:
            raise ValueError("a model licence must say which models it binds ([[models]])")
        if self.effective_from and self.effective_to and self.effective_from > self.effective_to:
            raise ValueError("effective_from lies after effective_to")
        asks_family = any(c.student_in_family is not None for r in self.rules for c in (*r.when, *r.unless))
        if asks_family and self.family is None:
            raise ValueError("a rule asks for student_in_family, so the document needs a [family]")
        return self


class Bundle:
    """The versioned set of terms documents that decisions are made under; the order of the files does not matter."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents: tuple[Document, ...] = tuple(sorted(documents, key=lambda d: (d.id, d.version)))
        self._by_name = {document.name: document for document in self.documents}
        if len(self._by_name) != len(self.documents):
            raise RegisterError("two documents of the bundle bear the same id and version")
        for document in self.documents:
            for inner in document.incorporates:
                if not self.versions(inner.document):
                    raise RegisterError(f"{document.name} incorporates {inner.document}, which the bundle lacks")
        self.digest = digest_of(self._content())

    @property
    def id(self) -> str:
        """The newest verification date and the first 12 hex digits of the digest."""
        newest = max((d.source.verified_at for d in self.documents), default=date.min)
        return f"{newest.isoformat()}.{self.digest[:12]}"

    def _content(self) -> list[dict[str, Any]]:
        return [d.model_dump(mode="json", exclude_defaults=True) for d in self.documents]

    def to_json(self) -> bytes:
        """All documents in the form that the digest is taken over, so that the sha256 of these bytes is the digest."""
        return canonical(self._content())

    @classmethod
    def from_json(cls, data: bytes) -> Bundle:
        """Read `to_json` back; raises RegisterError when it is not one, or was written in another vocabulary."""
        try:
            return cls(Document.model_validate(document) for document in json.loads(data))
        except (ValueError, TypeError) as error:
            raise RegisterError(f"the stored bundle cannot be read ({type(error).__name__})") from error

    def get(self, name: str) -> Document | None:
        """The document called `id@version`, None when the bundle does not know it."""
        return self._by_name.get(name)

    def versions(self, document_id: str) -> tuple[Document, ...]:
        """All versions of a document, oldest first."""
        found = [d for d in self.documents if d.id == document_id]
        return tuple(sorted(found, key=lambda d: d.effective_from or date.min))

    def in_force(self, document_id: str, on: date) -> Document | None:
        """The version in force on a day: the newest that had begun, else the oldest known."""
        versions = self.versions(document_id)
        begun = [d for d in versions if d.effective_from is None or d.effective_from <= on]
        return (begun or list(versions[:1]) or [None])[-1]  # type: ignore[list-item]


def read_document(text: str, name: str) -> Document:
    """Read one document file; raises RegisterError with every error and its path in the file."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RegisterError(f"{name}: is not valid TOML: {error}") from None
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        lines = explain(error, Document, data)
        raise RegisterError("\n".join(f"{name}: {line}" for line in lines)) from None
    if name != f"{document.name}.toml":
        raise RegisterError(f"{name}: holds {document.name}, so the file should be called {document.name}.toml")
    return document


def read_bundle(folder: Path | Traversable) -> Bundle:
    """Read every .toml file of a folder as a bundle; raises RegisterError when one cannot be read or none is there."""
    try:
        files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
        texts = {file.name: file.read_text("utf-8") for file in files}
    except UnicodeDecodeError:
        raise RegisterError(f"{folder}: holds a document that is not UTF-8 text") from None
    except OSError as error:
        raise RegisterError(f"{error.filename}: the terms documents cannot be read ({error.strerror})") from None
    if not texts:
        raise RegisterError(f"{folder}: holds no terms documents (*.toml)")
    return Bundle(read_document(text, name) for name, text in texts.items())


def register_folder() -> Traversable:
    """Where the register that ships with this version lies."""
    return resources.files("policies.register")


def load_bundle() -> Bundle:
    """The register that ships with this version, as it is on disk now: a changed file is seen at the next call."""
    folder = register_folder()
    return _read_once(str(folder), _stamp(folder))


@lru_cache(maxsize=1)
def _read_once(folder: str, stamp: object) -> Bundle:
    return read_bundle(register_folder())


def _stamp(folder: Traversable) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of each file; nothing for a register inside an archive, which does not change."""
    if not isinstance(folder, Path):
        return ()
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(".toml")]
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in found))
