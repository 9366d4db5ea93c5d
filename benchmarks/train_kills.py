"""A training killed by SIGKILL at twenty random steps, on one rank or two, beside one that was not (make nightly).

The children are those of the tests: transformers' Trainer, our stream, our checkpoints. Any global batch that is not
the uninterrupted training's byte by byte, or a loss that differs by 1e-6, ends with an AssertionError.
"""

from __future__ import annotations

import random
import tempfile
import time
from datetime import date
from pathlib import Path

from benchmarks.storage_figures import write_section
from tests.trainer.test_kills import kill_folder
from tests.trainer.training_child import differences, finish, forkserver, history, killed_training, start

STEPS, SAVE_STEPS, KILLS = 100, 3, 20


def main() -> None:
    """Run both trainings, compare, write the section."""
    dice, started = random.Random(2), time.monotonic()
    worlds = [1, 2, 1, *(dice.choice([1, 2]) for _ in range(KILLS - 3)), 1]
    with tempfile.TemporaryDirectory() as name:
        whole, killed = (kill_folder(Path(name) / part, STEPS, SAVE_STEPS) for part in ("whole", "killed"))
        context = forkserver()
        finish(start(context, 1, whole, 0, resume=False), whole)
        kills = killed_training(context, killed, worlds, STEPS, seed=3)
        assert kills == KILLS, f"{kills} of {KILLS} kills hit a running training"
        repeated, largest = differences(killed, whole)
        assert largest < 1e-6, f"a loss differs by {largest}"
        losses = [loss for step in sorted(history(whole)) for _, loss in history(whole)[step]]
    sizes = " → ".join(map(str, worlds))
    text = (
        f"{date.today()}: `python -m benchmarks.train_kills`, {STEPS} steps through transformers' Trainer, a\n"
        f"checkpoint every {SAVE_STEPS} steps of which one is kept, SIGKILL to all ranks at {kills} random steps, the\n"
        f"numbers of ranks (gloo) {sizes}, {time.monotonic() - started:.0f} s in all.\n"
        f"The {STEPS} global batches, also the {repeated} that were read again after a kill, are byte by byte those\n"
        f"of an uninterrupted training on one rank; the largest difference of a step's loss is {largest:.1e}\n"
        f"(loss {losses[0]:.3f} → {losses[-1]:.3f}).\n"
    )
    write_section("train-kills", f"## A training under SIGKILL\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
