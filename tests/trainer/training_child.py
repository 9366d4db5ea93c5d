"""A training that writes down what it read and lost, to be killed and resumed by a test or a benchmark.

Each rank leaves one file for each micro-batch it has trained on; put together in the order of the ranks they are the
global batches, whatever the number of ranks was.
"""

import hashlib
import multiprocessing
import os
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.models.llama.modeling_llama  # noqa: F401  # loaded once, by the server that children fork from
from numpy.typing import NDArray

from trainer.config import read_config
from trainer.fit import train
from trainer.loop import DistillationTrainer

SEQUENCES = 8
PER_TOKEN = ("target_ids", "target_logprobs", "top_ids", "top_logprobs", "log_tail", "from_teacher", "weight")
PATIENCE = 240.0
SLOWED = 0.1
"""Seconds that each step takes longer, so that a kill shortly after a step has begun never finds the training over."""


def settings_file(folder: Path, world: int) -> Path:
    """Where the settings lie for so many ranks: the same training, another split of its steps."""
    return folder / f"train-{world}.toml"


def run_rank(rank: int, world: int, port: int, folder: Path, attempt: int, resume: bool) -> None:
    """One rank of a training; what torchrun would set is set here."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = sys.stderr = (folder / f"output-{attempt}-{rank}.txt").open("w", encoding="utf-8")
    torch.set_num_threads(1)
    plain = DistillationTrainer.compute_loss

    def written_down(self: DistillationTrainer, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        loss = plain(self, model, inputs, *rest, **options)
        step = self.state.global_step
        path = folder / "read" / f"{step:04}.{attempt:02}.{inputs['cursor'].item():08}.{rank}-{world}.npz"
        with path.with_suffix(".partial").open("wb") as file:
            np.savez(file, loss=loss.item(), **{name: tensor.numpy() for name, tensor in inputs.items()})
        path.with_suffix(".partial").rename(path)
        time.sleep(SLOWED)
        return loss

    DistillationTrainer.compute_loss = written_down  # type: ignore[method-assign]
    train(read_config(settings_file(folder, world)), resume=resume)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start(context: Any, world: int, folder: Path, attempt: int, resume: bool) -> list[Any]:
    """All ranks of a training, as processes."""
    (folder / "read").mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (world, port, folder, attempt, resume)
    ranks = [context.Process(target=run_rank, args=(rank, *arguments), daemon=True) for rank in range(world)]
    for rank in ranks:
        rank.start()
    return ranks


def finish(ranks: list[Any], folder: Path) -> None:
    """Wait for the end; anything but success tells what the ranks wrote."""
    for rank in ranks:
        rank.join(PATIENCE)
    if any(rank.exitcode != 0 for rank in ranks):
        told = "\n".join(path.read_text(encoding="utf-8")[-2000:] for path in sorted(folder.glob("output-*")))
        raise AssertionError(f"exit codes {[rank.exitcode for rank in ranks]}\n{told}")


def kill_in_step(ranks: list[Any], folder: Path, attempt: int, step: int, delay: float) -> bool:
    """SIGKILL to all ranks some time after one has read a batch of that step; False when they ended before."""
    deadline = time.monotonic() + PATIENCE
    while not any((folder / "read").glob(f"{step:04}.{attempt:02}.*.npz")):
        if any(rank.exitcode is not None for rank in ranks) or time.monotonic() > deadline:
            finish(ranks, folder)
            return False
        time.sleep(0.01)
    time.sleep(delay)
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.join()
    return True


def killed_training(context: Any, folder: Path, worlds: list[int], steps: int, seed: int = 0) -> int:
    """Train with one kill after each world size but the last, at random steps spread over the training; → kills."""
    dice, kills = random.Random(seed), 0
    for attempt, world in enumerate(worlds):
        resume = any(folder.glob("student/checkpoint-*/potstill.json"))
        ranks = start(context, world, folder, attempt, resume)
        if attempt == len(worlds) - 1:
            finish(ranks, folder)
            break
        done = last_checkpoint_step(folder)
        step = dice.randint(done, max(done, steps * (attempt + 1) // len(worlds)))
        kills += kill_in_step(ranks, folder, attempt, step, dice.random() * SLOWED)
    return kills


def last_checkpoint_step(folder: Path) -> int:
    """Of finished checkpoints; 0 when there is none."""
    found = (path.parent.name for path in folder.glob("student/checkpoint-*/potstill.json"))
    return max((int(name.removeprefix("checkpoint-")) for name in found), default=0)


def history(folder: Path) -> dict[int, set[tuple[str, float]]]:
    """step → every (digest of the global batch, loss) that some attempt trained on as that step.

    A step that was cut off before all its ranks had read is left out, as no training followed from it.
    """
    steps: dict[int, set[tuple[str, float]]] = {}
    attempts: dict[tuple[str, str], list[Path]] = {}
    for path in sorted((folder / "read").glob("*.npz")):
        step, attempt, *_ = path.name.split(".")
        attempts.setdefault((step, attempt), []).append(path)
    for (step, _), paths in attempts.items():
        if whole := _global_batch(paths):
            steps.setdefault(int(step), set()).add(whole)
    return steps


def _global_batch(paths: list[Path]) -> tuple[str, float] | None:
    """The shares of one step, micro-batch by micro-batch and rank by rank, put together."""
    world = int(paths[0].name.split(".")[3].split("-")[1])
    shares = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            shares.append({name: file[name] for name in file.files})
    if sum(len(share["input_ids"]) for share in shares) != SEQUENCES:
        return None
    places, first = [], 0
    for share in shares:
        places.append(share["loss_index"] + first * share["input_ids"].shape[1])
        first += len(share["input_ids"])
    joined: dict[str, NDArray[Any]] = {"loss_index": np.concatenate(places)}
    for name in ("input_ids", "position_ids", "document_ids", *PER_TOKEN):
        joined[name] = np.concatenate([share[name] for share in shares])
    digest = hashlib.sha256()
    for name in sorted(joined):
        digest.update(f"{name} {joined[name].dtype} {joined[name].shape}".encode() + joined[name].tobytes())
    return digest.hexdigest(), float(sum(share["loss"] for share in shares)) / world


def differences(killed: Path, whole: Path) -> tuple[int, float]:
    """Compare two histories; → how many steps were trained on more than once, and the largest difference of a loss.

    Raises AssertionError when a step is missing or one of its batches differs from the uninterrupted training's.
    """
    one, other = history(killed), history(whole)
    assert one.keys() == other.keys() == set(range(len(other))), "steps are missing"
    repeated, largest = 0, 0.0
    for step, (expected,) in ((step, tuple(found)) for step, found in other.items()):
        assert {digest for digest, _ in one[step]} == {expected[0]}, f"step {step} read another global batch"
        largest = max(largest, *(abs(loss - expected[1]) for _, loss in one[step]))
    names = [path.name.split(".")[:2] for path in (killed / "read").glob("*.npz")]
    repeated = len({tuple(name) for name in names}) - len(other)
    return repeated, largest


def forkserver() -> Any:
    """Children fork from a server that has imported what they need once, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.trainer.ranks", "torch._dynamo"])  # optimizers import the latter
    return context
