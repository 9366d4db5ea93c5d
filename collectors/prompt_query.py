"""Prompts by SQL: over Parquet as the table `prompts`, or over another soft-label table and its views.

The query runs in the locked connection that also serves `potstill sql`. A Parquet result streams; what is selected from
a soft-label table is held in memory, bounded as any query of it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from collectors.errors import PromptError
from storage.query import sql
from storage.sandbox import check_query, connect, lock

_MEMORY = "2GB"
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

    Raises PromptError for what cannot be read, and storage's QueryRefused or QueryFailed for a query that cannot be.
    """
    if is_table(path):
        for batch in sql(path, query or _ALL_PROMPTS).to_batches(max_chunksize=_BATCH):
            yield from batch.to_pylist()
        return
    try:
        with connect(_MEMORY) as connection:
            check_query(connection, query or "SELECT * FROM prompts", {"prompts"})
            lock(connection, {"prompts": pads.dataset(path, format="parquet")}, [])
            for batch in connection.sql(query or "SELECT * FROM prompts").to_arrow_reader(_BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise PromptError(f"{path} is not readable Parquet: {error}.") from error
    except Exception as error:
        if type(error).__module__.split(".")[0].lstrip("_") != "duckdb":
            raise
        raise PromptError(f"The query in prompts.sql failed: {' '.join(str(error).split())[:300]}.") from error
