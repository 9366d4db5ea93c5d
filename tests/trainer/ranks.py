"""What a test's other processes do: read the stream until killed, or train on some ranks from a saved state."""

import os
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from examples.torch_only import Student
from storage.table import Table
from trainer.head import fused_distillation_loss
from trainer.losses import LossParts, SoftTargets
from trainer.objective import Objective
from trainer.stream import Batch, SoftLabelStream

OBJECTIVE = Objective(hard_weight=0.3)


class WithLoss(nn.Module):
    """The example's student in double precision, its loss inside the forward that DDP wraps."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = Student(vocabulary).double()

    def forward(self, batch: Batch, normaliser: torch.Tensor) -> LossParts:
        hidden = self.student(batch["input_ids"], batch["position_ids"], batch["document_ids"]).flatten(0, 1)
        return fused_distillation_loss(
            hidden[batch["loss_index"]],
            self.student.tokens.weight,
            SoftTargets.from_batch(batch),
            OBJECTIVE,
            normaliser=normaliser,
            chunk=16,
        )


def read_until_killed(path: str, options: dict[str, Any], state: dict[str, Any], pipe: Connection) -> None:
    """Send (state, bytes of the labels) of each batch, for ever."""
    stream = SoftLabelStream(Table.open(path), **options)
    stream.load_state_dict(state)
    for batch in stream:
        pipe.send((stream.state_dict(), b"".join(batch[name].numpy().tobytes() for name in sorted(batch))))


def train_rank(
    rank: int, world: int, port: int, path: str, options: dict[str, Any], steps: int, folder: str, sharded: bool = False
) -> None:
    """Some steps of DDP over gloo from the state in `folder`, if any; leaves the new state and the losses there.

    `sharded`: FSDP2 with gradient checkpointing in its place.
    """
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    stream = SoftLabelStream(Table.open(path), rank=rank, world=world, **options)
    module = WithLoss(50)
    if sharded:
        _shard(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    saved, losses = Path(folder) / "state.pt", []
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        stream.load_state_dict(state["stream"])
        losses = state["losses"]
    model = module if sharded else DistributedDataParallel(module)
    for _, batch in zip(range(steps), stream, strict=False):
        tokens = batch["weight"].double().sum()
        dist.all_reduce(tokens)
        parts = model(batch, tokens / world)  # DDP averages gradients over ranks
        parts.loss.backward()
        if len(losses) == 0:
            gradients = {name: _whole(p.grad) for name, p in module.named_parameters()}
            if rank == 0:
                torch.save(gradients, Path(folder) / "first_gradient.pt")
        optimizer.step()
        optimizer.zero_grad()
        total = parts.loss.detach() / world
        dist.all_reduce(total)
        losses.append(total.item())
    weights = {name: _whole(tensor) for name, tensor in module.state_dict().items()}
    if rank == 0:
        states = {"module": weights, "optimizer": optimizer.state_dict()} if not sharded else {"module": weights}
        torch.save(states | {"stream": stream.state_dict(), "losses": losses}, saved)
    dist.barrier()
    dist.destroy_process_group()


def _shard(module: WithLoss) -> None:
    """FSDP2 of each layer and of the whole, whose forward holds the head; layers are computed again in backward."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in module.student.layers.layers:
        checkpoint(layer)
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _whole(tensor: Any) -> Any:
    """Of a sharded tensor all of it; a collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
