"""Who the teacher is, and what one group of its outputs is: the facts that the terms documents are looked up by.

A vendor name or a hub tag is never enough: what binds follows from model, revision, access path and who served.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from policies.errors import FactsError

Signal = Literal["text", "top_k_logprobs", "logits", "hidden_states"]
SIGNALS: tuple[Signal, ...] = ("text", "top_k_logprobs", "logits", "hidden_states")
"""In the order of how much of the teacher they show."""

_TEACHER = re.compile(
    r"(?P<model>[^@#+\s]+)(?:@(?P<revision>[^#+\s]+))?(?:#(?P<path>[a-z0-9_-]+)(?:/(?P<served>[^+\s]+))?)?(?P<layers>(?:\+[^@#+\s]+)*)"
)


class Teacher(BaseModel):
    """One teacher as it was reached.

    `layers` are the models that this one was made from (the base of a fine-tune or of a third party's quantisation,
    the teacher of a teacher), where the register does not know them by itself. `model` may bring them: MODEL+LAYER….
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str = Field(min_length=1)
    revision: str | None = None
    access_path: str = "self_host"
    served_by: str | None = None
    layers: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _split_layers(cls, given: object) -> object:
        if isinstance(given, dict) and isinstance(given.get("model"), str) and "+" in given["model"]:
            model, *layers = given["model"].split("+")
            return {**given, "model": model, "layers": (*layers, *given.get("layers", ()))}
        return given

    @classmethod
    def parse(cls, text: str) -> Teacher:
        """Read `MODEL[@REVISION][#ACCESS_PATH[/SERVED_BY]][+LAYER…]`; raises FactsError when it is none of that."""
        match = _TEACHER.fullmatch(text.strip())
        if match is None:
            raise FactsError(f"teacher {text!r}: write MODEL[@REVISION][#ACCESS_PATH], as in google/gemma-3-270m@main")
        layers = tuple(layer for layer in match["layers"].split("+") if layer)
        return cls(
            model=match["model"],
            revision=match["revision"],
            access_path=match["path"] or "self_host",
            served_by=match["served"],
            layers=layers,
        )

    @property
    def name(self) -> str:
        """The model with its layers, as rows keep it; `model` reads it back."""
        return "+".join((self.model, *self.layers))

    @property
    def label(self) -> str:
        """The text that `parse` reads back, with nothing that is the default."""
        path = "" if self.access_path == "self_host" and self.served_by is None else f"#{self.access_path}"
        served = f"/{self.served_by}" if self.served_by is not None else ""
        revision = f"@{self.revision}" if self.revision is not None else ""
        return f"{self.model}{revision}{path}{served}" + "".join(f"+{layer}" for layer in self.layers)


class Material(BaseModel):
    """Facts about one group of teacher outputs, of `rows` rows and `tokens` tokens; never the outputs themselves.

    `terms` are the ids that the rows recorded when they were written ("gemma-tou@2025-03-24"), None before anything
    is collected. `prompt_licence` is an SPDX expression; "NOASSERTION" says that it was asked for and is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    teacher: Teacher
    signal: Signal
    prompt_licence: str | None = None
    terms: tuple[str, ...] | None = None
    rows: int = Field(default=0, ge=0)
    tokens: int = Field(default=0, ge=0)
    collected_from: date | None = None
    collected_to: date | None = None

    @model_validator(mode="after")
    def _dates_in_order(self) -> Material:
        if self.collected_from and self.collected_to and self.collected_from > self.collected_to:
            raise ValueError("collected_from lies after collected_to")
        return self
