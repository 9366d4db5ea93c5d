"""A few held-out answers token by token: what teacher and students thought of each token, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.forward import loss_logits
from trainer.tokenizer import TokenizerDefinition

CANDIDATES = 5


@dataclass(frozen=True, slots=True)
class TokenView:
    """One realised token: probabilities by model (teacher's None when unknown), and the teacher's best candidates."""

    text: str
    probability: dict[str, float | None]
    candidates: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Example:
    """One held-out row."""

    prompt: str
    tokens: list[TokenView]

    def to_record(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


@torch.no_grad()
def examples(
    batches: Sequence[Mapping[str, Tensor]], models: Mapping[str, Any], definition: TokenizerDefinition, *, count: int
) -> list[Example]:
    """The first `count` rows of batches that hold one row a sequence."""
    shown: list[Example] = []
    tokenizer = definition.build()
    for batch in batches:
        if len(shown) >= count:
            break
        logs = {name: loss_logits(model, batch).log_softmax(-1) for name, model in models.items()}
        sequence = batch["loss_index"] // batch["input_ids"].shape[1]
        for number in range(min(len(batch["input_ids"]), count - len(shown))):
            place = (sequence == number).nonzero()[:, 0]
            if len(place):
                start = int(batch["loss_index"][place[0]]) % batch["input_ids"].shape[1]
                prompt = tokenizer.decode(batch["input_ids"][number, : start + 1].tolist())
                shown.append(Example(prompt, [_view(batch, int(i), logs, tokenizer) for i in place]))
    return shown


def _view(batch: Mapping[str, Tensor], i: int, logs: Mapping[str, Tensor], tokenizer: Any) -> TokenView:
    target = int(batch["target_ids"][i])
    teacher = float(batch["target_logprobs"][i].exp())
    probability: dict[str, float | None] = {"teacher": None if math.isnan(teacher) else teacher}
    probability |= {name: float(log[i, target].exp()) if target >= 0 else None for name, log in logs.items()}
    known = zip(batch["top_ids"][i].tolist(), batch["top_logprobs"][i].exp().tolist(), strict=True)
    best = [(_text(tokenizer, token), p) for token, p in known if token >= 0][:CANDIDATES]
    return TokenView(_text(tokenizer, target) if target >= 0 else "�", probability, best)


def _text(tokenizer: Any, token: int) -> str:
    """What a token stands for inside a text; a piece of a character shows its bytes' name."""
    name = str(tokenizer.id_to_token(token))
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    return name if "\ufffd" in text or not text else text
