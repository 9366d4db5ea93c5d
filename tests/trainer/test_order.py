"""Order as pure functions: permutations that never change, holdout by prompt, windows that cover all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.order import LEAST_ROWS, derived_key, in_holdout, permutation, rows_of_window, share_of, windows

keys = st.integers(0, 2**64 - 1).map(np.uint64)


@given(count=st.integers(0, 500), key=keys)
def test_permutation_has_each_index_once(count: int, key: np.uint64) -> None:
    assert sorted(permutation(count, key).tolist()) == list(range(count))


def test_permutation_is_the_same_for_ever() -> None:
    """Recorded once: a change here changes the data order of every training that is to be resumed."""
    assert permutation(10, derived_key(0, 0, "blocks")).tolist() == [8, 9, 5, 7, 4, 0, 3, 2, 6, 1]
    assert permutation(10, derived_key(0, 1, "blocks")).tolist() == [1, 0, 5, 9, 8, 6, 3, 7, 2, 4]
    assert in_holdout([f"p{i}" for i in range(12)], 0.3).nonzero()[0].tolist() == [0, 1, 5, 9]


def test_permutations_of_different_keys_are_unrelated() -> None:
    """Spearman correlation of 2,000 indices stays within what chance gives (5 standard deviations)."""
    orders = [permutation(2000, derived_key(seed, epoch, "rows", 0)) for seed in range(3) for epoch in range(3)]
    correlation = np.corrcoef(np.array([*orders, np.arange(2000)]))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 5 / np.sqrt(2000)


@given(ids=st.lists(st.text(max_size=8)), small=st.floats(0, 1), large=st.floats(0, 1))
def test_holdout_depends_on_the_prompt_alone_and_grows(ids: list[str], small: float, large: float) -> None:
    small, large = sorted((small, large))
    held = in_holdout(ids, small)
    assert held.tolist() == [bool(in_holdout([text], small)[0]) for text in ids]
    assert not (held & ~in_holdout(ids, large)).any()


def test_holdout_takes_its_share() -> None:
    held = in_holdout((f"prompt {i}" for i in range(20_000)), 0.05)
    assert held.mean() == pytest.approx(0.05, abs=5 * np.sqrt(0.05 * 0.95 / 20_000))
    assert not in_holdout(["a"], 0.0).any()


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(0, 9), st.integers(1, 8))
def test_windows_cover_each_block_once(rows: list[int], epoch: int, window: int) -> None:
    rows_of_block = np.array(rows, dtype=np.int64)
    result = windows(rows_of_block, 0, epoch, window)
    assert sorted(np.concatenate([[], *result]).tolist()) == rows_of_block.nonzero()[0].tolist()
    for blocks in result[:-1]:
        assert len(blocks) >= window
        assert rows_of_block[blocks].sum() >= LEAST_ROWS


def test_rows_of_a_window_are_mixed_over_its_blocks() -> None:
    first_row = np.arange(0, 1601, 100)
    rows = rows_of_window(first_row, np.arange(16), seed=0, epoch=0, number=0)
    assert sorted(rows.tolist()) == list(range(1600))
    assert np.bincount(rows[:400] // 100, minlength=16).min() >= 10  # each block has 25 of the first 400, by chance


@given(st.integers(1, 40), st.integers(1, 40))
def test_shares_joined_are_the_global_batch(count: int, world: int) -> None:
    shares = [list(range(count))[share_of(count, rank, world)] for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
