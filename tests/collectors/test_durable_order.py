"""The order on the disk, by a trace of the system calls of a real run: a power cut does not spare the page cache.

An answer is synced to the journal before it is read; data file, folder and commit are synced before the journal lets
the answers go.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from collectors.config import read_run
from storage.query import sql
from tests.collectors.runs import write_run
from tests.collectors.servers import TeacherServer

ROOT = Path(__file__).parents[2]
PROMPTS = 60
CALLS = "fsync,fdatasync,write,pwrite64,rename,renameat,renameat2,link,linkat,mkdir,mkdirat"
LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)$")


@dataclass
class Call:
    """One system call: `began` and `ended` are line numbers of the trace, `text` is its arguments and result."""

    name: str
    text: str
    began: int
    ended: int

    @property
    def path(self) -> Path:
        """Of its first descriptor."""
        found = re.match(r"\d+<([^>]*)>", self.text)
        return Path(found[1] if found else "")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Call]]:
    """The table of a whole run, and its calls in the order in which they began."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    tried = subprocess.run(["strace", "-f", "-e", "trace=fsync", "true"], capture_output=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("traced")
    with TeacherServer(lambda ask: "wrong-type" if ask.prompt_number == 7 else None, latency=0.05) as server:
        run = write_run(folder, server.url, prompts=PROMPTS, concurrency=4)
        command = ["strace", "-f", "-y", "-s", "8192", "-e", f"trace={CALLS}", "-o", str(folder / "trace")]
        command += [sys.executable, "-m", "tests.collectors.traced_child", str(run), str(folder / "marks")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    return read_run(run).table, parsed((folder / "trace").read_text(errors="replace"))


def parsed(text: str) -> list[Call]:
    calls: list[Call] = []
    unfinished: dict[str, Call] = {}
    for number, line in enumerate(text.splitlines()):
        found = LINE.match(line)
        if found is None:
            continue  # signals and exits
        process, resumed, name, rest = found.groups()
        if resumed:
            call = unfinished.pop(process)
            call.text, call.ended = call.text + rest, number
        else:
            call = Call(name, rest.removesuffix("<unfinished ...>"), number, number)
            calls.append(call)
            if rest.endswith("<unfinished ...>"):
                unfinished[process] = call
    return calls


def marks(calls: list[Call], word: str) -> list[tuple[str, Call]]:
    found = [(call, re.search(rf'"{word} (\w+)"', call.text)) for call in calls if call.path.name == "marks"]
    return [(match[1], call) for call, match in found if match]


def synced(calls: list[Call], path: Path, after: Call, before: Call) -> bool:
    """Whether the file or folder was synced between the end of one call and the beginning of another."""
    return any(
        call.path == path and call.began > after.ended and call.ended < before.began
        for call in calls
        if call.name in ("fsync", "fdatasync")
    )


def test_the_journal_is_synced_before_an_answer_is_read(trace: tuple[Path, list[Call]]) -> None:
    _, calls = trace
    journal = [call for call in calls if call.path.name.endswith(".sqlite-wal") and "write" in call.name]
    read = marks(calls, "read")
    assert len({key for key, _ in read}) == PROMPTS
    for key, mark in read:
        writes = [call for call in journal if key in call.text and call.ended < mark.began]
        assert writes, f"{key} was read before it was written"
        assert any(synced(calls, call.path, call, mark) for call in writes), f"{key} was read before it was synced"


def test_data_files_and_their_folders_are_synced_before_the_journal_lets_go(trace: tuple[Path, list[Call]]) -> None:
    table, calls = trace
    released = marks(calls, "release")
    assert len(released) > 1
    names = {Path(path).name for path in files(table)}
    for call in calls:
        paths = [Path(path) for path in re.findall(r'"([^"]+)"', call.text)]
        if (
            call.name.startswith("rename")
            and paths[-1].suffix == ".parquet"
            and table / "runs" not in paths[-1].parents
        ):
            letting_go = next(mark for _, mark in released if mark.began > call.ended)
            writing = Call("", "", -1, -1)
            assert synced(calls, paths[0], writing, call), f"{paths[-1]} got its name before it was synced"
            assert synced(calls, paths[-1].parent, call, letting_go), f"the folder of {paths[-1]} was not synced"
            names.discard(paths[-1].name)
    assert not names


def test_a_commit_is_synced_before_the_journal_lets_go(trace: tuple[Path, list[Call]]) -> None:
    table, calls = trace
    released = marks(calls, "release")
    for log in ("soft_labels", "rejects"):
        entries = 0
        for call in calls:
            if not call.name.startswith(("link", "rename")):
                continue
            target = Path(re.findall(r'"([^"]+)"', call.text)[-1])
            if target.suffix == ".json" and target.parent == table / log / "_delta_log":
                letting_go = next(mark for _, mark in released if mark.began > call.ended)
                assert synced(calls, target, call, letting_go), f"{target} was not synced"
                assert synced(calls, target.parent, call, letting_go), f"the folder of {target} was not synced"
                entries += 1
        assert entries > 1


def test_new_folders_are_synced_into_those_that_hold_them(trace: tuple[Path, list[Call]]) -> None:
    table, calls = trace
    released = marks(calls, "release")
    made = [call for call in calls if call.name.startswith("mkdir") and call.text.endswith("= 0")]
    folders = {Path(re.findall(r'"([^"]+)"', call.text)[0]): call for call in made}
    within = {path: call for path, call in folders.items() if path == table or table in path.parents}
    assert {path.name for path in within} >= {"table", "journal", "soft_labels", "_delta_log"}
    for path, call in within.items():
        letting_go = next((mark for _, mark in released if mark.began > call.ended), None)
        assert letting_go is None or synced(calls, path.parent, call, letting_go), f"{path} may be lost"


def files(table: Path) -> list[str]:
    return [str(path) for path in (table / "soft_labels").glob("*/*.parquet")]


def test_the_traced_run_is_a_whole_one(trace: tuple[Path, list[Call]]) -> None:
    table, _ = trace
    assert sql(table, "SELECT count(*) AS n FROM soft_labels").to_pylist() == [{"n": PROMPTS - 1}]
