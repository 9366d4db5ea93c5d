"""Prompts by SQL: over Parquet as the table `prompts`, or over another soft-label table and its views.

The query runs in the locked connection that also serves `potstill sql`. A Parquet result streams; what is selected from
a soft-label table is held in memory, bounded as any query of it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collectors.errors import PromptError
from storage.errors import ForeignDataError, QueryFailed
from storage.parquet_query import query_parquet
from storage.query import sql

_BATCH = 1024
# What was asked of another teacher. A rendered prompt beside its messages is left out: it is another template's.
_ALL_PROMPTS = """
SELECT prompt_id AS id, CASE WHEN messages IS NULL THEN prompt END AS prompt, messages, prompt_licence AS licence
FROM soft_labels WHERE sample_index = 0 ORDER BY prompt_id
"""


def is_table(path: Path) -> bool:
    """Whether the path is a soft-label table."""
    return (path / "soft_labels").is_dir()


def query_prompts(path: Path, query: str | None) -> Iterator[dict[str, Any]]:
    """The lines that a query finds; without one all prompts of a soft-label table.

    Raises PromptError for what cannot be read, and storage's QueryRefused for a query that may not be run.
    """
    if is_table(path):
        for batch in sql(path, query or _ALL_PROMPTS).to_batches(max_chunksize=_BATCH):
            yield from batch.to_pylist()
        return
    try:
        for batch in query_parquet(path, query, name="prompts"):
            yield from batch.to_pylist()
    except ForeignDataError as error:
        raise PromptError(str(error)) from error
    except QueryFailed as error:
        raise PromptError(f"prompts.sql cannot be used. {error}") from error
