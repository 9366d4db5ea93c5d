"""Optimizer, schedule, gradient scaler and random numbers of a checkpoint, as safetensors and JSON: nothing is pickled.

For the loops that run in one process a GPU. FSDP and DeepSpeed shard the state, and keep their own formats.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import TrainError

OPTIMIZER, RANDOM = "optimizer", "random"


class StateNotSaved(TrainError):
    """The state holds something that is neither a tensor nor plain data."""


def save_state(folder: Path, name: str, state: Any) -> None:
    """Nested dicts, lists and tuples of tensors and plain values → NAME.safetensors and NAME.json.

    Raises StateNotSaved for anything else.
    """
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, "", tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    try:
        text = json.dumps(plain)
    except TypeError as error:
        raise StateNotSaved(
            f"The state of the {name} cannot be kept without pickle ({error}); choose another."
        ) from error
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def load_state(folder: Path, name: str) -> Any:
    """What `save_state` was given; tuples come back as lists. Tensors are on the CPU."""
    tensors = load_file(folder / f"{name}.safetensors")
    return _with_tensors(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors)


def _without_tensors(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON with {"tensor": name} for tensors, and [key, value] pairs for dicts, whose keys may be numbers."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {"tensor": place}
    if isinstance(value, dict):
        return {"dict": [[key, _without_tensors(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _with_tensors(item, tensors) for key, item in value["dict"]}


def random_state() -> dict[str, Any]:
    """The random numbers of Python, numpy and torch, on the CPU and on each GPU."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from `random_state`. GPUs beyond those that were saved keep their numbers."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(state["torch"])
    for device, saved in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(saved, device)
