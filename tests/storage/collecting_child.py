"""A child process that collects: records responses, assigns them to batches, appends, releases; to be killed anywhere.

argv: table, run id, first number, how many. Prints a number once its response is durable in the journal.
"""

import sys
from pathlib import Path

from storage.journal import Journal, RawResponse
from storage.table import Table
from tests.storage.make_rows import START, make_row

BATCH = 5


def settle(table: Table, journal: Journal, sequence: int, run_id: str) -> None:
    numbers = [int(response.body) for response in journal.batch(sequence)]
    table.append([make_row(n, run_id=run_id, targets=2, k=2) for n in numbers], writer=run_id, sequence=sequence)
    journal.release(sequence)


def collect(path: Path, run_id: str, first: int, count: int) -> None:
    table = Table.open_or_create(path)
    journal = Journal.open(path / "journal", run_id)
    for sequence in journal.batches():
        settle(table, journal, sequence, run_id)
    done, known = journal.keys(), table.keys()
    open_keys = [response.key for response in journal.open_responses()]
    sequence = table.committed_sequence(run_id)
    wanted = [n for n in range(first, first + count) if make_row(n).key not in known and make_row(n).key not in done]
    for number in wanted:
        response = RawResponse(
            key=make_row(number).key,
            prompt_id=f"p{number}",
            sample_index=0,
            item=b"{}",
            status=200,
            body=str(number).encode(),
            received_at=START,
        )
        journal.record([response])
        print(number, flush=True)
        open_keys.append(response.key)
        if len(open_keys) >= BATCH or number == wanted[-1]:
            sequence += 1
            journal.assign(open_keys, sequence)
            open_keys = []
            settle(table, journal, sequence, run_id)
    if open_keys:
        journal.assign(open_keys, sequence + 1)
        settle(table, journal, sequence + 1, run_id)
    journal.close()


if __name__ == "__main__":
    collect(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
