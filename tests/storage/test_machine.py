"""The table against a dictionary: two writers, repeats, crashes, compactions, takedowns, reads at any version."""

import os
import shutil
import tempfile
from functools import cache, lru_cache
from pathlib import Path

import hypothesis.strategies as st
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from storage import table as table_module
from storage.compact import compact
from storage.delta_log import DeltaLog
from storage.selection import Selection
from storage.table import Table
from storage.takedown import takedown
from tests.storage.make_rows import make_row

WRITERS = st.sampled_from(["a", "b"])
NUMBERS = st.lists(st.integers(0, 25), min_size=1, max_size=5)
ROWS = [make_row(n, targets=1, k=1) for n in range(26)]
CRASHES = {
    "before the files": (table_module, "write_data_file", True),
    "after the files": (table_module, "write_data_file", False),
    "before the commit": (DeltaLog, "commit", True),
    "after the commit": (DeltaLog, "commit", False),
}


class Crash(BaseException):
    """Stands for the end of the process: nothing of ours may catch it to go on."""


SHARED_MEMORY = Path("/dev/shm")
"""Where syncing costs nothing: what a crash of the machine would undo is not what this test is about."""
FOLDER = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None


@cache
def empty_table():
    folder = tempfile.TemporaryDirectory(dir=FOLDER)
    Table.create(Path(folder.name) / "labels")
    return folder


class TableMachine(RuleBasedStateMachine):
    @initialize()
    def create(self):
        self.path = Path(tempfile.mkdtemp(dir=FOLDER)) / "labels"
        shutil.copytree(Path(empty_table().name) / "labels", self.path)
        self.handles = {"a": Table.open(self.path), "b": Table.open(self.path)}
        self.sequences = {"a": 0, "b": 0}
        self.batches = {}
        self.keys = set()
        self.versions = {0: frozenset()}
        self.seen = None

    @rule(writer=WRITERS, numbers=NUMBERS)
    def append(self, writer, numbers):
        sequence = self.sequences[writer]
        done = self.handles[writer].append([ROWS[n] for n in numbers], writer=writer, sequence=sequence)
        assert done.written == len(set(numbers) - self.keys)
        assert done.written + done.duplicates == len(numbers)
        self.keys |= set(numbers)
        self.sequences[writer] += 1
        self.batches[writer, sequence] = numbers
        self.versions[done.version] = frozenset(self.keys)

    @rule(writer=WRITERS, back=st.integers(1, 3))
    def repeat(self, writer, back):
        numbers = self.batches.get((writer, self.sequences[writer] - back))
        if numbers is not None:
            sequence = self.sequences[writer] - back
            assert (
                self.handles[writer].append([ROWS[n] for n in numbers], writer=writer, sequence=sequence).written == 0
            )

    @rule(writer=WRITERS, numbers=NUMBERS, where=st.sampled_from(sorted(CRASHES)))
    def crash_and_repeat(self, writer, numbers, where):
        owner, name, before = CRASHES[where]
        step = getattr(owner, name)

        def dying(*arguments, **options):
            if before:
                raise Crash
            step(*arguments, **options)
            raise Crash

        setattr(owner, name, dying)
        try:
            self.handles[writer].append([ROWS[n] for n in numbers], writer=writer, sequence=self.sequences[writer])
        except Crash:
            self.handles[writer] = Table.open(self.path)
        finally:
            setattr(owner, name, step)
        version = self.handles[writer].version
        if version not in self.versions:
            self.keys |= set(numbers)
            self.versions[version] = frozenset(self.keys)
        self.append_again(writer, numbers)

    def append_again(self, writer, numbers):
        sequence = self.sequences[writer]
        done = self.handles[writer].append([ROWS[n] for n in numbers], writer=writer, sequence=sequence)
        self.keys |= set(numbers)
        self.sequences[writer] += 1
        self.batches[writer, sequence] = numbers
        self.versions.setdefault(done.version, frozenset(self.keys))

    @rule()
    def compact(self):
        version = compact(self.path).version
        self.versions[version] = frozenset(self.keys)

    @rule(number=st.integers(0, 25))
    def take_down(self, number):
        done = takedown(self.path, Selection(where=f"prompt_id = 'p{number:06}'"), reason="test")
        assert done.rows == (number in self.keys)
        self.keys.discard(number)
        self.versions[done.version] = frozenset(self.keys)

    @invariant()
    def every_version_is_what_it_was(self):
        files = every_file(self.path / "soft_labels")
        if files == self.seen:  # and so is every version
            return
        self.seen = files
        newest = max(self.versions)
        for version in {newest, max(newest - 3, 0)} & self.versions.keys():
            table = self.handles["b"] if version == newest else Table.open(self.path, version)
            assert table.version == version
            assert sorted(keys_of(table)) == sorted(ROWS[n].key for n in self.versions[version])

    @invariant()
    def the_key_index_agrees(self):
        known = self.handles["a"].keys()
        assert len(known) == len(self.keys)
        assert all((ROWS[n].key in known) == (n in self.keys) for n in range(26))

    def teardown(self):
        if hasattr(self, "path"):
            shutil.rmtree(self.path.parent)


def stored_keys(path, version):
    return keys_of(Table.open(path, version))


def keys_of(table):
    files = (file.path for file in table.files())
    return [key for file in files for key in keys_in(file, identity(file.stat()))]


@lru_cache(10_000)
def keys_in(path, _):
    """The keys of a data file, read again when it is another file."""
    with pq.ParquetFile(path) as file:
        return file.read(columns=["key"], use_threads=False)["key"].to_pylist()


def every_file(folder):
    """All files under a folder, and which each is."""
    return {entry.path: identity(entry.stat()) for entry in walk(folder)}


def walk(folder):
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from walk(entry)
        else:
            yield entry


def identity(found):
    return found.st_ino, found.st_size, found.st_mtime_ns


TestTable = pytest.mark.timeout(1200)(TableMachine.TestCase)
TestTable.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
