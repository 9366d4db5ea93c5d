import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from storage.codec import LOSSLESS, entropy, list_column, list_values, log_tail, round_mantissa
from storage.schema import SOFT_LABELS
from tests.storage.make_rows import make_labels, sample

FLOATS = st.floats(-60, 0, width=32) | st.just(-np.inf)


@settings(deadline=None)
@given(arrays.arrays(np.float32, st.integers(0, 40), elements=FLOATS), st.integers(1, 22))
def test_rounding_stays_within_its_bound_and_keeps_the_order(values, bits):
    rounded = round_mantissa(values, bits)
    finite = np.isfinite(values) & (np.abs(values) >= np.finfo(np.float32).tiny)
    error = np.abs(rounded[finite].astype(np.float64) - values[finite]) / np.abs(values[finite].astype(np.float64))
    assert (error <= 2.0 ** -(bits + 1)).all()
    assert (np.isneginf(rounded) == np.isneginf(values)).all()
    ordered = round_mantissa(np.sort(values), bits)
    assert (ordered[1:] >= ordered[:-1]).all()
    assert (round_mantissa(rounded, bits) == rounded).all()


def test_rounding_drops_bits_and_lossless_does_not():
    values = np.array([-0.1234567, -3.7654321, -np.inf, np.nan], dtype=np.float32)
    rounded = round_mantissa(values, 8)
    assert ((rounded[:2].view(np.uint32) & 0x7FFF) == 0).all()
    assert rounded[0] != values[0]
    assert np.isneginf(rounded[2]) and np.isnan(rounded[3])
    assert round_mantissa(values, LOSSLESS) is values
    with pytest.raises(ValueError, match="within 1 and 23"):
        round_mantissa(values, 0)


def test_tail_of_real_labels_is_exact_where_the_logits_are_known():
    logprobs = sample()["logprobs"].astype(np.float64)
    exact = np.log1p(-np.exp(logprobs).sum(axis=1))
    assert np.allclose(log_tail(logprobs), exact, rtol=1e-6)
    assert np.isneginf(log_tail(np.array([[0.0, -np.inf]])))
    assert np.isneginf(log_tail(np.array([[1e-4, -9.0]])))


def test_entropy_counts_the_tail_as_one_bucket():
    top = np.log(np.array([[0.5, 0.25]], dtype=np.float32))
    assert entropy(top, np.log(np.array([0.25], dtype=np.float32))) == pytest.approx(1.5 * np.log(2))
    missing = np.array([[0.0, -np.inf]], dtype=np.float32)
    assert entropy(missing, np.array([-np.inf], dtype=np.float32)) == pytest.approx(0.0)


LISTS = st.lists(st.none() | arrays.arrays(np.float32, st.integers(0, 6), elements=FLOATS), max_size=8)


@settings(deadline=None)
@given(LISTS)
def test_list_columns_come_back(lists):
    column = list_column(lists, SOFT_LABELS.field("log_tail").type)
    column.validate(full=True)
    offsets, values = list_values(column)
    assert [a is None for a in lists] == column.is_null().to_pylist()
    for i, array in enumerate(lists):
        assert (values[offsets[i] : offsets[i + 1]] == ([] if array is None else array)).all()


def test_values_of_a_sliced_column_follow_its_offsets():
    column = list_column([np.arange(3), np.arange(5), np.arange(2)], SOFT_LABELS.field("token_ids").type)
    offsets, values = list_values(pa.chunked_array([column.slice(1, 2)]))
    assert values[offsets[0] : offsets[1]].tolist() == [0, 1, 2, 3, 4]
    assert values[offsets[1] : offsets[2]].tolist() == [0, 1]


def test_labels_know_their_size():
    labels = make_labels(7, 3)
    assert (len(labels), labels.k) == (7, 3)
