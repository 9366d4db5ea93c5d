"""One random byte flipped in each file of a table: verify names the file; a stream never serves what it says."""

import json
import random
from datetime import UTC, datetime

import pytest
import torch

from policies.use import Use
from storage.audit import audit
from storage.errors import StorageError
from storage.ledgers import RunRecord
from storage.log_sums import SUMS
from storage.selection import Selection
from storage.table import Table
from storage.takedown import takedown
from storage.verify import verify
from tests.storage.make_rows import QWEN, make_rows
from tests.storage.test_table import reject
from trainer.errors import TrainError
from trainer.stream import SoftLabelStream


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table with a file of every kind that verify answers for."""
    table = Table.create(tmp_path_factory.mktemp("flipped") / "labels")
    table.append([*make_rows(0, 6), *make_rows(50, 3, teacher=QWEN)], writer="w", sequence=0)
    table.append(make_rows(20, 2), writer="w", sequence=1)
    table.append_rejects([reject(1)], writer="w", sequence=0)
    now = datetime.now(UTC)
    run = RunRecord(
        run_id="run", started_at=now, updated_at=now, outcome="done", config="{}", policy_bundle="b", decision="d"
    )
    table.save_run(run)
    table.save_tokenizer(json.dumps({"model": {"vocab": {"a": 0, "b": 999}}}).encode())
    table.save_training({"student": "s"})
    audit(table.path, Use.collect_only())
    takedown(table.path, Selection(where="prompt_id = 'p000020'"), reason="test")
    assert verify(table.path).problems == ()
    return table


def files_of(table):
    removed = set(table.log.root.rglob("*.parquet")) - {file.path for file in table.files()}
    there = [path for path in sorted(table.path.rglob("*")) if path.is_file() and path.name != ".lock"]
    return [path for path in there if path not in removed]


def flipped(data, dice):
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


@pytest.mark.parametrize("seed", range(2))
def test_verify_names_each_file(table, seed):
    dice, seen = random.Random(seed), set()
    for path in files_of(table):
        whole, name = path.read_bytes(), path.relative_to(table.path).as_posix()
        seen.add(name.split("/")[0] + "/_delta_log" * ("_delta_log" in name))
        path.write_bytes(flipped(whole, dice))
        try:
            problems = verify(table.path).problems
        finally:
            path.write_bytes(whole)
        # a record is named by its digest; of a log entry and its checksum either may be the altered one
        wanted = (name.split(".json")[0], SUMS) if path.name != SUMS and "_delta_log" not in name else (name, SUMS)
        assert any(wanted[0] in p.path or (wanted[1] in p.path + p.what and "_log" in name) for p in problems), name
    assert verify(table.path).problems == ()
    ledgers = {"soft_labels", "groups", "rejects", "runs"}
    logs = {f"{name}/_delta_log" for name in ledgers}
    assert seen >= ledgers | logs | {"decisions", "trainings", "takedowns", "tokenizers"}


def served(table):
    stream = SoftLabelStream(
        Table.open(table.path),
        sequence_length=64,
        batch_size=2,
        pack=True,
        seed=0,
        holdout=0.0,
        split="train",
        repeat=False,
    )
    return list(stream)


def same(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[n].nan_to_num(), b[n].nan_to_num()) if torch.is_tensor(a[n]) else a[n] == b[n] for n in a)
        for a, b in zip(one, other, strict=True)
    )


def test_a_stream_stops_or_serves_the_rows_as_they_were(table):
    """Never other numbers: a byte of a page stops it, one in a column that it does not read may pass."""
    dice, whole_batches, stopped = random.Random(7), served(table), 0
    for file in table.files():
        whole = file.path.read_bytes()
        for _ in range(12):
            file.path.write_bytes(flipped(whole, dice))
            try:
                assert same(served(table), whole_batches)
            except (StorageError, TrainError):
                stopped += 1
            finally:
                file.path.write_bytes(whole)
    assert stopped > 10 and same(served(table), whole_batches)
