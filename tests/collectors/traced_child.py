"""A collecting process that marks in a file of its own when it reads an answer and when its journal lets a batch go: a
trace of its system calls then shows what was on the disk before.

argv: run file, file of marks.
"""

import os
import sys
from pathlib import Path
from typing import Any

from collectors import keeping
from collectors.config import read_run
from collectors.run import collect
from storage.journal import Journal, RawResponse

if __name__ == "__main__":
    run, marks = map(Path, sys.argv[1:])
    descriptor = os.open(marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    label, release = keeping.label, Journal.release

    def marked_label(raw: RawResponse, *arguments: Any) -> Any:
        os.write(descriptor, f"read {raw.key}".encode())
        return label(raw, *arguments)

    def marked_release(journal: Journal, sequence: int) -> None:
        os.write(descriptor, f"release {sequence}".encode())
        release(journal, sequence)

    keeping.label = marked_label
    Journal.release = marked_release  # type: ignore[method-assign]
    keeping._FIRST_COMMIT = 0.3  # several batches
    sys.exit(collect(read_run(run)).exit_code)
