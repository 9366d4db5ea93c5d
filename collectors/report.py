"""What one start of a run came to, in figures and in a sentence."""

from dataclasses import dataclass

_EXIT_CODES = {"done": 0, "nothing to do": 0, "part": 4, "budget": 4, "interrupted": 130}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """One start of a run. `outcome`: done, nothing to do, part (rejects or unanswered items), budget or interrupted.

    `planned` counts the run's requests over all starts, the other figures are of this start; `tokens` are targets with
    labels, `usd` what was spent, at worst where the endpoint did not say.
    """

    run_id: str
    outcome: str
    detail: str
    planned: int
    committed: int = 0
    rejected: int = 0
    duplicates: int = 0
    unanswered: int = 0
    requests: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 done · 4 in part · 130 interrupted."""
        return _EXIT_CODES[self.outcome]

    def __str__(self) -> str:
        figures = f"{self.committed:,} rows committed, {self.tokens:,} tokens"
        for count, word in (
            (self.rejected, "rejected"),
            (self.duplicates, "duplicates"),
            (self.unanswered, "unanswered"),
        ):
            figures += f", {count:,} {word}" if count else ""
        figures += f", ${self.usd:,.4f}" if self.usd else ""
        return f"{self.run_id}: {self.outcome} in {self.seconds:,.1f} s: {figures}. {self.detail}".strip()
