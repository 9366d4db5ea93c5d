"""Every error of this room, each with the exit code that the command line ends with.

StorageError
├── TableNotFound, TableDamaged, SchemaTooNew, VersionNotFound, EmptyTable
├── NotWritable, DiskFull
├── InvalidRow, InvalidRecord, StudentUnfit, ForeignDataError
├── Refused, NeedsReview
├── RunHeld
└── QueryRefused, QueryTimeout, QueryFailed

A message is one sentence that says what to do next. Errors of the operating system, SQLite, Delta Lake, Arrow and
DuckDB are mapped to these where they arise; `mapped` does it for whatever touches the disk.
"""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(Exception):
    """Something about the table went wrong."""

    exit_code: int = 1


class TableNotFound(StorageError):
    """There is no soft-label table at the path that was given."""

    exit_code = 2


class TableDamaged(StorageError):
    """A file of the table is missing, truncated or altered."""


class SchemaTooNew(StorageError):
    """The table was written by a newer version of potstill."""

    exit_code = 2


class VersionNotFound(StorageError):
    """The table has no such version, or its files were purged."""

    exit_code = 2


class EmptyTable(StorageError):
    """The table has no rows at that version."""

    exit_code = 2


class NotWritable(StorageError):
    """The folder or file cannot be written."""


class DiskFull(StorageError):
    """No space is left; what was committed before is intact."""


class InvalidRow(StorageError):
    """A row breaks an invariant of the table and was not written."""


class InvalidRecord(StorageError):
    """A decision, training or run record is not what its name says."""


class StudentUnfit(StorageError):
    """The folder is no student's, or its student was not trained on this table version."""

    exit_code = 2


class ForeignDataError(StorageError):
    """A data set of another project is not what its format says."""


class Refused(StorageError):
    """The policies refuse what was asked; nothing was written."""

    exit_code = 3


class NeedsReview(StorageError):
    """The policies cannot judge what was asked; nothing was written."""

    exit_code = 5


class RunHeld(StorageError):
    """Another process holds this run."""

    exit_code = 75


class QueryRefused(StorageError):
    """The query is not one SELECT over the table's views."""

    exit_code = 2


class QueryTimeout(StorageError):
    """The query was stopped at its time limit."""


class QueryFailed(StorageError):
    """DuckDB could not run the query."""


@contextmanager
def mapped(path: Path | str) -> Iterator[None]:
    """Map what the disk, SQLite, Arrow and Delta Lake raise about `path` to the errors above; others pass unchanged."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise _named(error, path) from error
    except Exception as error:
        # Delta Lake wraps the operating system's error in its own, with the text kept
        if type(error).__module__.startswith(("deltalake", "_internal", "pyarrow")):
            raise _named(error, path) from error
        raise


def _named(error: Exception, path: Path | str) -> StorageError:
    code = getattr(error, "errno", None)
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "disk is full" in text:
        return DiskFull(
            f"No space is left for {path}: free some and run the same command again; nothing committed is lost."
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) or _says(text, "ermission denied", "ead-only", "readonly"):
        return NotWritable(
            f"{path} cannot be written: make the folder writable for this user or choose another table path."
        )
    if code in (errno.ENOTDIR, errno.EEXIST) or _says(text, "Not a directory"):
        return NotWritable(
            f"{path} is, or lies under, a file: choose a path for the table that is a folder or does not exist."
        )
    if "Unsupported minimum" in text:
        return SchemaTooNew(
            f"{path} was written by a newer Delta Lake ({_first_line(text)}): upgrade potstill to read it."
        )
    if code == errno.ENOENT or _says(text, "No such file", "not found"):
        return TableDamaged(
            f"A file is missing at {path}: `potstill verify` names what is damaged ({_first_line(text)})."
        )
    return TableDamaged(
        f"{path} cannot be read or written ({_first_line(text)}): `potstill verify` names what is damaged."
    )


def _says(text: str, *parts: str) -> bool:
    return any(part in text for part in parts)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no detail"
