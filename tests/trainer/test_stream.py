"""The stream: one alignment, the same batches again, resumed anywhere, on any number of ranks, from real tables."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.codec import Labels
from storage.rows import Sampling
from storage.table import Table
from tests.trainer.synthetic import MarkovTeacher, make_row
from trainer.errors import RowGroupLost, StreamRefused
from trainer.stream import Batch, SoftLabelStream

TEACHER = MarkovTeacher()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Rows of five lengths and two numbers of candidates, in several files."""
    table = Table.create(tmp_path_factory.mktemp("tables") / "mixed")
    for sequence, length in enumerate((3, 9, 14, 20, 27)):
        rows = TEACHER.rows(40, length=length, k=8 if sequence % 2 else 5, seed=sequence)
        table.append(rows, writer="test", sequence=sequence)
    return table


def stream(table: Table, **changes: object) -> SoftLabelStream:
    options: dict = {"sequence_length": 32, "batch_size": 4, "pack": True, "seed": 0, "holdout": 0.1, "split": "train"}
    return SoftLabelStream(table, **(options | {"window": 2} | changes))


def take(stream: SoftLabelStream, count: int) -> list[Batch]:
    return [batch for _, batch in zip(range(count), stream, strict=False)]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) or bool(a[n].isnan().any()) for n in a)
        for a, b in zip(one, other, strict=True)
    )


def joined(shares: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([share[name] for share in shares])


def labels_of(batches: list[Batch]) -> list[tuple]:
    """What is learned from a set of batches, in an order of its own: (context token, target, candidates, tail)."""
    result = []
    for batch in batches:
        context = batch["input_ids"].flatten()[batch["loss_index"]]
        for n in range(len(context)):
            ids = batch["top_ids"][n]
            kept = ids >= 0
            result.append(
                (
                    int(context[n]),
                    int(batch["target_ids"][n]),
                    tuple(ids[kept].tolist()),
                    tuple(batch["top_logprobs"][n][kept].tolist()),
                    float(batch["log_tail"][n]),
                )
            )
    return sorted(result)


def test_target_n_is_read_from_position_n_minus_1(table: Table) -> None:
    """The chain's next token depends on the last one alone, so a shifted reading gives other distributions."""
    for batch in take(stream(table), 5):
        context = batch["input_ids"].flatten()[batch["loss_index"]]
        expected = torch.from_numpy(TEACHER.log_p)[context].gather(1, batch["top_ids"].clamp(min=0))
        present = batch["top_ids"] >= 0
        assert torch.allclose(batch["top_logprobs"][present].double(), expected[present], rtol=2**-8)
        shifted = torch.from_numpy(TEACHER.log_p)[batch["target_ids"]].gather(1, batch["top_ids"].clamp(min=0))
        assert not torch.allclose(batch["top_logprobs"][present].double(), shifted[present], rtol=0.1)


def test_first_target_of_prompt_and_completion(tmp_path: Path) -> None:
    """A prompt of length L has its first target at L, read at L − 1; without a prompt the first token is no target."""
    table = Table.create(tmp_path / "t")
    labels = TEACHER.labels([2, 5, 6, 7], 4)
    rows = [make_row(0, labels, prompt_token_ids=np.array([2, 2], dtype=np.int32)), make_row(1, labels)]
    table.append(rows, writer="w", sequence=0)
    batches = take(stream(table, pack=False, batch_size=1, holdout=0.0), 2)
    by_length = {int(batch["tokens"]): batch for batch in batches}
    assert by_length[3]["input_ids"].tolist() == [[2, 2, 5, 6]]
    assert by_length[3]["loss_index"].tolist() == [1, 2, 3]
    assert by_length[3]["target_ids"].tolist() == [5, 6, 7]
    assert by_length[2]["input_ids"].tolist() == [[5, 6]]
    assert by_length[2]["loss_index"].tolist() == [0, 1]
    assert by_length[2]["target_ids"].tolist() == [6, 7]
    assert torch.equal(by_length[2]["top_ids"], by_length[3]["top_ids"][1:])


def test_packed_and_unpacked_learn_the_same(table: Table) -> None:
    packed = list(stream(table, repeat=False))
    single = list(stream(table, repeat=False, pack=False))
    assert labels_of(packed) == labels_of(single)
    assert sum(int(batch["rows"]) for batch in packed) == sum(int(batch["rows"]) for batch in single)
    assert sum(len(batch["input_ids"]) for batch in packed) < sum(len(batch["input_ids"]) for batch in single)


def test_documents_have_positions_of_their_own(table: Table) -> None:
    for batch in take(stream(table), 5):
        for ids, positions, documents in zip(
            batch["input_ids"], batch["position_ids"], batch["document_ids"], strict=True
        ):
            starts = torch.cat([torch.tensor([True]), documents[1:] != documents[:-1]])
            assert torch.equal(positions == 0, starts | (documents == 0))
            assert (ids[documents == 0] == 0).all()


def test_each_prompt_is_on_one_side(table: Table) -> None:
    train, held = stream(table, repeat=False, holdout=0.3), stream(table, repeat=False, holdout=0.3, split="holdout")
    assert len(train.index) + len(held.index) == 200
    assert 30 < len(held.index) < 90
    assert len(labels_of(list(held))) + len(labels_of(list(train))) == sum(40 * n for n in (3, 9, 14, 20, 27))


def test_every_row_once_an_epoch_and_another_order_in_the_next(table: Table) -> None:
    endless = stream(table, pack=False, batch_size=1, holdout=0.0)
    first, second = take(endless, 200), take(endless, 200)
    assert labels_of(first) == labels_of(second)
    assert not same(first, second)
    assert not same(first, take(stream(table, pack=False, batch_size=1, holdout=0.0, seed=1), 200))


@settings(max_examples=15, deadline=None)
@given(before=st.integers(0, 70), batch_size=st.integers(1, 7), pack=st.booleans())
def test_resumed_anywhere_is_byte_equal(table: Table, before: int, batch_size: int, pack: bool) -> None:
    whole = take(stream(table, batch_size=batch_size, pack=pack), before + 4)
    started = stream(table, batch_size=batch_size, pack=pack)
    take(started, before)
    resumed = stream(table, batch_size=batch_size, pack=pack)
    resumed.load_state_dict(started.state_dict())
    assert same(take(resumed, 4), whole[before:])


def test_ranks_may_change_at_any_step(table: Table) -> None:
    """1 → 2 → 3 → 1 ranks: the shares of each step, joined by rank, are the global batches of one rank."""
    whole = take(stream(table), 12)
    state, seen = stream(table).state_dict(), []
    for world, steps in ((1, 3), (2, 3), (3, 3), (1, 3)):
        ranks = [stream(table, rank=rank, world=world) for rank in range(world)]
        for one in ranks:
            one.load_state_dict(state)
        seen += list(zip(*(take(one, steps) for one in ranks), strict=True))
        states = [one.state_dict() for one in ranks]
        assert all(one == states[0] for one in states)
        state = states[0]
    for shares, batch in zip(seen, whole, strict=True):
        for name in ("input_ids", "position_ids", "document_ids", "target_ids", "top_ids", "top_logprobs", "log_tail"):
            assert torch.equal(joined(list(shares), name), batch[name])
        starts = np.cumsum([0, *(share["input_ids"].numel() for share in shares[:-1])])
        moved = [share["loss_index"] + int(start) for share, start in zip(shares, starts, strict=True)]
        assert torch.equal(torch.cat(moved), batch["loss_index"])


def test_batch_size_may_change_on_resume(table: Table) -> None:
    small = stream(table, batch_size=2)
    take(small, 3)
    large = stream(table, batch_size=6)
    large.load_state_dict(small.state_dict())
    assert torch.equal(take(large, 1)[0]["input_ids"], joined(take(small, 3), "input_ids"))


KILLED = """
import json, sys
from storage.table import Table
from trainer.stream import SoftLabelStream
stream = SoftLabelStream(Table.open(sys.argv[1]), sequence_length=32, batch_size=4, pack=True, seed=0, holdout=0.1,
                         split="train", window=2)
for batch in stream:
    print(json.dumps({"state": stream.state_dict(), "ids": batch["top_ids"].flatten().tolist()}), flush=True)
"""


def test_killed_and_resumed(table: Table) -> None:
    import json

    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(table.path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(7)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    whole = take(stream(table), 10)
    assert json.loads(lines[-1])["ids"] == whole[6]["top_ids"].flatten().tolist()
    resumed = stream(table)
    resumed.load_state_dict(json.loads(lines[-1])["state"])
    assert same(take(resumed, 3), whole[7:])


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"sequence_length": 31}, {"window": 3}, {"holdout": 0.2}, {"pack": False}]
)
def test_another_order_is_refused_on_resume(table: Table, change: dict) -> None:
    state = stream(table).state_dict()
    with pytest.raises(StreamRefused, match=f"{next(iter(change))} was"):
        stream(table, **change).load_state_dict(state)


def test_grown_table_is_refused_on_resume_and_not_seen_while_open(tmp_path: Path) -> None:
    table = TEACHER.table(tmp_path / "t", 20)
    opened = stream(table, pack=False, batch_size=1, holdout=0.0, repeat=False)
    table.append(TEACHER.rows(20, seed=3), writer="more", sequence=0)
    assert len(list(opened)) == 20
    with pytest.raises(StreamRefused, match="table_version was"):
        stream(table, pack=False, holdout=0.0).load_state_dict(opened.state_dict())
    pinned = stream(Table.open(table.path, table.version - 1), pack=False, holdout=0.0)
    pinned.load_state_dict(opened.state_dict())


def test_unmapped_candidates_fall_into_the_tail(table: Table) -> None:
    id_map = np.arange(TEACHER.size)
    id_map[[7, 11, 30]] = -1
    with pytest.raises(StreamRefused, match="not in the student's vocabulary"):
        take(stream(table, id_map=id_map), 1)
    plain, mapped = take(stream(table), 3), take(stream(table, id_map=id_map, unknown_id=0), 3)
    for one, other in zip(plain, mapped, strict=True):
        lost = torch.isin(one["top_ids"], torch.tensor([7, 11, 30]))
        assert lost.any()
        assert torch.equal(other["top_ids"], one["top_ids"].masked_fill(lost, -1))
        assert torch.equal(other["top_logprobs"] == -torch.inf, other["top_ids"] < 0)
        tail = one["log_tail"].exp() + (one["top_logprobs"].exp() * lost).sum(1)
        assert torch.allclose(other["log_tail"].exp(), tail, rtol=1e-5)
        assert torch.equal(
            other["target_ids"],
            one["target_ids"].masked_fill(torch.isin(one["target_ids"], torch.tensor([7, 11, 30])), -1),
        )
        assert not torch.isin(other["input_ids"], torch.tensor([7, 11, 30])).any()


def test_two_ids_to_one_are_refused(table: Table) -> None:
    with pytest.raises(StreamRefused, match="two teacher ids"):
        stream(table, id_map=np.zeros(TEACHER.size, dtype=np.int64))


def test_padding_is_a_token_that_the_student_has(table: Table) -> None:
    """Where the teacher's token 0 was trimmed away, an embedding would be asked for token −1."""
    id_map = np.arange(TEACHER.size) - 1
    for batch in take(stream(table, id_map=id_map), 3):
        padding = batch["document_ids"] == 0
        assert padding.any() and (batch["input_ids"][padding] == 0).all() and (batch["input_ids"] >= 0).all()


def test_text_without_candidates_is_a_hard_target(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "t")
    labels = TEACHER.labels([2, 5, 6, 7], 4)
    text = Labels(
        labels.token_ids,
        np.full(3, np.nan, dtype=np.float32),
        np.zeros(3, dtype=np.int32),
        np.empty((3, 0), dtype=np.int32),
        np.empty((3, 0), dtype=np.float32),
        np.zeros(3, dtype=np.float32),
    )
    prompt = np.array([2], dtype=np.int32)
    rows = [make_row(0, labels, prompt_token_ids=prompt), make_row(1, text, prompt_token_ids=prompt)]
    rows.append(replace(rows[0], key="f" * 64, labels=None))
    table.append(rows, writer="w", sequence=0)
    mixed = stream(table, holdout=0.0, repeat=False)
    (batch,) = list(mixed)
    bare = (batch["top_ids"] < 0).all(1)
    assert bare.sum() == 3
    assert (batch["weight"] == 1).all()
    assert (batch["target_ids"] >= 0).all()
    assert mixed.index.left_out == {"no token ids": 1}


def test_labels_of_another_temperature_are_left_out(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "t")
    warm, cut = Sampling(temperature=1.3, top_p=1.0), Sampling(temperature=1.0, top_p=0.9)
    rows = TEACHER.rows(2, sampling=warm, logprob_space="scaled") + TEACHER.rows(2, seed=1, sampling=warm)
    rows += TEACHER.rows(2, seed=2, sampling=cut, logprob_space="processed") + TEACHER.rows(2, seed=3, sampling=cut)
    table.append(rows, writer="w", sequence=0)
    used = stream(table, holdout=0.0, repeat=False)
    assert used.index.left_out == {"temperature of the labels is not 1": 4}
    assert not torch.cat([batch["from_teacher"] for batch in used]).any()


def test_long_rows_keep_what_fits(tmp_path: Path) -> None:
    table = TEACHER.table(tmp_path / "t", 4, length=40)
    (batch,) = list(stream(table, holdout=0.0, repeat=False, sequence_length=16))
    assert batch["document_ids"].tolist() == [[1] * 16] * 4
    assert int(batch["tokens"]) == 4 * 15  # a prompt of two: targets 2 … 16 are read at 1 … 15
    with pytest.raises(StreamRefused, match="no target fits"):
        stream(table, sequence_length=1)


def test_masked_rows_are_read_where_they_stand(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "t")
    positions = np.array([1, 4], dtype=np.int32)
    text = np.array([2, 0, 3, 4, 0, 5], dtype=np.int32)
    row = make_row(0, TEACHER.labels([2, 5, 6], 4), mode="mask", prompt_token_ids=text, target_positions=positions)
    table.append([row], writer="w", sequence=0)
    (batch,) = list(stream(table, holdout=0.0, repeat=False))
    assert batch["input_ids"][0, :6].tolist() == text.tolist()
    assert batch["loss_index"].tolist() == [1, 4]
    assert batch["target_ids"].tolist() == [5, 6]


def test_weights_by_source(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "t")
    rows = TEACHER.rows(3, prompt_source="a") + TEACHER.rows(3, seed=1, prompt_source="b")
    table.append(rows, writer="w", sequence=0)
    batches = list(stream(table, holdout=0.0, repeat=False, source_weights={"b": 0.25}))
    assert torch.cat([batch["weight"] for batch in batches]).sum() == 24 * 3 + 24 * 3 * 0.25


def damage(table: Table) -> str:
    """Flip bytes in the middle of the labels of one file."""
    file = table.files()[2]
    data = bytearray(file.path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = b"\xff" * 64
    file.path.write_bytes(data)
    return file.path.name


def test_damaged_row_group_is_named_counted_and_stops_the_run(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "t")
    for sequence in range(5):
        table.append(TEACHER.rows(8, seed=sequence, k=20), writer="w", sequence=sequence)
    name = damage(table)
    with pytest.raises(RowGroupLost, match=name):
        list(stream(table, holdout=0.0, repeat=False))
    lenient = stream(table, holdout=0.0, repeat=False, quarantine=0.25)
    rows = sum(int(batch["rows"]) for batch in lenient)
    assert rows == 32
    assert [name in damaged for damaged in lenient.index.damage.names] == [True]
    assert lenient.index.damage.lost == 8


def test_vanished_file_is_named(tmp_path: Path) -> None:
    table = TEACHER.table(tmp_path / "t", 20)
    table.files()[0].path.unlink()
    with pytest.raises(RowGroupLost, match="cannot be read"):
        stream(table)


def test_no_thread_outlives_its_iterator(table: Table) -> None:
    import threading

    take(stream(table), 2)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("soft-label")] == []


def test_works_in_a_data_loader_without_workers(table: Table) -> None:
    loader = torch.utils.data.DataLoader(stream(table), batch_size=None)
    assert next(iter(loader))["input_ids"].shape == (4, 32)
    with pytest.raises(StreamRefused, match="num_workers=0"):
        next(iter(torch.utils.data.DataLoader(stream(table), batch_size=None, num_workers=1)))
