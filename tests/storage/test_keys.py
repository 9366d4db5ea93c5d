import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import keys as module
from storage.keys import KeySet

PREFIXES = ["0" * 16, "f" * 16, "0123456789abcdef"]
KEYS = st.builds(lambda a, b, c: a + b * 16 + c * 32, st.sampled_from(PREFIXES), st.sampled_from("019f"), st.just("0"))


def column(*chunks):
    return pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks], pa.string())


@given(st.lists(KEYS, max_size=8), st.lists(KEYS, max_size=8), st.lists(KEYS, max_size=8))
def test_it_is_a_set_also_where_keys_share_their_beginning(in_columns, one_by_one, asked):
    keys = KeySet()
    keys.add_columns([column(in_columns[:3], in_columns[3:])])
    keys.add(key for key in set(one_by_one) - set(in_columns))
    expected = set(in_columns) | set(one_by_one)
    assert len(keys) == len(expected)
    assert [key in keys for key in asked] == [key in expected for key in asked]
    assert keys.contains(column(asked[:2], asked[2:])).tolist() == [key in expected for key in asked]
    assert [key in keys for key in asked] == [key in expected for key in asked]


def test_many_keys(monkeypatch):
    monkeypatch.setattr(module, "_RECENT", 100)
    digests = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(2000)]
    keys = KeySet()
    for start in range(0, 1000, 50):
        keys.add(digests[start : start + 50])
    assert len(keys) == 1000
    assert keys.contains(column(digests).slice(1)).tolist() == [n < 1000 for n in range(1, 2000)]
    assert all(key in keys for key in digests[:1000]) and not any(key in keys for key in digests[1000:])


def test_other_strings_are_refused():
    keys = KeySet()
    for bad in (["ab"], [None], ["0" * 65]):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            keys.add_columns([column(bad)])
    with pytest.raises(ValueError):
        keys.add(["g" * 64])
    assert keys.contains(column([])).shape == (0,) and isinstance(keys.contains(column()), np.ndarray)
