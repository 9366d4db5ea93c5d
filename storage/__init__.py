"""potstill room: storage. The soft-label table: small, exact, transactional, open to SQL.

Names are imported on first use, so that the command line stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.codec import Labels as Labels
    from storage.codec import labels_from_arrow as labels_from_arrow
    from storage.codec import log_tail as log_tail
    from storage.errors import StorageError as StorageError
    from storage.journal import Journal as Journal
    from storage.journal import RawResponse as RawResponse
    from storage.keys import KeySet as KeySet
    from storage.ledgers import Reject as Reject
    from storage.ledgers import RunRecord as RunRecord
    from storage.parquet_query import query_parquet as query_parquet
    from storage.query import sql as sql
    from storage.rows import Message as Message
    from storage.rows import Row as Row
    from storage.rows import Sampling as Sampling
    from storage.rows import TailSum as TailSum
    from storage.rows import TeacherRecord as TeacherRecord
    from storage.rows import Usage as Usage
    from storage.rows import rows_from_arrow as rows_from_arrow
    from storage.rows import rows_to_arrow as rows_to_arrow
    from storage.table import Append as Append
    from storage.table import DataFile as DataFile
    from storage.table import Table as Table

_HOME = {
    "Append": "storage.table",
    "DataFile": "storage.table",
    "Journal": "storage.journal",
    "KeySet": "storage.keys",
    "Labels": "storage.codec",
    "Message": "storage.rows",
    "RawResponse": "storage.journal",
    "Reject": "storage.ledgers",
    "Row": "storage.rows",
    "RunRecord": "storage.ledgers",
    "Sampling": "storage.rows",
    "StorageError": "storage.errors",
    "Table": "storage.table",
    "TailSum": "storage.rows",
    "TeacherRecord": "storage.rows",
    "Usage": "storage.rows",
    "labels_from_arrow": "storage.codec",
    "log_tail": "storage.codec",
    "query_parquet": "storage.parquet_query",
    "rows_from_arrow": "storage.rows",
    "rows_to_arrow": "storage.rows",
    "sql": "storage.query",
}

__all__ = [
    "Append",
    "DataFile",
    "Journal",
    "KeySet",
    "Labels",
    "Message",
    "RawResponse",
    "Reject",
    "Row",
    "RunRecord",
    "Sampling",
    "StorageError",
    "Table",
    "TailSum",
    "TeacherRecord",
    "Usage",
    "labels_from_arrow",
    "log_tail",
    "query_parquet",
    "rows_from_arrow",
    "rows_to_arrow",
    "sql",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
