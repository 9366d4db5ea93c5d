"""The run's own record in the table: what it is, how far it is, what it cost, how it ended; saved at the start, with
each commit, and at the end. After a kill the last one saved says what was reserved, so that no budget is passed."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from collectors.bookmark import Bookmark
from collectors.budget import Budget, Spend
from collectors.card import EndpointCard, read_card
from collectors.config import RunConfig
from collectors.keeping import Counts
from policies.decision import Decision
from storage.ledgers import RunRecord
from storage.table import Table


def earlier_cards(table: Table, config: RunConfig) -> list[EndpointCard]:
    """The endpoint cards of this run's earlier starts, the newest last."""
    return [
        read_card(text.encode()) for run in table.runs() if run.run_id == config.run_id for text in run.endpoint_cards
    ]


class Chronicle:
    """The record of one run over all of its starts."""

    def __init__(self, table: Table, config: RunConfig) -> None:
        self._table = table
        self._config = config
        self.decision: Decision | None = None
        self.bookmark: Bookmark | None = None
        self._before = next((run for run in table.runs() if run.run_id == config.run_id), None)
        self.cards = earlier_cards(table, config)
        self.planned = 0

    @property
    def place(self) -> str | None:
        """How far the prompts were committed by the last record, unless rows were taken out of the table since."""
        if self._before is None or sum(file.rows for file in self._table.files()) < self._before.committed:
            return None
        return self._before.prompts_digest

    @property
    def stored(self) -> bool:
        """Whether earlier starts committed any row."""
        return self._before is not None and self._before.committed > 0

    @property
    def last_saved(self) -> datetime | None:
        """When an earlier start last saved the record."""
        return None if self._before is None else self._before.updated_at

    @property
    def spent(self) -> Spend:
        """What earlier starts spent, with what they had reserved when they were killed."""
        before = self._before
        if before is None:
            return Spend()
        return Spend(before.requests, before.prompt_tokens, before.completion_tokens, before.cost_usd or 0.0)

    def add_cards(self, cards: Sequence[EndpointCard]) -> None:
        """Cards of this start; the newest is the last."""
        new = {card.digest for card in cards}
        self.cards = [*(card for card in self.cards if card.digest not in new), *cards]

    def save(self, outcome: str, counts: Counts, budget: Budget, detail: str | None = None) -> None:
        """Put the record in place of the last one. While the run goes on, what is reserved counts as spent."""
        before, now = self._before, datetime.now(UTC)
        assert self.decision is not None
        place = (0, None) if self.bookmark is None else self.bookmark.text()
        spent = budget.spent + budget.reserved
        self._table.save_run(
            RunRecord(
                run_id=self._config.run_id,
                started_at=now if before is None else before.started_at,
                updated_at=now,
                outcome=outcome,
                config=json.dumps(self._config.model_dump(mode="json"), sort_keys=True, ensure_ascii=False),
                policy_bundle=self.decision.bundle,
                decision=self.decision.digest,
                endpoint_cards=tuple(card.to_json().decode() for card in self.cards),
                detail=detail,
                planned=self.planned,
                committed=counts.committed + (0 if before is None else before.committed),
                rejected=counts.rejected + (0 if before is None else before.rejected),
                duplicates=counts.duplicates + (0 if before is None else before.duplicates),
                requests=spent.requests,
                prompt_tokens=spent.prompt_tokens,
                completion_tokens=spent.completion_tokens,
                prompts_done=place[0],
                prompts_digest=place[1],
                cost_usd=None if self._config.price is None else spent.usd,
            )
        )
