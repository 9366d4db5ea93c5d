"""One loss in a process of its own: its peak memory, its time and the largest tensor that any operation made."""

import re
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.head import CHUNK_ELEMENTS, fused_distillation_loss
from trainer.losses import SoftTargets, distillation_loss, student_logits
from trainer.objective import Objective

Name = Literal["potstill", "dense", "chunked cross-entropy"]
OBJECTIVE = Objective(hard_weight=0.5)


class Size(NamedTuple):
    tokens: int
    vocabulary: int
    candidates: int
    width: int = 64


class Measured(NamedTuple):
    extra_bytes: int
    """Resident memory at its highest, less what inputs and labels took before."""
    largest_elements: int
    seconds: float
    """CPU of forward and backward, of the second of two runs."""


class LargestTensor(TorchDispatchMode):
    """Sees every tensor that any operation makes, in forward and backward, and keeps the largest one's size."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def problem(size: Size) -> tuple[Tensor, Tensor, SoftTargets]:
    """A student near no teacher at all: random numbers cost as much as real ones."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(size.tokens, size.width, requires_grad=True)
    weight_VD = (torch.randn(size.vocabulary, size.width) / size.width**0.5).requires_grad_()
    first_N1 = torch.randint(size.vocabulary, (size.tokens, 1))
    stride = size.vocabulary // size.candidates
    ids_NK = ((first_N1 + stride * torch.arange(size.candidates)) % size.vocabulary).int()
    top_NK = torch.randn(size.tokens, size.candidates).log_softmax(-1) - 0.1
    tail_N = torch.log1p(-top_NK.exp().sum(-1))
    return hidden_ND, weight_VD, SoftTargets(ids_NK[:, 0].long(), ids_NK, top_NK, tail_N, torch.ones(size.tokens))


def run(name: Name, hidden_ND: Tensor, weight_VD: Tensor, targets: SoftTargets) -> None:
    """Forward and backward of one loss."""
    hidden_ND.grad = weight_VD.grad = None
    if name == "potstill":
        fused_distillation_loss(hidden_ND, weight_VD, targets, OBJECTIVE).loss.backward()
    elif name == "dense":
        logits = student_logits(hidden_ND @ weight_VD.T, targets)
        distillation_loss(logits, targets, OBJECTIVE).loss.backward()
    else:
        chunked_cross_entropy(hidden_ND, weight_VD, targets.target_ids_N)


def chunked_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, ids_N: Tensor) -> None:
    """Hard labels alone, with as much memory: each chunk's logits are made again in backward."""

    def loss(hidden_CD: Tensor, ids_C: Tensor) -> Tensor:
        return F.cross_entropy(hidden_CD @ weight_VD.T, ids_C, reduction="sum")

    total = torch.zeros(())
    chunk = CHUNK_ELEMENTS // len(weight_VD)
    for start in range(0, len(ids_N), chunk):
        part = slice(start, start + chunk)
        total = total + torch.utils.checkpoint.checkpoint(loss, hidden_ND[part], ids_N[part], use_reentrant=False)
    (total / len(ids_N)).backward()


def resident(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of this process now, or at most so far."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def measure(name: Name, size: Size, pipe: Connection, threads: int = 1) -> None:
    """Send what one loss took; for a process that ends afterwards."""
    torch.set_num_threads(threads)
    parts = problem(size)
    small = problem(Size(8, 64, 4))
    run(name, *small)  # what is loaded at the first use is no memory of the loss
    before = resident("VmRSS")
    with LargestTensor() as seen:
        run(name, *parts)
    extra = resident("VmHWM") - before
    started = time.process_time()
    run(name, *parts)
    pipe.send(Measured(extra, seen.elements, time.process_time() - started))


def measured(context: Any, name: Name, size: Size) -> Measured:
    """In a process of its own, forked by a server that has only imported."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, size, sender))
    process.start()
    sender.close()
    found: Measured = receiver.recv()
    process.join()
    return found
