"""What happens to a response after it arrived: durable in the journal, read, committed in a batch, then let go.

Everything that blocks runs in threads. One group is written while the next arrives, so the group grows with the load
and each sync to disk serves more responses. The price of a batch is the time until its rows can be seen.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from collectors.asking import Answer
from collectors.errors import Rejected
from collectors.labelling import Provenance, Readers, entry, label
from collectors.plan import Item
from storage.doubts import Doubt, doubts_of, flag_rows, flagged, keep_doubt
from storage.journal import Journal, RawResponse
from storage.ledgers import Reject
from storage.rows import Row
from storage.table import Table

# A batch of this many numbers takes some hundred megabytes while it is written.
_BATCH_VALUES = 8_000_000
_BATCH_ROWS = 5_000
# The first rows can be seen soon; a long run makes few, large files. Seconds.
_FIRST_COMMIT = 5.0
_LONGEST_WAIT = 60.0
_QUEUE = 512
# What may help to explain a response later; others (cookies, traces) may hold what must not be stored.
_KEPT_HEADERS = frozenset({"content-type", "date", "server", "x-request-id", "request-id", "openai-processing-ms"})
_GROUP = 256


@dataclass(frozen=True, slots=True)
class Received:
    """One response on its way to the journal; `answer` is None for a request that was rejected by its status."""

    raw: RawResponse
    answer: Answer | None


_Kept = tuple[Received, asyncio.Future[None]]
"""A response, and who waits until it is durable."""


@dataclass(slots=True)
class Counts:
    """What a start of a run came to so far."""

    committed: int = 0
    rejected: int = 0
    duplicates: int = 0
    tokens: int = 0


def received(shared: Provenance, answer: Answer) -> Received:
    """An answer as the journal keeps it."""
    response = answer.response
    raw = _raw(shared, answer.item, response.body, response.status, answer.received_at, response.headers)
    return Received(raw, answer)


def rejected(shared: Provenance, item: Item, error: Rejected) -> Received:
    """A response that was rejected before it was read, by its status or size, as the journal keeps it."""
    why = (error.code, error.detail)
    return Received(_raw(shared, item, error.raw, error.status or 0, datetime.now(UTC), {}, why), None)


def _raw(
    shared: Provenance,
    item: Item,
    body: bytes,
    status: int,
    at: datetime,
    headers: Mapping[str, str],
    why: tuple[str, str] | None = None,
) -> RawResponse:
    return RawResponse(
        key=item.key,
        prompt_id=item.prompt_id,
        sample_index=item.sample_index,
        item=entry(shared, item, why),
        status=status,
        headers={name: value for name, value in headers.items() if name in _KEPT_HEADERS},
        body=body,
        received_at=at,
    )


class Keeper:
    """Journals, reads and commits what `keep` is given, until `close`.

    keep_raw: whether each batch goes to the table's archive before the journal lets it go.
    may_write: called before each commit; what it raises ends the work, with the batch kept in the journal.
    committed: called after each commit with the counts so far and its keys; it runs in a thread and may write.
    """

    def __init__(
        self,
        journal: Journal,
        table: Table,
        readers: Readers,
        run_id: str,
        *,
        keep_raw: bool,
        may_write: Callable[[], None],
        settled: Callable[[Received, Row | Reject], None],
        committed: Callable[[Counts, Sequence[str]], None],
    ) -> None:
        self._doubts = doubts_of(table, run_id)
        self._doubting = threading.Lock()
        self.counts = Counts()
        self._journal = journal
        self._table = table
        self._readers = readers
        self._run_id = run_id
        self._keep_raw = keep_raw
        self._may_write = may_write
        self._settled = settled
        self._committed = committed
        self._queue: asyncio.Queue[_Kept | Literal["read", "close"]] = asyncio.Queue(_QUEUE)
        self._batch: list[Row | Reject] = []
        self._values = 0
        self._reading: asyncio.Task[None] | None = None
        self._commit: asyncio.Task[None] | None = None
        self._sequence = max([table.committed_sequence(run_id), *journal.batches(), -1]) + 1

    async def keep(self, one: Received) -> None:
        """Hand a response over and wait until it is durable: who asks on before that has more to lose than it knows."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._queue.put((one, durable))
        await durable

    async def close(self) -> None:
        """No more is coming: `work` ends when all is committed."""
        await self._queue.put("close")

    async def work(self) -> None:
        """Run until `close`; raises what the disk raises, with everything that was journalled kept."""
        loop = asyncio.get_running_loop()
        began = last = loop.time()
        open_end = True
        try:
            while open_end:
                pause = min(_LONGEST_WAIT, max(_FIRST_COMMIT, (last - began) / 10))
                group, open_end = await self._next_group(last + pause - loop.time())
                if group:
                    await self._take(group)
                if self._reading is not None and self._reading.done():
                    await self._end_reading()
                if self._commit is not None and self._commit.done():
                    await self._end_commit()
                if self._full() or loop.time() >= last + pause:
                    await self._start_commit()
                    last = loop.time()
            await self._end_reading()
            await self._start_commit()
            await self._end_commit()
        finally:
            going_on = [task for task in (self._reading, self._commit) if task is not None]
            await asyncio.gather(*going_on, return_exceptions=True)

    async def _next_group(self, seconds: float) -> tuple[list[_Kept], bool]:
        """What came meanwhile, or nothing when a group was read or the time is over; and whether more may come."""
        group: list[_Kept] = []
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                first = await self._queue.get()
        except TimeoutError:
            return group, True
        if isinstance(first, str):
            return group, first != "close"
        group.append(first)
        while len(group) < _GROUP and not self._queue.empty():
            more = self._queue.get_nowait()
            if more == "close":
                return group, False
            if not isinstance(more, str):
                group.append(more)
        return group, True

    async def _take(self, group: Sequence[_Kept]) -> None:
        """Journal a group while the one before it is still being read: who waits for the disk waits for no more."""
        raws = [one.raw for one, _ in group]
        await asyncio.to_thread(self._journal.record, raws)
        for _, durable in group:
            if not durable.done():  # its worker may have been cancelled meanwhile
                durable.set_result(None)
        await self._end_reading()
        reading = self._read([one for one, _ in group])
        self._reading = asyncio.create_task(reading)

    async def _end_reading(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            await reading

    async def _read(self, group: Sequence[Received]) -> None:
        try:
            outcomes = await asyncio.to_thread(self._label, [one.raw for one in group])
        finally:
            with suppress(asyncio.QueueFull):  # what was read, or went wrong, need not wait for the next group to come
                self._queue.put_nowait("read")
        for one, outcome in zip(group, outcomes, strict=True):
            self._settled(one, outcome)
        self._batch += outcomes
        self._values += sum(map(_values, outcomes))

    def _label(self, raws: Sequence[RawResponse]) -> list[Row | Reject]:
        return [label(raw, self._readers, self._run_id) for raw in raws]

    def _full(self) -> bool:
        return len(self._batch) >= _BATCH_ROWS or self._values >= _BATCH_VALUES

    async def _start_commit(self) -> None:
        await self._end_commit()
        if self._batch:
            batch, self._batch, self._values = self._batch, [], 0
            sequence, self._sequence = self._sequence, self._sequence + 1
            self._commit = asyncio.create_task(asyncio.to_thread(self._commit_batch, batch, sequence))

    async def _end_commit(self) -> None:
        commit, self._commit = self._commit, None
        if commit is not None:
            await commit

    def _commit_batch(self, batch: Sequence[Row | Reject], sequence: int) -> None:
        self._journal.assign([one.key for one in batch], sequence)
        self._write(batch, sequence)

    def _write(self, batch: Sequence[Row | Reject], sequence: int) -> None:
        self._may_write()
        if self._keep_raw:
            self._table.archive_batch(self._journal, writer=self._run_id, sequence=sequence)
        rejects = [one for one in batch if isinstance(one, Reject)]
        with self._doubting:
            rows = [flagged(one, self._doubts) for one in batch if isinstance(one, Row)]
            written = self._table.append(rows, writer=self._run_id, sequence=sequence)
        kept = self._table.append_rejects(rejects, writer=self._run_id, sequence=sequence)
        self.counts.committed += written.written
        self.counts.duplicates += written.duplicates
        self.counts.rejected += kept
        self.counts.tokens += sum(len(row.labels.token_ids) for row in rows if row.labels is not None)
        self._committed(self.counts, [one.key for one in batch])
        self._journal.release(sequence)

    def doubt(self, doubt: Doubt) -> int:
        """Flag the rows that a doubt covers, committed and to come; → how many were committed."""
        with self._doubting:
            keep_doubt(self._table, doubt)
            self._doubts.append(doubt)
            return flag_rows(self._table, doubt)

    def recover(self) -> list[tuple[RawResponse, Row | Reject]]:
        """Commit what an earlier start left in the journal, with no new request; → each response with its fate."""
        fates: list[tuple[RawResponse, Row | Reject]] = []
        for doubt in self._doubts:
            flag_rows(self._table, doubt)  # an earlier start may have been killed before it did
        for sequence in self._journal.batches():
            fates += self._recover(list(self._journal.batch(sequence)), sequence)
        left = list(self._journal.open_responses())
        if left:
            sequence, self._sequence = self._sequence, self._sequence + 1
            self._journal.assign([raw.key for raw in left], sequence)
            fates += self._recover(left, sequence)
        return fates

    def _recover(self, raws: list[RawResponse], sequence: int) -> list[tuple[RawResponse, Row | Reject]]:
        outcomes = self._label(raws)
        self._write(outcomes, sequence)
        return list(zip(raws, outcomes, strict=True))


def _values(outcome: Row | Reject) -> int:
    if isinstance(outcome, Reject) or outcome.labels is None:
        return 0
    return int(outcome.labels.top_ids.size + outcome.labels.token_ids.size)
