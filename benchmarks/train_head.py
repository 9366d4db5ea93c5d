"""The fused head's time and memory beside other losses, and what a whole training step pays for soft labels.

Every loss runs in a process of its own, once to see its peak memory and once for its time, on one thread; times are CPU
time, since the machine is shared. Labels are random: they cost as much as real ones.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from storage.table import Table
from tests.trainer.head_memory import Measured, Name, Size, chunked_cross_entropy, measured, problem, resident
from trainer.forward import DistilledStudent, loss_hidden
from trainer.head import fused_distillation_loss
from trainer.objective import Objective
from trainer.stream import SoftLabelStream

LOSSES: tuple[Name, ...] = ("potstill", "chunked cross-entropy", "dense")
SIZES = tuple(Size(*shape, k, 256) for shape in ((2048, 32_000), (256, 262_144)) for k in (64, 20))
LIGER = "Liger-Kernel, chunked JSD"


def heads(repeats: int) -> dict[Size, dict[str, Measured | str]]:
    """Size → loss → what it took at the best of some turns, or why it could not run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.head_memory", "torch._dynamo"])
    found: dict[Size, dict[str, Measured | str]] = {}
    for size in SIZES:
        turns = [{name: measured(context, name, size) for name in LOSSES} for _ in range(repeats)]
        best = {name: Measured(*map(min, zip(*(turn[name] for turn in turns), strict=True))) for name in LOSSES}
        found[size] = {**best, LIGER: _liger(size)}
    return found


def _liger(size: Size) -> Measured | str:
    paths = [str(Path.cwd()), *os.environ.get("BENCH_PACKAGES", "").split(":")]
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.train_head", *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return "not installed" if "ModuleNotFoundError" in done.stderr else done.stderr.splitlines()[-1]
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure_liger(size: Size) -> Measured:
    """Its chunked distillation loss in plain torch; it makes the teacher's logits as well, from hidden states."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    torch.set_num_threads(1)
    loss = LigerFusedLinearJSDLoss(compiled=False, chunk_size=2**24 // size.vocabulary)

    def run(size: Size) -> tuple[int, float]:
        hidden_ND, weight_VD, targets = problem(size)
        teacher = hidden_ND.detach() * 0.9, weight_VD.detach().clone()
        before, started = resident("VmRSS"), time.process_time()
        loss(hidden_ND, weight_VD, *teacher, targets.target_ids_N).backward()
        return before, time.process_time() - started

    run(Size(8, 64, 4))
    before, _ = run(size)
    extra = resident("VmHWM") - before
    return Measured(extra, 0, run(size)[1])


def steps(table: Table, count: int = 8) -> dict[str, float]:
    """CPU seconds of a step of a student of 20 M parameters by hard and by soft labels, and the share of data waits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32_000, hidden_size=320, intermediate_size=960, num_hidden_layers=10)
    config.num_attention_heads, config.num_key_value_heads, config.tie_word_embeddings = 5, 5, True
    student = DistilledStudent(LlamaForCausalLM(config), Objective())
    options: dict[str, Any] = {"sequence_length": 256, "batch_size": 2, "pack": True, "seed": 0}
    known = np.arange(262_144)  # the student has the first 32,000 words of the labels' vocabulary
    id_map = np.where(known < config.vocab_size, known, -1)
    stream = SoftLabelStream(table, **options, holdout=0.0, split="train", id_map=id_map, unknown_id=0)
    batches, seconds = iter(stream), {"hard": [0.0], "soft": [0.0]}
    first, started = stream.wait_seconds, time.perf_counter()
    for step in range(2 * count + 2):
        batch = next(batches)
        if step == 1:  # from here on nothing is opened, planned or compiled
            first, started = stream.wait_seconds, time.perf_counter()
        kind, cpu = ("hard", "soft")[step % 2], time.process_time()
        if kind == "soft":
            student(**batch).loss.backward()
        else:
            hidden_ND = loss_hidden(student.model, batch)
            chunked_cross_entropy(
                hidden_ND, student.model.get_output_embeddings().weight, batch["target_ids"].clamp(min=0)
            )
        seconds[kind].append(time.process_time() - cpu)
        student.zero_grad()
    waited = (stream.wait_seconds - first) / (time.perf_counter() - started)
    middle = {kind: statistics.median(found[2:]) for kind, found in seconds.items()}
    return middle | {"count": count, "waited": waited, "parameters": sum(p.numel() for p in student.parameters())}


def compiled() -> float:
    """Largest difference of a gradient by torch.compile (one graph, C++ made and run) from the plain one."""
    hidden_ND, weight_VD, targets = problem(Size(64, 512, 8, 16))

    def loss(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        return fused_distillation_loss(hidden_ND, weight_VD, targets, Objective(hard_weight=0.5), chunk=32).loss

    leaves = hidden_ND, weight_VD
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    plain = torch.autograd.grad(loss(*leaves), leaves)
    return max(float(F.l1_loss(one, other, reduction="none").max()) for one, other in zip(found, plain, strict=True))


if __name__ == "__main__":
    print(json.dumps(measure_liger(Size(*map(int, sys.argv[1:])))._asdict()))
