"""Rows again from archived responses, after a reader was mended: no request, no cost, one commit.

Each response is read exactly as it was when it came, by the reader of its endpoint card and the tokenizer in the table.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from collectors.card import read_card
from collectors.config import RunConfig
from collectors.errors import CollectError
from collectors.labelling import Readers, label, tokenizer_digest
from collectors.opening import provider_for
from collectors.tokenizer import Tokenizer, stored_tokenizer
from storage.doubts import doubts_of, flagged
from storage.ledgers import Reject, RunRecord
from storage.replacing import Replaced, replace_rows
from storage.rows import Row
from storage.table import Table


class NothingArchived(CollectError):
    """No run of the table kept its raw responses."""

    exit_code = 2


def reparse_table(path: Path) -> Replaced:
    """Read all archived responses of a table again and put the rows and rejects that changed in place of the old.

    Raises NothingArchived, TableDamaged for an archive that is not as it was written; then nothing was changed.
    """
    table = Table.open(path)
    if not table.archive.files():
        raise NothingArchived(
            f"{path} has no archived responses: set keep_raw = true in the run file before collecting."
        )
    note = {"operation": "reparse", "at": datetime.now(UTC).isoformat()}
    return replace_rows(table, _Reading(table).outcomes(), note)


class _Reading:
    """The readers of all runs that a table has."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._runs = {run.run_id: run for run in table.runs()}
        self._doubts = doubts_of(table)
        self._tokenizers: dict[str, Tokenizer] = {}
        self._readers: dict[tuple[str, str | None], Readers] = {}

    def outcomes(self) -> Iterator[Row | Reject]:
        """What each archived response reads as now."""
        for file in self._table.archive.files():
            for run_id, response in self._table.archive.responses(file):
                found = label(response, self._for(run_id, tokenizer_digest(response)), run_id)
                yield flagged(found, self._doubts) if isinstance(found, Row) else found

    def _for(self, run_id: str, digest: str | None) -> Readers:
        if (run_id, digest) not in self._readers:
            self._readers[run_id, digest] = self._made(self._runs[run_id], digest)
        return self._readers[run_id, digest]

    def _made(self, run: RunRecord, digest: str | None) -> Readers:
        config = RunConfig.model_validate_json(run.config)
        tokenizer = self._tokenizer(digest)
        cards = [read_card(text.encode()) for text in run.endpoint_cards]
        return Readers(lambda card: provider_for(config, card, tokenizer), cards)

    def _tokenizer(self, digest: str | None) -> Tokenizer | None:
        if digest is None:
            return None
        if digest not in self._tokenizers:
            self._tokenizers[digest] = stored_tokenizer(self._table.tokenizer(digest))
        return self._tokenizers[digest]
