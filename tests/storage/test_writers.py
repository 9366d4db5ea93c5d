"""Several processes at once on one table."""

import subprocess
import sys
import time

from storage.table import Table
from tests.storage.make_rows import make_row
from tests.storage.test_machine import stored_keys


def test_two_collecting_processes_share_a_table(tmp_path):
    """Their questions overlap by half; a reader beside them never sees part of a commit."""
    path = tmp_path / "labels"
    Table.create(path)
    command = [sys.executable, "-m", "tests.storage.collecting_child", str(path)]
    children = [
        subprocess.Popen([*command, "run-1", "0", "60"], stdout=subprocess.PIPE, text=True),
        subprocess.Popen([*command, "run-2", "30", "60"], stdout=subprocess.PIPE, text=True),
    ]
    seen = []
    while any(child.poll() is None for child in children):
        table = Table.open(path)
        version = table.version
        keys = stored_keys(path, version)
        assert len(keys) == len(set(keys)) == sum(file.rows for file in Table.open(path, version).files())
        seen.append(len(keys))
        time.sleep(0.02)
    for child in children:
        child.communicate()
        assert child.returncode == 0
    assert sorted(stored_keys(path, None)) == sorted(make_row(n).key for n in range(90))
    assert seen == sorted(seen)
