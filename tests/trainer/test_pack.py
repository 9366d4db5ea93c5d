"""Packing and the plan: every row once, nothing too long, little waste, any cursor gives the same rest."""

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.pack import Plan, best_fit

lengths = st.lists(st.integers(1, 64), max_size=200).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths=lengths)
def test_every_item_once_and_no_bin_too_full(lengths: np.ndarray) -> None:
    bins = best_fit(lengths, 64)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(lengths[members].sum() <= 64 for members in bins)
    assert all(members == sorted(members) for members in bins)


@given(lengths=lengths)
def test_no_two_neighbours_would_fit_in_one_bin(lengths: np.ndarray) -> None:
    """The defining property of an any-fit packing: a bin was opened only because no open one had room."""
    bins = best_fit(lengths, 64)
    for number, members in enumerate(bins):
        opened_by = members[0]
        for earlier in bins[:number]:
            filled = sum(lengths[i] for i in earlier if i < opened_by)
            assert filled + lengths[opened_by] > 64


def test_waste_is_small() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, size=2000)
    bins = best_fit(lengths, 1024)
    assert lengths.sum() / (1024 * len(bins)) > 0.97


def plan(pack: bool, repeat: bool, seed: int = 0) -> Plan:
    slots = np.random.default_rng(1).integers(1, 32, size=4000)
    first_row = np.concatenate([np.arange(0, 4000, 130), [4000]])
    return Plan(slots, first_row, 32, pack, seed, window=3, repeat=repeat)


def packs(plan: Plan, cursor: int) -> list[tuple[int, ...]]:
    return list(islice((pack for window in plan.windows(cursor) for pack in window.packs), 5000))


@given(cursor=st.integers(0, 6000), pack=st.booleans())
def test_any_cursor_gives_the_rest_of_the_same_sequence(cursor: int, pack: bool) -> None:
    whole = packs(plan(pack, repeat=True), 0)
    rest = packs(plan(pack, repeat=True), cursor)
    overlap = max(len(whole) - cursor, 0)
    assert rest[:overlap] == whole[cursor:]
    assert len(rest) == 5000


def test_one_epoch_has_every_row_once() -> None:
    for pack in (True, False):
        rows = [row for members in packs(plan(pack, repeat=False), 0) for row in members]
        assert sorted(rows) == list(range(4000))


def test_a_sequence_lies_in_the_blocks_of_its_window() -> None:
    made = plan(True, repeat=False)
    for window in made.windows(0):
        blocks = {int(np.searchsorted(made.first_row, row, side="right")) - 1 for pack in window.packs for row in pack}
        assert blocks <= set(window.blocks.tolist())


def test_no_rows_no_windows() -> None:
    empty = Plan(np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64), 32, True, 0, 3, repeat=True)
    assert list(empty.windows(0)) == []
