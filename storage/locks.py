"""Locks of the operating system: they die with the process that holds them, so a kill leaves nothing to clean up.

flock is per machine on local disks; two machines that append to one table must share a file system that honours it.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from storage.data_files import make_folder
from storage.errors import RunHeld, mapped


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, waiting for whoever has it. Raises OSError where it cannot be opened to write."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class RunLock:
    """The one holder of a run; a second one is told who it is."""

    def __init__(self, path: Path, run_id: str) -> None:
        """Take the lock file at `path` or raise RunHeld at once."""
        self._path = path
        self._descriptor = self._take(run_id)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat("T", "seconds"),
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)

    def _take(self, run_id: str) -> int:
        patience = 1
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(descriptor)
                os.close(descriptor)
                if patience:  # whoever only looks (held_by) has it for an instant
                    patience -= 1
                    time.sleep(0.05)
                    continue
                raise _run_held(run_id, holder) from None
            # whoever released it may have removed the file between our open and our lock
            if self._path.exists() and os.fstat(descriptor).st_ino == self._path.stat().st_ino:
                return descriptor
            os.close(descriptor)

    def release(self) -> None:
        """Let the run go and remove the lock file."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


@contextmanager
def hold(path: Path, name: str) -> Iterator[None]:
    """Be the one holder of the lock file at `path`; its folder is made. Raises RunHeld, NotWritable, DiskFull."""
    with mapped(path):
        make_folder(path.parent)
        lock = RunLock(path, name)
    try:
        yield
    finally:
        lock.release()


def held_by(path: Path) -> str | None:
    """Who holds the run whose lock file this is; None when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _holder(descriptor)
    finally:
        os.close(descriptor)


def check_free(journal: Path, run_id: str) -> None:
    """Raise RunHeld when another process holds a run of this journal folder; a look, before anything is taken."""
    if (holder := held_by(journal / f"{run_id}.lock")) is not None:
        raise _run_held(run_id, holder)


def _run_held(run_id: str, holder: str) -> RunHeld:
    return RunHeld(f"Run {run_id} is already running: {holder}. Wait for it, or stop it first.")


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['pid']} on {holder['host']} has held it since {holder['since']}"
    except (ValueError, KeyError):
        return "another process has just taken it"
