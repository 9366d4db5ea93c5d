import subprocess
import sys

import storage
from storage.errors import StorageError


def test_the_public_names_are_there_and_no_others():
    assert storage.__all__ == sorted(storage._HOME)
    for name in storage.__all__:
        assert getattr(storage, name).__module__.startswith("storage.")
    assert storage.__doc__.startswith("potstill room: storage")


def test_the_room_is_cheap_to_import():
    script = "import sys, storage, storage.cli; print([m for m in sys.argv[1:] if m in sys.modules])"
    command = [sys.executable, "-c", script, "pyarrow", "duckdb", "deltalake", "numpy", "pydantic"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_error_says_what_it_is_and_has_an_exit_code():
    for error in StorageError.__subclasses__():
        assert error.__doc__ and error.exit_code in (1, 2, 3, 4, 5, 75)
