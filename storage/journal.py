"""The journal of one active run: raw responses, durable before anyone parses them, let go once their rows are.

One SQLite file (WAL, synchronous=FULL), held by a lock that dies with the process. A response is open until it is
assigned to a batch; what a batch holds never changes after that, so that its commit can be repeated word for word.

    record → durable │ assign → batch fixed │ table.append(writer=run_id, sequence) → committed │ release → gone
"""

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import zstandard

from storage.data_files import make_folder, sync_folder
from storage.errors import InvalidRecord, mapped
from storage.locks import RunLock, held_by
from storage.rows import Usage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    key TEXT PRIMARY KEY,
    prompt_id TEXT NOT NULL,
    sample_index INTEGER NOT NULL,
    item BLOB NOT NULL,
    status INTEGER NOT NULL,
    headers TEXT NOT NULL,
    body BLOB NOT NULL,
    received_at TEXT NOT NULL,
    usage TEXT,
    batch INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS by_batch ON responses (batch);
"""
_COLUMNS = "key, prompt_id, sample_index, item, status, headers, body, received_at, usage"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
_LEVEL = 1
"""A response of 120 KB of JSON takes 0.3 ms at this level of zstd and a tenth of its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawResponse:
    """What a teacher sent for one request, and `item`: the JSON that is needed to build the row from it."""

    key: str
    prompt_id: str
    sample_index: int
    item: bytes
    status: int
    body: bytes
    received_at: datetime
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: Usage | None = None


class PackedResponse(NamedTuple):
    """A response as it lies on disk: `body` packed by zstd, `headers` and `usage` as JSON."""

    key: str
    prompt_id: str
    sample_index: int
    item: bytes
    status: int
    headers: str
    body: bytes
    received_at: datetime
    usage: str | None


@dataclass(frozen=True, slots=True)
class Pending:
    """A journal as an onlooker sees it; `held_by` says who runs it now, None when nobody does."""

    run_id: str
    responses: int
    held_by: str | None


def pending(folder: Path) -> list[Pending]:
    """What the journals of a folder hold that is not in the table yet, by run, without disturbing who writes them."""
    return [
        Pending(path.stem, len(journal_keys(path)), held_by(path.with_suffix(".lock")))
        for path in sorted(folder.glob("*.sqlite"))
    ]


def journal_keys(path: Path) -> set[str]:
    """Keys of the responses in a journal, read beside whoever writes it."""
    with mapped(path), closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return {key for (key,) in database.execute("SELECT key FROM responses")}


class Journal:
    """Raw responses of one run. All methods may be called from any thread; each is one durable transaction."""

    def __init__(self, folder: Path, run_id: str) -> None:
        """Use Journal.open."""
        self.path = folder / f"{run_id}.sqlite"
        self._lock = RunLock(folder / f"{run_id}.lock", run_id)
        self._turn = threading.Lock()
        try:
            new = not self.path.exists()
            self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)
            if new:
                sync_folder(folder)
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def open(cls, folder: Path, run_id: str) -> "Journal":
        """Open or make the journal of a run in `folder`, and hold it.

        Raises RunHeld when another process has it, NotWritable, DiskFull, TableDamaged.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise InvalidRecord(f"{run_id!r} is no run id: use letters, digits, '.', '_' and '-', at most 151.")
        with mapped(folder):
            make_folder(folder)
            return cls(folder, run_id)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def record(self, responses: Sequence[RawResponse]) -> None:
        """Keep responses, all or none, synced to disk on return. Of two answers to one key the first is kept."""
        packed = _compressed([response.body for response in responses])
        lines = [_line(response, body) for response, body in zip(responses, packed, strict=True)]
        self._change(
            lambda database: database.executemany(
                f"INSERT OR IGNORE INTO responses ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", lines
            )
        )

    def assign(self, keys: Iterable[str], sequence: int) -> int:
        """Fix the batch `sequence` as those of these keys that are still open; → how many they are."""
        lines = [(sequence, key) for key in keys]

        def change(database: sqlite3.Connection) -> None:
            taken = database.execute("SELECT 1 FROM responses WHERE batch = ? LIMIT 1", (sequence,)).fetchone()
            if taken:
                raise InvalidRecord(
                    f"Batch {sequence} of {self.path.stem} is fixed already: give the next one a new number."
                )
            database.executemany("UPDATE responses SET batch = ? WHERE key = ? AND batch IS NULL", lines)

        self._change(change)
        return self._count("SELECT count(*) FROM responses WHERE batch = ?", sequence)

    def release(self, sequence: int) -> None:
        """Let a batch go whose rows and rejects are committed."""
        self._change(lambda database: database.execute("DELETE FROM responses WHERE batch = ?", (sequence,)))

    def discard(self, keys: Iterable[str] | None = None) -> int:
        """Remove responses whose rows may not be kept, all or those of `keys`; → how many."""
        before = len(self)
        if keys is None:
            self._change(lambda database: database.execute("DELETE FROM responses"))
        else:
            lines = [(key,) for key in keys]
            self._change(lambda database: database.executemany("DELETE FROM responses WHERE key = ?", lines))
        with mapped(self.path), self._turn:
            self._database.execute("VACUUM")  # a deleted line's bytes would stay in the file
        return before - len(self)

    def open_responses(self) -> Iterator[RawResponse]:
        """Responses of no batch yet, in the order in which they came."""
        return self._read("batch IS NULL")

    def batch(self, sequence: int) -> Iterator[RawResponse]:
        """The responses of one batch, in the order in which they came."""
        return self._read("batch = ?", sequence)

    def packed(self, sequence: int) -> Iterator[PackedResponse]:
        """The responses of one batch as they are, in the order in which they came."""
        for line in self._lines("batch = ?", sequence):
            yield _packed(line)

    def batches(self) -> list[int]:
        """Batches that are fixed and not released, in order."""
        return [n for (n,) in self._all("SELECT DISTINCT batch FROM responses WHERE batch IS NOT NULL ORDER BY 1")]

    def keys(self) -> set[str]:
        """Keys of all responses that are here."""
        return {key for (key,) in self._all("SELECT key FROM responses")}

    def __len__(self) -> int:
        return self._count("SELECT count(*) FROM responses")

    def close(self, remove_when_empty: bool = True) -> None:
        """Let the run go; the file is removed when nothing is in it any more."""
        with mapped(self.path):
            empty = len(self) == 0
            self._database.close()
            if empty and remove_when_empty:
                for ending in ("", "-wal", "-shm"):
                    self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
            self._lock.release()

    def _change(self, change: Callable[[sqlite3.Connection], Any]) -> None:
        with mapped(self.path), self._turn:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                change(self._database)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite rolls back by itself when the disk is full
                    self._database.execute("ROLLBACK")
                raise

    def _read(self, condition: str, *values: Any) -> Iterator[RawResponse]:
        return (unpacked(_packed(line)) for line in self._lines(condition, *values))

    def _lines(self, condition: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        numbers = [n for (n,) in self._all(f"SELECT rowid FROM responses WHERE {condition} ORDER BY rowid", *values)]
        for number in numbers:
            yield from self._all(f"SELECT {_COLUMNS} FROM responses WHERE rowid = ?", number)

    def _count(self, query: str, *values: Any) -> int:
        return int(self._all(query, *values)[0][0])

    def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with mapped(self.path), self._turn:
            return self._database.execute(query, values).fetchall()


def _compressed(bodies: Sequence[bytes]) -> list[bytes]:
    """All in one call where that is possible: after each call a busy interpreter keeps its caller waiting."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    if not bodies or not all(bodies):  # of nothing the library makes nothing
        return [compressor.compress(body) for body in bodies]
    packed = compressor.multi_compress_to_buffer(list(bodies))
    return [packed[place].tobytes() for place in range(len(packed))]


def _line(response: RawResponse, packed: bytes) -> tuple[Any, ...]:
    usage = response.usage
    numbers = None if usage is None else [usage.prompt_tokens, usage.completion_tokens, usage.cost_usd]
    return (
        response.key,
        response.prompt_id,
        response.sample_index,
        response.item,
        response.status,
        json.dumps(dict(response.headers)),
        packed,
        response.received_at.isoformat(),
        None if numbers is None else json.dumps(numbers),
    )


def _packed(line: tuple[Any, ...]) -> PackedResponse:
    return PackedResponse._make((*line[:-2], datetime.fromisoformat(line[-2]), line[-1]))


def unpacked(response: PackedResponse) -> RawResponse:
    """A response with its body as it came. Raises zstandard.ZstdError or ValueError where it was altered."""
    numbers = (None, None, None) if response.usage is None else json.loads(response.usage)
    prompt_tokens, completion_tokens, cost_usd = numbers
    return RawResponse(
        key=response.key,
        prompt_id=response.prompt_id,
        sample_index=response.sample_index,
        item=response.item,
        status=response.status,
        headers=json.loads(response.headers),
        body=zstandard.decompress(response.body),
        received_at=response.received_at,
        usage=None
        if response.usage is None
        else Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost_usd=cost_usd),
    )
