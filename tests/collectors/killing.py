"""One run, killed again and again, and what its server, its acknowledgements and its table say of it afterwards."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from collectors.config import read_run
from storage.query import sql
from storage.verify import verify
from tests.collectors.killed_child import POINTS
from tests.collectors.runs import write_run
from tests.collectors.servers import Ask, TeacherServer

ROOT = Path(__file__).parents[2]
CONCURRENCY = 16
_OFTEN = {"send": 60, "record": 8, "label": 40}  # how often a start comes by there, at least; elsewhere twice


def rejected(ask: Ask) -> str | None:
    """Every tenth prompt's answer cannot become a row."""
    return "wrong-type" if (ask.prompt_number or 0) % 10 == 3 else None


class KilledRun:
    """A run in `folder` of so many prompts; `kills` counts the kills that it really died of."""

    def __init__(self, folder: Path, server: TeacherServer, prompts: int) -> None:
        self.run = write_run(folder, server.url, prompts=prompts, concurrency=CONCURRENCY)
        self.prompts = prompts
        self.kills: Counter[str] = Counter()
        self.finished = False
        self._acknowledgements = folder / "acknowledged.txt"
        self._output = folder / "output.txt"
        self._server = server

    def _start(self, point: str = "-", nth: int = 0) -> "subprocess.Popen[bytes]":
        words = [str(self.run), str(self._acknowledgements), point, str(nth)]
        with self._output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.collectors.killed_child", *words],
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    def kill_at(self, point: str, chance: random.Random) -> None:
        """Start it, to die at a labelled point."""
        process = self._start(point, chance.randint(1, _OFTEN.get(POINTS[point][1], 2)))
        self._end(process, point)

    def kill_at_random(self, chance: random.Random) -> None:
        """Start it and kill it after some of its answers and a random time more."""
        process = self._start()
        goal = self._asked() + chance.randrange(60)
        while process.poll() is None and self._asked() < goal:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        self._end(process, "at random")

    def _asked(self) -> int:
        return sum(ask.prompt_number is not None for ask in self._server.asks)

    def _end(self, process: "subprocess.Popen[bytes]", point: str) -> None:
        if process.wait(120) == -signal.SIGKILL:
            self.kills[point] += 1
        else:
            # 4: some are rejects; 0: an earlier start had done all but to say so
            assert process.returncode in (0, 4), self._output.read_text()[-2000:]
            self.finished = True

    def finish(self) -> None:
        """Let it come to its end."""
        self._end(self._start(), "-")
        assert self.finished

    def check(self) -> dict[str, int]:
        """Nothing lost, nothing twice, and what had been acknowledged was not asked again; → the counts."""
        path = read_run(self.run).table
        rows, rejects = (_prompts(path, name) for name in ("soft_labels", "rejects"))
        everything = {f"p{n}" for n in range(self.prompts)}
        acknowledged = {}
        for line in self._acknowledgements.read_text().splitlines():
            prompt, at = line.split()
            acknowledged.setdefault(prompt, float(at))
        asks: Counter[str] = Counter()
        asked_again = 0
        for ask in self._server.asks:
            if ask.prompt_number is not None:
                prompt = f"p{ask.prompt_number}"
                asks[prompt] += 1
                asked_again += prompt in acknowledged and ask.at > acknowledged[prompt]
        found = {
            "acknowledged": len(acknowledged),
            "lost": len((acknowledged.keys() | everything) - rows.keys() - rejects.keys()),
            "twice": (rows + rejects).total() - len(rows.keys() | rejects.keys()),
            "acknowledged and asked again": asked_again,
            "asked again": asks.total() - len(asks),
            "in flight at the kills": self.kills.total() * CONCURRENCY,
        }
        # a kill between the sync and our line leaves an answer that is kept without having been acknowledged
        assert self.prompts - found["in flight at the kills"] <= len(acknowledged.keys() & everything)
        assert {prompt for prompt in everything if int(prompt[1:]) % 10 == 3} == rejects.keys()
        assert found["lost"] == found["twice"] == found["acknowledged and asked again"] == 0, found
        assert found["asked again"] <= found["in flight at the kills"], found
        assert verify(path).problems == ()
        assert not [*(path / "journal").iterdir()]
        return found


def _prompts(path: Path, name: str) -> "Counter[Any]":
    return Counter(sql(path, f"SELECT prompt_id FROM {name}").column("prompt_id").to_pylist())
