"""A collecting process that kills itself at a labelled point, at the nth time that it comes there; or never ("-").

argv: run file, file for acknowledgements, point, n. A line "prompt_id seconds" says that an answer is on the disk; the
line itself survives the kill since the page cache does.
"""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collectors import keeping
from collectors.config import read_run
from collectors.http import HttpSender
from collectors.record import Chronicle
from collectors.run import collect
from storage import table
from storage.delta_log import DeltaLog
from storage.journal import Journal
from storage.table import Table

BEFORE, AFTER = True, False
POINTS: dict[str, tuple[Any, str, bool]] = {
    "before a request is sent": (HttpSender, "send", BEFORE),
    "answer received": (HttpSender, "send", AFTER),
    "before the journal writes": (Journal, "record", BEFORE),
    "journalled, not read": (Journal, "record", AFTER),
    "before an answer is read": (keeping, "label", BEFORE),
    "answer read": (keeping, "label", AFTER),
    "before the batch is fixed": (Journal, "assign", BEFORE),
    "batch fixed": (Journal, "assign", AFTER),
    "before the data file": (table, "write_data_file", BEFORE),
    "data file, not committed": (table, "write_data_file", AFTER),
    "before a commit": (DeltaLog, "commit", BEFORE),
    "committed": (DeltaLog, "commit", AFTER),
    "rows appended": (Table, "append", AFTER),
    "rejects appended": (Table, "append_rejects", AFTER),
    "before the run's record": (Chronicle, "save", BEFORE),
    "run's record saved": (Chronicle, "save", AFTER),
    "before the journal lets go": (Journal, "release", BEFORE),
    "journal let go": (Journal, "release", AFTER),
}


def die_at(point: str, nth: int) -> None:
    owner, name, before = POINTS[point]
    step = getattr(owner, name)
    left = [nth]

    def passed() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(step)
    def one(*arguments: Any, **options: Any) -> Any:
        if before:
            passed()
        result = step(*arguments, **options)
        if not before:
            passed()
        return result

    @functools.wraps(step)
    async def awaited(*arguments: Any, **options: Any) -> Any:
        if before:
            passed()
        result = await step(*arguments, **options)
        if not before:
            passed()
        return result

    setattr(owner, name, awaited if name == "send" else one)


def acknowledge(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    record: Callable[..., None] = Journal.record

    def told(journal: Journal, responses: Any) -> None:
        record(journal, responses)
        os.write(descriptor, "".join(f"{one.prompt_id} {time.monotonic()}\n" for one in responses).encode())

    Journal.record = told  # type: ignore[method-assign]


if __name__ == "__main__":
    run, acknowledgements, point, nth = sys.argv[1:]
    keeping._FIRST_COMMIT = 0.2  # commits all the time
    acknowledge(Path(acknowledgements))
    if point != "-":
        die_at(point, int(nth))
    sys.exit(collect(read_run(Path(run))).exit_code)
