"""Which distillation loss: one frozen record, refused with its reason when the mathematics does not hold.

Refusing here, before any data is read, is the trade: a few combinations that one could estimate badly are not offered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from trainer.divergences import Divergence, forward_kl, jensen_shannon, reverse_kl, skewed_kl, total_variation
from trainer.errors import LossRefused

DivergenceName = Literal["forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "total_variation"]
TailName = Literal["bucket", "bucket_shape", "realised_token", "renormalised", "zero"]

TAILS: dict[str, str] = {
    "bucket": "one event for all other tokens: exact masses, at least 0, the default",
    "bucket_shape": "the bucket, and the realised token where it lies in the tail: unbiased for the full KL, noisy",
    "realised_token": "the realised token in place of the bucket: unbiased for the full KL, noisier",
    "renormalised": "both sides rescaled to the candidates: the tail is not trained",
    "zero": "the teacher rescaled, the student not: teaches that the tail is impossible (others' default)",
}
ONLY_FORWARD_KL = ("bucket_shape", "realised_token", "zero")
ANY_TEMPERATURE = ("bucket", "renormalised")


@dataclass(frozen=True, slots=True)
class Objective:
    """Which loss; raises LossRefused with the reason.

    The loss of a position is (1 − hard_weight) · T² · divergence + hard_weight · CE(realised token). A position without
    soft labels counts its CE in full, one without a realised token its divergence alone.
    """

    divergence: DivergenceName = "forward_kl"
    tail: TailName = "bucket"
    temperature: float = 1.0
    hard_weight: float = 0.0
    beta: float = 0.5
    """Of jensen_shannon: the teacher's share of the mixture."""
    skew: float = 0.1
    """Of skewed_kl: the teacher's share of the mixture."""

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise LossRefused(f"divergence {self.divergence!r} is unknown: choose one of {', '.join(DIVERGENCES)}")
        if self.tail not in TAILS:
            raise LossRefused(f"tail {self.tail!r} is unknown: choose one of {', '.join(TAILS)}")
        if self.tail in ONLY_FORWARD_KL and self.divergence != "forward_kl":
            raise LossRefused(f"tail {self.tail!r} estimates the forward KL alone: choose bucket or renormalised")
        if not self.temperature > 0:
            raise LossRefused(f"temperature {self.temperature} is not above 0")
        if self.temperature != 1 and self.tail not in ANY_TEMPERATURE:
            raise LossRefused(
                f"tail {self.tail!r} at temperature {self.temperature}: the stored labels do not tell the teacher's "
                "tail at T ≠ 1. Use T = 1, or tail renormalised, or bucket with tail sums stored at collection"
            )
        for name, value in (("hard_weight", self.hard_weight), ("beta", self.beta), ("skew", self.skew)):
            if not 0 <= value <= 1:
                raise LossRefused(f"{name} {value} is not between 0 and 1")
        if self.divergence == "jensen_shannon" and self.beta in (0, 1):
            raise LossRefused(f"beta {self.beta} makes Jensen–Shannon 0 everywhere: choose forward_kl or reverse_kl")
        if self.divergence == "skewed_kl" and self.skew == 1:
            raise LossRefused("skew 1 makes the skewed KL 0 everywhere: choose one below 1")

    @property
    def needs_tail_sum(self) -> bool:
        """Whether the labels have to hold log Σ_tail p^{1/T} for this temperature."""
        return self.temperature != 1 and self.tail == "bucket"

    def make_divergence(self) -> Divergence:
        """The chosen function of (log_p_NE, log_q_NE) → [N]."""
        return DIVERGENCES[self.divergence](self)


DIVERGENCES: dict[str, Callable[[Objective], Divergence]] = {
    "forward_kl": lambda objective: forward_kl,
    "reverse_kl": lambda objective: reverse_kl,
    "jensen_shannon": lambda objective: partial(jensen_shannon, beta=objective.beta),
    "skewed_kl": lambda objective: partial(skewed_kl, skew=objective.skew),
    "total_variation": lambda objective: total_variation,
}
