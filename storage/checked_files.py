"""Parquet files as DuckDB may see them: exactly these, read only, no page before its checksum was right.

DuckDB's own reader prunes and filters better than a scan through Arrow, but it checks no checksum and may write
wherever it may read. So it gets a file system of ours instead of the disk; the price is a CRC-32 of what it reads. What
the footer says is believed: only `verify` reads whole files.
"""

from __future__ import annotations

import os
import stat
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn, Self
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]

from storage.errors import TableDamaged
from storage.page_header import page_header

PROTOCOL = "potstill"
_HEADER = 512
"""A page header of ours is shorter: it holds two short bounds. Longer ones are found through the footer."""
_TAIL = 48 * 2**10
"""Read when a file is opened: most footers whole, which DuckDB asks for in two reads."""


class CheckedFiles(AbstractFileSystem):  # type: ignore[misc]
    """A file system that holds exactly `files`; `names`, in the same order, are what DuckDB calls them."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, files: Sequence[Path]) -> None:
        """Raises TableDamaged when one is missing."""
        super().__init__()
        self.damage: str | None = None
        self._known = {f"{PROTOCOL}://{number}.parquet": _Known(file) for number, file in enumerate(files)}
        self.names = list(self._known)

    def open(self, path: str, mode: str = "rb", **_: Any) -> _CheckedFile:
        """Open one of the files to read. Raises PermissionError for anything else."""
        if mode != "rb" or path not in self._known:
            raise PermissionError(f"{path} cannot be opened as {mode}: the query connection only reads its table.")
        return _CheckedFile(self, self._known[path])

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and type of one of the files."""
        return {"name": path, "size": self._known[path].size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """When one of the files was written."""
        return self._known[path].written_at

    def glob(self, path: str, **_: Any) -> list[str]:
        """The file of that very name, if there is one: nothing is a pattern."""
        return [path] if path in self._known else []

    def exists(self, path: str, **_: Any) -> bool:
        """Whether it is one of the files."""
        return path in self._known


class _CheckedPages:
    """Which stretches of one file consist of pages whose checksum was right: in order, apart from each other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._starts: list[int] = []
        self._ends: list[int] = []

    def end_of(self, byte: int) -> int | None:
        """End of the stretch that holds this byte."""
        place = bisect_right(self._starts, byte) - 1
        return self._ends[place] if place >= 0 and self._ends[place] > byte else None

    def next(self, byte: int) -> int:
        """Start of the first stretch after this byte; without one a number beyond all files."""
        place = bisect_right(self._starts, byte)
        return self._starts[place] if place < len(self._starts) else 2**63

    def add(self, start: int, end: int) -> int:
        """Join a stretch to those that it touches; → its end."""
        low, high = bisect_left(self._ends, start), bisect_right(self._starts, end)
        whole = (min(start, *self._starts[low:high]), max(end, *self._ends[low:high])) if low < high else (start, end)
        self._starts[low:high], self._ends[low:high] = [whole[0]], [whole[1]]
        return end


class _Known:
    """What is known of one file: path, size, time, the pages that were right; once opened, where its footer starts."""

    def __init__(self, path: Path) -> None:
        """Raises TableDamaged when it is missing."""
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            raise TableDamaged(f"The data file {path} is missing: `potstill verify` names what is damaged.")
        self.path = path
        self.size = found.st_size
        self.written_at = datetime.fromtimestamp(found.st_mtime, UTC)
        self.footer: int | None = None
        self.pages = _CheckedPages()


class _CheckedFile:
    """One opened file. DuckDB's threads share it, each with its own position.

    DuckDB opens a file to read the footer and again to scan it, which may turn out to need nothing of it: so the
    footer is read ahead with the first opening, and the second one waits until something is read.
    """

    def __init__(self, owner: CheckedFiles, known: _Known) -> None:
        self._owner, self._path, self._pages, self._size = owner, known.path, known.pages, known.size
        self._at: dict[int, int] = {}
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._ahead = b""
        self._footer = known.footer if known.footer is not None else self._find_footer()
        known.footer = self._footer

    def _find_footer(self) -> int:
        self._ahead = self._from_disk(_TAIL, max(self._size - _TAIL, 0))
        footer = self._size - 8 - int.from_bytes(self._ahead[-8:-4], "little")
        if self._size < 12 or self._ahead[-4:] != b"PAR1" or footer < 4:
            self._damaged("it does not end as a Parquet file does")
        return footer

    def __enter__(self) -> Self:
        """Use the file, then close it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Go to an absolute position."""
        if whence != os.SEEK_SET:
            raise OSError("only absolute positions are known")
        self._at[threading.get_ident()] = position
        return position

    def tell(self) -> int:
        """The position of this thread."""
        return self._at.get(threading.get_ident(), 0)

    def read(self, size: int = -1) -> bytes:
        """Bytes from the position on. Raises TableDamaged when a page among them is not as it was written."""
        start = self.tell()
        data = self._bytes(size if size >= 0 else self._size - start, start)
        with self._pages.lock:
            at, end = max(start, 4), min(start + len(data), self._footer)  # the first four bytes are no page
            while at < end:
                at = self._pages.end_of(at) or self._run(at, end, start, data)
        self._at[threading.get_ident()] = start + len(data)
        return data

    def _bytes(self, size: int, start: int) -> bytes:
        ahead = self._ahead
        first = start - (self._size - len(ahead))
        if first < 0 or not ahead:
            return self._from_disk(size, start)
        if start <= self._footer:  # nothing before it is read ahead for, so that open files cost no memory
            self._ahead = b""
        return ahead[first : first + size]

    def _from_disk(self, size: int, start: int) -> bytes:
        if self._file is None:
            with self._lock:
                self._file = self._file or FileIO(self._path)
        return os.pread(self._file.fileno(), size, start)

    def _run(self, first: int, end: int, start: int, data: bytes) -> int:
        """Check page after page from `first` to the end or a checked stretch, by the pages' own headers; → how far.

        `data` is what lies at `start`. Where no page starts whose checksum is right, the footer is asked.
        """
        at, stop = first - start, min(end, self._pages.next(first)) - start
        limit, view = min(len(data), self._footer - start), memoryview(data)
        while at < stop:
            header = page_header(data, at)
            if header is None or header[1] > limit:
                page_end = self._page(start + at)
                if page_end is None:
                    break
                at = page_end - start
            elif crc32(view[header[0] : header[1]]) == header[2]:
                at = header[1]
            else:
                break
        return self._pages.add(first, start + at) if start + at > first else self._chunk(first)

    def _page(self, start: int) -> int | None:
        """End of the page that starts at this byte and has the checksum that its header says, or None."""
        header = page_header(self._from_disk(_HEADER, start))
        if header is None or start + header[1] > self._footer:
            return None
        first, end, checksum = header
        return start + end if crc32(self._from_disk(end - first, start + first)) == checksum else None

    def _chunk(self, byte: int) -> int:
        """Check all pages of the column chunk that holds this byte, found in the footer; → the chunk's end."""
        try:
            first, size = _chunk_of(pq.read_metadata(self._path), byte)
        except (pa.ArrowException, OSError) as error:
            self._damaged(f"its footer cannot be read: {error}")
        data = self._from_disk(size, first)
        at = 0
        while at < size:
            header = page_header(data, at)
            if header is None or header[1] > size:
                self._damaged(f"no page starts at byte {first + at}")
            page, end, checksum = header
            if checksum is not None and crc32(memoryview(data)[page:end]) != checksum:
                self._damaged(f"the page at byte {first + at} has another checksum than its header says")
            at = end
        return self._pages.add(first, first + size)

    def _damaged(self, what: str) -> NoReturn:
        self._owner.damage = f"{self._path} was altered or cut since it was written ({what}): run `potstill verify`."
        raise TableDamaged(self._owner.damage)


def _chunk_of(metadata: Any, byte: int) -> tuple[int, int]:
    """First byte and size of the column chunk that holds this byte. Raises OSError where none does."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
            if first <= byte < first + column.total_compressed_size:
                return first, column.total_compressed_size
    raise OSError(f"byte {byte} is of no column")
