"""Students made from other models: every n-th layer of a local one, and low-rank adapters on a frozen one.

Layers are taken by the names of their weights, so any transformers model with numbered layers will do; what a model
keeps outside its layers (embeddings, norms, head) is copied whole.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from trainer.config import LoraSettings
from trainer.errors import TrainError
from trainer.task import TASKS, task_of

_LAYER = re.compile(r"^(?P<before>.*?\.(?:layers|layer|h)\.)(?P<number>\d+)(?P<after>\..*)$")


class SurgeryRefused(TrainError):
    """The model cannot be cut or adapted as the settings ask."""

    exit_code = 2


def every_nth_layer(model: Any, every: int) -> Any:
    """A model of layers 0, n, 2n, … of `model`, with its embeddings and head (DistilBERT, arXiv:1910.01108, n = 2).

    Raises SurgeryRefused when the weights have no numbered layers.
    """
    kept = range(0, model.config.num_hidden_layers, every)
    place = {old: new for new, old in enumerate(kept)}
    weights, found = {}, 0
    for name, tensor in model.state_dict().items():
        match = _LAYER.match(name)
        if match is None:
            weights[name] = tensor
        elif int(match["number"]) in place:
            weights[f"{match['before']}{place[int(match['number'])]}{match['after']}"] = tensor
            found += 1
    if not found:
        raise SurgeryRefused(f"{type(model).__name__} has no numbered layers to take every {every}th of.")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [model.config.layer_types[layer] for layer in kept]
    student = TASKS[task_of(model)].auto_class.from_config(config, dtype=model.dtype)
    student.load_state_dict(weights)
    student.tie_weights()
    return student


def add_adapters(model: Any, settings: LoraSettings) -> Any:
    """`model` frozen, with a low-rank adapter (LoRA, arXiv:2106.09685) on each linear layer but the head.

    A classifier's own layer is trained whole.

    Raises SurgeryRefused when peft is not installed or finds nothing to adapt.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise SurgeryRefused("[student.lora] needs peft: pip install peft") from error
    targets: Any = "all-linear" if settings.targets == "all-linear" else list(settings.targets)
    lora = LoraConfig(
        task_type=TASKS[task_of(model)].adapters,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise SurgeryRefused(f"[student.lora] is refused by peft: {error}") from error
