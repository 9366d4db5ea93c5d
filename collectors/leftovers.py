"""What processes that were killed left in the user's cache folder: logs of embedded teachers, half-made model files.

A log is held by a lock for as long as its server lives, so that one without is nobody's any more.
"""

import fcntl
import shutil
import time
from pathlib import Path

from collectors.providers.embedded import cache_folder

# Putting a model file together takes seconds.
_ABANDONED_SECONDS = 3600.0


def leftovers() -> list[Path]:
    """Files and folders in the cache that belong to no process."""
    folder = cache_folder()
    logs = [path for path in folder.glob("embedded-*.log") if not _held(path)]
    halves = [path for path in folder.glob("assembling-*") if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS]
    return sorted(logs + halves)


def _held(path: Path) -> bool:
    try:
        with path.open("rb") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # its owner has just removed it
        return True
    return False


def remove(path: Path) -> None:
    """Delete a leftover; one that is gone already is no error."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
