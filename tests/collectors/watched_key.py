"""A key that every run of these tests sends, looked for in all that they write, log and print: also inside Parquet and
zstd, where the plain bytes of a file would not show it."""

import base64
import logging
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from storage.journal import Journal, RawResponse

KEY = "canary/3f9c1b7e+0d52=a4"


def forms(key: str) -> dict[str, bytes]:
    """The key as it may be hidden: base64 at each of the three places that it may have within a triple."""
    raw = key.encode()
    found = {"plain": raw, "hexadecimal": raw.hex().encode(), "url-encoded": quote(key, safe="").encode()}
    found["escaped"] = key.replace("/", "\\/").encode()
    found["numbers"] = ", ".join(map(str, raw)).encode()
    found["numbers, close"] = ",".join(map(str, raw)).encode()
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + raw)
        found[f"base64 at {before}"] = whole[4 if before else 0 : -4]
        found[f"base64 for addresses at {before}"] = base64.urlsafe_b64encode(b"\0" * before + raw)[
            4 if before else 0 : -4
        ]
    return found


class Watch(logging.Handler):
    """`found` names each place where the key was; `look` looks into bytes, `scan` into all files under a folder."""

    def __init__(self, key: str = KEY) -> None:
        super().__init__(logging.DEBUG)
        self._forms = forms(key)
        self.found: list[str] = []
        self.looked_at = 0

    def look(self, data: bytes, place: str) -> None:
        self.looked_at += len(data)
        self.found += [f"{form} in {place}" for form, hidden in self._forms.items() if hidden in data]

    def scan(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                for data in contents(path):
                    self.look(data, str(path))
            self.look(path.name.encode(), f"the name of {path}")

    def emit(self, record: logging.LogRecord) -> None:
        self.look(self.format(record).encode(), f"a line logged by {record.name}")

    def record(self, responses: Any) -> None:
        """What goes into a journal, which is empty and gone when the run is done."""
        for one in responses:
            assert isinstance(one, RawResponse)
            for data in (one.item, one.body, repr(one.headers).encode(), one.prompt_id.encode()):
                self.look(data, "the journal")


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what is packed in them."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path, partitioning=None)
        except (pa.ArrowException, OSError):
            return  # a test damaged it
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        yield sink.getvalue().to_pybytes()
    elif path.suffix == ".zst":
        yield zstandard.ZstdDecompressor().decompressobj().decompress(data)
    elif path.suffix == ".sqlite":
        with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as database:
            for item, headers, body in database.execute("SELECT item, headers, body FROM responses"):
                yield item + headers.encode() + zstandard.decompress(body)


class Wrapped:
    """Hangs a Watch into this process: the root logger at DEBUG, journals, and what child processes say."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._communicate = subprocess.Popen.communicate
        self._record = Journal.record
        self._level = logging.getLogger().level

    def __enter__(self) -> None:
        watch, communicate, record = self._watch, self._communicate, self._record

        def heard(process: Any, *arguments: Any, **options: Any) -> Any:
            said = communicate(process, *arguments, **options)
            for part in said:
                watch.look(part.encode() if isinstance(part, str) else part or b"", f"the output of {process.args}")
            return said

        def recorded(journal: Journal, responses: Any) -> None:
            watch.record(responses)
            record(journal, responses)

        subprocess.Popen.communicate = heard  # type: ignore[method-assign]
        Journal.record = recorded  # type: ignore[method-assign]
        logging.getLogger().addHandler(watch)
        logging.getLogger().setLevel(logging.DEBUG)

    def __exit__(self, *_: object) -> None:
        subprocess.Popen.communicate = self._communicate  # type: ignore[method-assign]
        Journal.record = self._record  # type: ignore[method-assign]
        logging.getLogger().removeHandler(self._watch)
        logging.getLogger().setLevel(self._level)
