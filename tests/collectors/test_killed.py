"""A real collecting process killed at each labelled point between send and commit, and at random. The long version with
200 kills is benchmarks/collect_kills.py."""

import random
from pathlib import Path

from tests.collectors.killed_child import POINTS
from tests.collectors.killing import KilledRun, rejected
from tests.collectors.servers import TeacherServer


def test_a_kill_at_any_point_loses_nothing_doubles_nothing_and_costs_at_most_what_was_in_flight(tmp_path: Path) -> None:
    chance = random.Random(3)
    with TeacherServer(rejected, latency=0.1) as server:
        run = KilledRun(tmp_path, server, prompts=600)
        for point in POINTS:
            run.kill_at(point, chance)
        for _ in range(5):
            run.kill_at_random(chance)
        run.finish()
        assert run.kills == dict.fromkeys(POINTS, 1) | {"at random": 5}
        run.check()
