"""Soft labels against hard ones on the demo's table, over three seeds: the figures in the README (make bench-seeds).

Needs demo/, which `make demo` leaves. Each seed trains both students anew, on the same rows, order and steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.config import read_config
from trainer.evaluate import evaluate
from trainer.fit import train

DEMO = Path(__file__).parents[1] / "demo"
SEEDS = (0, 1, 2)


def main() -> None:
    """Print a Markdown table, a line a seed; exit 1 when hard labels win."""
    config = read_config(DEMO / "train.toml")
    print("| seed | untrained | hard labels | soft labels |\n|---|---|---|---|")
    for seed in SEEDS:
        data = config.data.model_copy(update={"seed": seed})
        seeded = config.model_copy(update={"data": data, "out": DEMO / "seeds" / str(seed)})
        train(seeded)
        models = evaluate(seeded).content["models"]
        kl = [models[name]["kl"] for name in ("untrained", "hard_twin", "student")]
        print(f"| {seed} | " + " | ".join(f"{value:.3f}" for value in kl) + " |", flush=True)
        if kl[2] >= kl[1]:
            sys.exit(f"seed {seed}: hard labels did better")


if __name__ == "__main__":
    main()
