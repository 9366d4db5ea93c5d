"""How far into a prompt file everything is committed, so that a resumed run need not read a million old prompts again.

The place is kept with a digest of the file before it and of the teacher's tokenizer and template: when one of them
changed, the run reads from the beginning, and the keys alone decide. Only files of lines have such a place.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class TeacherTokens:
    """How the teacher turns text into tokens: hashes of its tokenizer file and of its chat template, None = unknown."""

    tokenizer_sha256: str | None = None
    template_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two lines: bytes, lines and prompts before it."""

    offset: int = 0
    lines: int = 0
    prompts: int = 0


class Bookmark:
    """The furthest place before which nothing is pending. The plan and the commits tell it, each in its thread."""

    def __init__(self, path: Path, tokens: TeacherTokens, start: Mark | None = None) -> None:
        self._path = path
        self._reached = start or Mark()
        self._pending: OrderedDict[str, Mark] = OrderedDict()
        self._turn = threading.Lock()
        self._hashed = 0
        self._hash = hashlib.sha256(f"{tokens.tokenizer_sha256}\n{tokens.template_sha256}\n".encode())

    def planned(self, key: str, before: Mark) -> None:
        """A request that is going to be asked, of the prompt after `before`."""
        with self._turn:
            self._pending[key] = before

    def reached(self, mark: Mark) -> None:
        """All prompts before this place are planned, or need no request."""
        with self._turn:
            self._reached = mark

    def committed(self, keys: Iterable[str]) -> None:
        """Rows or rejects of these keys are in the table."""
        with self._turn:
            for key in keys:
                self._pending.pop(key, None)

    @property
    def mark(self) -> Mark:
        """The place before which all is committed."""
        with self._turn:
            return next(iter(self._pending.values()), self._reached)

    def text(self) -> tuple[int, str]:
        """Prompts before the place, and the place with its digest as the run's record keeps it."""
        mark = self.mark
        with self._path.open("rb") as file:
            file.seek(self._hashed)
            while self._hashed < mark.offset and (block := file.read(min(_BLOCK, mark.offset - self._hashed))):
                self._hash.update(block)
                self._hashed += len(block)
        return mark.prompts, f"{mark.offset}:{mark.lines}:{mark.prompts}:{self._hash.hexdigest()}"


def found_again(path: Path, tokens: TeacherTokens, text: str | None) -> Mark | None:
    """The place that `text` names, when the file before it and the teacher's tokens are still the same."""
    if text is None or not path.is_file():
        return None
    mark = Mark(*(int(number) for number in text.split(":")[:3]))
    if not 0 < mark.offset <= path.stat().st_size:
        return None
    return mark if Bookmark(path, tokens, mark).text()[1] == text else None
