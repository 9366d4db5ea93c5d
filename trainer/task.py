"""What a student is to learn, and which rows, model class and packing belong to it.

A causal student predicts the next token, a masked one what is behind a mask, a classifier which label a text has. The
task is a setting and not guessed, since a table may hold rows of all three.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import transformers

Task = Literal["causal", "masked", "classification"]


class TaskFacts(NamedTuple):
    """How transformers and a table name a task."""

    modes: tuple[str, ...]
    auto_class: Any
    """The class whose `from_pretrained` gives a model with the right head."""
    head: str
    """What such a model's class is called, behind its architecture's name."""
    architecture: str
    """A student of this task is one of these where nothing else is said."""
    adapters: str | None
    """What peft calls the task."""


TASKS: dict[Task, TaskFacts] = {
    "causal": TaskFacts(("generate", "score"), transformers.AutoModelForCausalLM, "ForCausalLM", "llama", "CAUSAL_LM"),
    "masked": TaskFacts(("mask",), transformers.AutoModelForMaskedLM, "ForMaskedLM", "bert", None),
    "classification": TaskFacts(
        ("classify",),
        transformers.AutoModelForSequenceClassification,
        "ForSequenceClassification",
        "bert",
        "SEQ_CLS",
    ),
}


def task_of(model: Any) -> Task:
    """The task of a transformers model by the name of its class; causal for other names."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return _named([type(inner).__name__])


def task_of_folder(config: Any) -> Task:
    """The task of a saved model, by its configuration."""
    return _named(config.architectures or ())


def _named(names: Iterable[str]) -> Task:
    return next((task for task, facts in TASKS.items() if any(name.endswith(facts.head) for name in names)), "causal")
