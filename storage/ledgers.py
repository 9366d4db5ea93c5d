"""The small Delta tables beside the rows: groups (what each audit_group stands for), rejects, runs.

They are kept with the same care as the rows: durable files, one commit each, exactly once by (writer, sequence).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from storage.data_files import write_data_file
from storage.delta_log import DeltaLog, LoggedFile, NewFile, statistics
from storage.errors import mapped
from storage.rows import Row, audit_group, signal
from storage.schema import GROUPS, REJECTS, RUNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A paid response that could not become a row, with its reason and its raw bytes."""

    key: str
    run_id: str
    prompt_id: str
    reason: str
    detail: str
    raw: bytes
    rejected_at: datetime
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One line per run: what was asked, what it came to, how far it is, how it ended. Saving it again replaces it."""

    run_id: str
    started_at: datetime
    updated_at: datetime
    outcome: str
    config: str
    policy_bundle: str
    decision: str
    endpoint_cards: tuple[str, ...] = ()
    detail: str | None = None
    planned: int = 0
    committed: int = 0
    rejected: int = 0
    duplicates: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    prompts_done: int = 0
    prompts_digest: str | None = None


class Ledger:
    """One small Delta table under `root`."""

    def __init__(self, root: Path, schema: pa.Schema) -> None:
        self.log = DeltaLog(root, schema)

    def paths(self) -> list[Path]:
        """Its data files."""
        with mapped(self.log.root):
            return [file.path for file in self.log.files(self.log.open())]

    def read(self) -> pa.Table:
        """All of its lines."""
        with mapped(self.log.root):
            files = self.log.files(self.log.open())
            return pa.concat_tables([self.log.schema.empty_table(), *(_read(file, self.log.schema) for file in files)])

    def append(self, table: pa.Table, transaction: tuple[str, int] | None = None) -> int:
        """Add lines; → how many, 0 when this transaction or one after it was committed before."""
        opened = self.log.open()
        if transaction is not None and committed_sequence(opened, transaction[0]) >= transaction[1]:
            return 0
        if table.num_rows:
            self.log.commit(opened, add=[self._new(table)], transaction=transaction)
        return int(table.num_rows)

    def replace(self, table: pa.Table, column: str, value: str) -> None:
        """Put one line in place of those whose `column` is `value`, in one commit."""
        opened = self.log.open()
        old = [
            file for file in self.log.files(opened) if _read(file, self.log.schema).column(column)[0].as_py() == value
        ]
        self.log.commit(opened, add=[self._new(table)], remove=old)

    def remove(self, doomed: Callable[[pa.Table], pa.ChunkedArray], note: Mapping[str, Any], dry_run: bool) -> int:
        """Remove the lines for which `doomed` gives true, in one commit; → how many they are."""
        opened = self.log.open()
        removed: list[LoggedFile] = []
        kept: list[pa.Table] = []
        count = 0
        for file in self.log.files(opened):
            table = _read(file, self.log.schema)
            mask = doomed(table)
            here = pc.sum(mask).as_py() or 0
            if here:
                count += here
                removed.append(file)
                kept.append(table.filter(pc.invert(mask)))
        if count and not dry_run:
            rest = [self._new(table) for table in kept if table.num_rows]
            self.log.commit(opened, add=rest, remove=removed, note=note)
        return count

    def _new(self, table: pa.Table) -> NewFile:
        return NewFile(write_data_file(self.log.root, table), None, statistics(table))


def committed_sequence(opened: DeltaTable, writer: str) -> int:
    """The last sequence that this writer committed, −1 when none."""
    sequence = opened.transaction_version(writer)
    return -1 if sequence is None else sequence


def _read(file: LoggedFile, schema: pa.Schema) -> pa.Table:
    with mapped(file.path), pq.ParquetFile(file.path) as opened:
        return opened.read(use_threads=False).select(schema.names).cast(schema)  # a few lines: threads only cost


def groups_of(rows: Iterable[Row]) -> pa.Table:
    """What the audit groups of these rows stand for, one line each, in order of their digest."""
    first = {audit_group(row): row for row in rows}
    lines = [
        {
            "audit_group": group,
            "model": row.teacher.model,
            "revision": row.teacher.revision,
            "access_path": row.teacher.access_path,
            "served_by": row.teacher.served_by,
            "signal": signal(row),
            "prompt_licence": row.prompt_licence,
            "terms": sorted(row.terms),
        }
        for group, row in sorted(first.items())
    ]
    return pa.Table.from_pylist(lines, schema=GROUPS)


def rejects_to_arrow(rejects: Sequence[Reject]) -> pa.Table:
    """Rejects as lines of the schema REJECTS."""
    return pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=REJECTS)


def run_to_arrow(run: RunRecord) -> pa.Table:
    """A run as one line of the schema RUNS."""
    return pa.Table.from_pylist([asdict(run)], schema=RUNS)


def runs_from_arrow(table: pa.Table) -> list[RunRecord]:
    """Runs again, in the order of their start."""
    lines = sorted(table.to_pylist(), key=lambda line: line["started_at"])
    return [RunRecord(**line | {"endpoint_cards": tuple(line["endpoint_cards"])}) for line in lines]
