"""200 SIGKILLs of a collecting process, half at labelled points between send and commit, half at random instants.

The run, its points and the checks are those of tests/collectors/killing.py. A run that is done is followed by another.
"""

import random
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

from benchmarks.storage_figures import write_section
from tests.collectors.killed_child import POINTS
from tests.collectors.killing import CONCURRENCY, KilledRun, rejected
from tests.collectors.servers import TeacherServer

KILLS = 200
PROMPTS = 1500


def main() -> None:
    """Run it, check it, write the section; any loss or doubling ends with an AssertionError."""
    chance = random.Random(7)
    kills: Counter[str] = Counter()
    found: Counter[str] = Counter()
    runs = 0
    started = time.monotonic()
    while kills.total() < KILLS:
        run_kills, counts = _one_run(chance, kills)
        kills += run_kills
        found += counts
        runs += 1
        print(f"{kills.total()} kills, {runs} runs", flush=True)
    text = _text(kills, found, runs, time.monotonic() - started)
    write_section("collect-kills", text)
    print(text)


def _one_run(chance: random.Random, before: "Counter[str]") -> "tuple[Counter[str], Counter[str]]":
    with tempfile.TemporaryDirectory() as folder, TeacherServer(rejected, latency=0.02) as server:
        run = KilledRun(Path(folder), server, PROMPTS)
        while not run.finished and (done := before + run.kills).total() < KILLS:
            if chance.random() < 0.5:
                run.kill_at_random(chance)
            else:
                run.kill_at(min(POINTS, key=lambda point: (done[point], chance.random())), chance)
        if not run.finished:
            run.finish()
        return run.kills, Counter(run.check() | {"prompts": PROMPTS})


def _text(kills: "Counter[str]", found: "Counter[str]", runs: int, seconds: float) -> str:
    at_points = kills.total() - kills["at random"]
    fewest = min(kills[point] for point in POINTS)
    return (
        "## Collecting under SIGKILL\n\n"
        f"{date.today()}, x86_64 with 2 cores shared with other work: {kills.total()} SIGKILLs of a collecting "
        "process\n"
        f"with {CONCURRENCY} requests in flight, {kills['at random']} at random instants and {at_points} at the "
        f"{len(POINTS)} labelled points\nbetween send and commit ({fewest} or more at each), over {runs} runs of "
        f"{PROMPTS:,} prompts, {seconds:.0f} s. Of {found['prompts']:,} answers,\n{found['acknowledged']:,} had been "
        "acknowledged (of the others the kill came after the disk had them and before a line said so): "
        f"{found['lost']} lost,\n{found['acknowledged and asked again']} asked again; "
        f"{found['twice']} rows twice; {found['asked again']:,} requests asked again,\nof the "
        f"{found['in flight at the kills']:,} that may have been in flight. Every tenth answer was malformed and is a "
        "reject; each table passed\n`potstill verify`, and no journal was left.\n"
    )


if __name__ == "__main__":
    main()
