"""Prompts, one at a time: from JSONL, Parquet, a SQL query, or another soft-label table.

The whole source is read and checked before anything is asked, so that a broken line at the end does not surface after a
week; the price is a second reading. Nothing is held: ten million prompts stream through.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from collectors.bookmark import Mark
from collectors.config import PARQUET, PromptSettings
from collectors.errors import PromptError
from storage.rows import Message

_SHOWN_ERRORS = 3


class _Turn(msgspec.Struct):
    role: str
    content: str


class _Line(msgspec.Struct):
    """The fields of a line that have a meaning of their own; others fill templates."""

    id: str | int | None = None
    prompt: str | None = None
    messages: list[_Turn] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    completion: str | None = None
    reference: str | None = None
    domain: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt: exactly one of `prompt`, `messages` and `prompt_token_ids` is given. `source` is file:line.

    `after` is the place behind its line, in a file of lines.
    """

    id: str
    source: str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    completion: str | None = None
    reference: str | None = None
    domain: str | None = None
    licence: str | None = None
    after: Mark | None = None

    @property
    def shape(self) -> str:
        """Which of the three it gives, and whether a completion follows."""
        given = next(name for name in ("prompt", "messages", "prompt_token_ids") if getattr(self, name) is not None)
        return given if self.completion is None else f"{given} with a completion"


_LINE = msgspec.json.Decoder(_Line)
_FIELDS = msgspec.json.Decoder(dict[str, Any])


def read_prompts(settings: PromptSettings, start: Mark | None = None) -> Iterator[Prompt]:
    """All prompts in the order of their source, from `start` on. Raises PromptError at the first that is broken."""
    for source, found, after in _records(settings, start):
        try:
            yield _prompt(source, found, settings, after)
        except _BrokenLine as error:
            raise PromptError(f"{source} is not a prompt: {error}.") from error


@dataclass(frozen=True, slots=True)
class PromptSummary:
    """What a first reading found: how many prompts, under which licences, and of which shapes.

    shapes: `prompt`, `messages` or `prompt_token_ids`, also `… with a completion`, and where the first such one stands.
    """

    prompts: int
    licences: tuple[str | None, ...]
    shapes: Mapping[str, str]


def check_prompts(settings: PromptSettings, start: Mark | None = None) -> PromptSummary:
    """Read all prompts from `start` on; raises PromptError that names the first broken lines with what is wrong."""
    count = 0
    licences: set[str | None] = set()
    shapes: dict[str, str] = {}
    broken: list[str] = []
    for source, found, _ in _records(settings, start):
        try:
            prompt = _prompt(source, found, settings)
            licences.add(prompt.licence)
            shapes.setdefault(prompt.shape, source)
            count += 1
        except _BrokenLine as error:
            broken.append(f"{source} ({error})")
    if broken:
        more = f" and {len(broken) - _SHOWN_ERRORS:,} more" if len(broken) > _SHOWN_ERRORS else ""
        noun = "line is" if len(broken) == 1 else "lines are"
        raise PromptError(
            f"{len(broken):,} {noun} not a prompt, so nothing was asked: {'; '.join(broken[:_SHOWN_ERRORS])}{more}. "
            "Mend or remove what is broken and start again."
        )
    if count == 0 and start is None:
        raise PromptError(f'{settings.path} holds no prompts: give one JSON object a line, such as {{"prompt": "…"}}.')
    return PromptSummary(count, tuple(sorted(licences, key=str)), shapes)


class _BrokenLine(Exception):
    """What is wrong with one line, without its place."""


def _records(settings: PromptSettings, start: Mark | None) -> Iterator[tuple[str, bytes | dict[str, Any], Mark | None]]:
    path = settings.path
    if not path.exists():
        raise PromptError(f"The prompt file {path} does not exist: set prompts.path.")
    if settings.sql is not None or path.is_dir():
        return _found(path, settings.sql)
    return _parquet(path) if path.suffix in PARQUET else _lines(path, start or Mark())


def _found(path: Path, sql: str | None) -> Iterator[tuple[str, dict[str, Any], None]]:
    from collectors.prompt_query import query_prompts

    for number, line in enumerate(query_prompts(path, sql), start=1):
        yield f"{path.name}#{number}", line, None


def _lines(path: Path, start: Mark) -> Iterator[tuple[str, bytes, Mark]]:
    offset, prompts = start.offset, start.prompts
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for number, line in enumerate(file, start=start.lines + 1):
                offset += len(line)
                text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
                if text:
                    prompts += 1
                    yield f"{path.name}:{number}", text, Mark(offset, number, prompts)
    except OSError as error:
        raise PromptError(f"The prompt file {path} cannot be read: {error.strerror}.") from error


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any], None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path.name}:{number}", record, None
    except (pa.ArrowException, OSError) as error:
        raise PromptError(f"{path} is not a readable Parquet file: {error}.") from error


def _prompt(source: str, found: bytes | dict[str, Any], settings: PromptSettings, after: Mark | None = None) -> Prompt:
    line, fields = _decode(found, settings.template is not None)
    text = line.prompt if settings.template is None else _fill(settings.template, fields)
    messages = None if line.messages is None else tuple(Message(role=m.role, content=m.content) for m in line.messages)
    if settings.template is None and sum(one is not None for one in (text, messages, line.prompt_token_ids)) != 1:
        raise _BrokenLine("it needs exactly one of prompt, messages and prompt_token_ids")
    if any(not 0 <= token_id < 2**31 for token_id in line.prompt_token_ids or ()):
        raise _BrokenLine("prompt_token_ids holds a number that is no token id")
    if messages is not None and not messages:
        raise _BrokenLine("messages is empty")
    if settings.template is not None:
        messages = None
    if text is not None and (settings.as_chat or settings.system is not None):
        messages, text = (Message(role="user", content=text),), None
    if settings.system is not None and messages is not None:
        messages = (Message(role="system", content=settings.system), *messages)
    return Prompt(
        id=source if line.id is None else str(line.id),
        source=source,
        prompt=text,
        messages=messages,
        prompt_token_ids=line.prompt_token_ids if text is None and messages is None else None,
        completion=line.completion,
        reference=line.reference,
        domain=line.domain,
        licence=line.licence or settings.licence,
        after=after,
    )


def _decode(found: bytes | dict[str, Any], all_fields: bool) -> tuple[_Line, dict[str, Any]]:
    """The fields with a meaning of their own, and, where a template wants them, all."""
    try:
        if isinstance(found, bytes):
            return _LINE.decode(found), _FIELDS.decode(found) if all_fields else {}
        return msgspec.convert(found, _Line), found
    except UnicodeDecodeError as error:
        raise _BrokenLine("it is not UTF-8 text") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _BrokenLine(str(error)) from error


def _fill(template: str, fields: dict[str, Any]) -> str:
    try:
        return template.format_map({name: "" if value is None else value for name, value in fields.items()})
    except KeyError as error:
        raise _BrokenLine(f"the template wants the field {error.args[0]!r}, which is missing") from error
