"""One SELECT over Parquet files that are no soft-label table, such as a company's own prompts; the result streams.

It runs in the same locked connection as `storage.query`: the files are all that it can read.
"""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from storage.errors import ForeignDataError, QueryFailed
from storage.sandbox import check_query, connect, lock

_BATCH = 1024


def query_parquet(path: Path, query: str | None, *, name: str, memory_mb: int = 2048) -> Iterator[pa.RecordBatch]:
    """The result of `query` over a Parquet file, or a folder of them, as the table `name`; None selects everything.

    Raises QueryRefused for what is not one SELECT over `name`, QueryFailed, and ForeignDataError for no Parquet.
    """
    text = query or f"SELECT * FROM {name}"
    try:
        with connect(f"{memory_mb}MB") as connection:
            check_query(connection, text, {name})
            lock(connection, {name: pads.dataset(path, format="parquet")}, [])
            yield from connection.sql(text).to_arrow_reader(_BATCH)
    except (pa.ArrowException, OSError) as error:
        raise ForeignDataError(f"{path} is not readable Parquet: {error}.") from error
    except duckdb.Error as error:
        raise QueryFailed(f"The query failed: {' '.join(str(error).split())[:300]}.") from error
