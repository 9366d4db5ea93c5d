from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.codec import LOSSLESS, Labels, labels_from_arrow, log_tail
from storage.errors import InvalidRow, SchemaTooNew, TableDamaged
from storage.rows import Row, TailSum, Usage, audit_group, rows_from_arrow, rows_to_arrow, signal
from storage.schema import ALIGNMENT, SOFT_LABELS, VERSION_KEY, check_metadata, table_metadata
from tests.storage.make_rows import QWEN, make_labels, make_row, sample


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, Row | Labels | TailSum):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


rows = st.builds(
    lambda number, targets, k, text, usage, licence: make_row(
        number, targets=targets, k=k, completion=text, usage=usage, prompt_licence=licence
    ),
    st.integers(0, 10**6),
    st.integers(0, 9),
    st.integers(0, 6),
    st.none() | st.text(),
    st.none() | st.builds(Usage, prompt_tokens=st.none() | st.integers(0, 9), cost_usd=st.none() | st.floats(0, 1)),
    st.none() | st.sampled_from(["CC0-1.0", "MIT"]),
)


@settings(deadline=None)  # a busy machine is no fault of theirs
@given(st.lists(rows, max_size=4))
def test_rows_come_back_from_arrow(rows):
    table = rows_to_arrow(rows, mantissa_bits=LOSSLESS)
    table.validate(full=True)
    assert table.schema.equals(SOFT_LABELS)
    back = rows_from_arrow(table)
    assert len(back) == len(rows) and all(map(same, rows, back))
    assert all(map(same, [row.labels for row in rows[1:]], labels_from_arrow(table.slice(1))))


def test_every_optional_column_comes_back():
    labels = make_labels(3, 2, vocabulary=2)
    row = make_row(
        1,
        labels=labels,
        messages=None,
        mode="mask",
        estimator="sampled",
        top_weights=np.full((3, 2), 0.5, dtype=np.float32),
        tail_sums=(TailSum(temperature=2.0, log_sums=np.array([-1, -2, -3], dtype=np.float32)),),
        token_bytes=(b"a", b"\xff", b""),
        target_positions=np.array([1, 4, 5], dtype=np.int32),
        label_set=("dog", "wolf"),
        flags=("ids_recovered",),
    )
    text = make_row(2, labels=None, usage=None, sampling=None, prompt_token_ids=None)
    table = rows_to_arrow([row, text], mantissa_bits=LOSSLESS)
    assert all(map(same, [row, text], rows_from_arrow(table)))
    assert table.column("k").to_pylist() == [2, 0]
    assert table.column("token_ids")[1].as_py() is None


def test_the_default_rounding_keeps_real_labels_close():
    data = sample()
    labels = Labels(
        token_ids=data["ids"][:, 0].copy(),
        token_logprobs=data["logprobs"][:, 0].copy(),
        token_ranks=np.ones(512, dtype=np.int32),
        top_ids=data["ids"],
        top_logprobs=data["logprobs"],
        log_tail=log_tail(data["logprobs"].astype(np.float64)),
    )
    stored = labels_from_arrow(rows_to_arrow([make_row(1, labels=labels)]))[0]
    p, q = np.exp(labels.top_logprobs.astype(float)), np.exp(stored.top_logprobs.astype(float))
    q *= (1 - np.exp(stored.log_tail.astype(float)))[:, None] / q.sum(axis=1, keepdims=True)
    assert (p * np.log(p / q)).sum(axis=1).mean() < 1.1e-5
    assert (stored.top_ids == data["ids"]).all()


def test_quality_is_computed():
    labels = make_labels(4, 5)
    table = rows_to_arrow([make_row(1, labels=labels)])
    assert table.column("nll")[0].as_py() == pytest.approx(-labels.token_logprobs.mean(), rel=1e-5)
    assert table.column("mean_tail_mass")[0].as_py() == pytest.approx(np.exp(labels.log_tail).mean(), rel=1e-5)
    unknown = replace(labels, token_logprobs=np.full(4, np.nan, dtype=np.float32))
    assert rows_to_arrow([make_row(1, labels=unknown)]).column("nll")[0].as_py() is None


def changed(**arrays):
    return replace(make_labels(4, 3), **arrays)


BROKEN = {
    "no lower-case hex": make_row(1, key="A" * 64),
    "not a known one": make_row(1, mode="guess"),
    "no terms": make_row(1, terms=()),
    "no policy bundle and decision": make_row(1, decision=""),
    "verdict on collecting it is 'deny'": make_row(1, collect_verdict="deny"),
    "no time zone": make_row(1, collected_at=make_row(1).collected_at.replace(tzinfo=None)),
    r"log_tail has shape \(3,\)": make_row(1, labels=changed(log_tail=np.zeros(3, dtype=np.float32))),
    r"top_logprobs has shape \(4, 3\), not \(4, 2\)": make_row(
        1, labels=changed(top_ids=np.zeros((4, 2), dtype=np.int32))
    ),
    "int64, not int32": make_row(1, labels=changed(token_ids=np.zeros(4, dtype=np.int64))),
    "holds NaN": make_row(1, labels=changed(log_tail=np.full(4, np.nan, dtype=np.float32))),
    "exactly where top_ids is": make_row(1, labels=changed(top_ids=np.full((4, 3), -1, dtype=np.int32))),
    "ordered best first": make_row(1, labels=changed(top_logprobs=np.tile(np.float32([-2, -1, -3]), (4, 1)))),
    "above 0": make_row(1, labels=changed(token_logprobs=np.full(4, 0.5, dtype=np.float32))),
    "below −1": make_row(1, labels=changed(token_ids=np.full(4, -2, dtype=np.int32))),
    "sum to": make_row(1, labels=changed(log_tail=np.full(4, -np.inf, dtype=np.float32))),
    "for a label_set of 2": make_row(1, labels=changed(), label_set=("dog", "wolf")),
    "token_bytes has 1 entries": make_row(1, labels=changed(), token_bytes=(b"a",)),
    "'sampled' and to no other": make_row(1, labels=changed(), estimator="sampled"),
    "tail_sums": make_row(1, labels=changed(), tail_sums=(TailSum(temperature=2, log_sums=np.zeros(1)),)),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_row_is_refused_by_name(message):
    with pytest.raises(InvalidRow, match=message) as caught:
        rows_to_arrow([make_row(0), BROKEN[message]])
    assert "p000001" in str(caught.value)


def test_the_audit_group_follows_exactly_the_facts_of_an_audit():
    row = make_row(1)
    assert audit_group(row) == audit_group(make_row(2))
    others = [
        make_row(1, teacher=QWEN),
        make_row(1, teacher=replace(row.teacher, revision="other")),
        make_row(1, teacher=replace(row.teacher, served_by="Together")),
        make_row(1, teacher=replace(row.teacher, access_path="api")),
        make_row(1, terms=("gemma-tou@2024-02-21",)),
        make_row(1, prompt_licence="MIT"),
        make_row(1, labels=None),
        make_row(1, estimator="full"),
    ]
    assert len({audit_group(other) for other in [row, *others]}) == len(others) + 1
    assert [signal(r) for r in (row, others[-2], others[-1])] == ["top_k_logprobs", "text", "logits"]
    two = ("a@1", "b@2")
    assert audit_group(make_row(1, terms=two)) == audit_group(make_row(1, terms=two[::-1]))


def test_a_newer_schema_is_refused_by_name():
    assert check_metadata(table_metadata(8), "t") == 8
    with pytest.raises(SchemaTooNew, match="schema version 2; this potstill knows versions up to 1: upgrade"):
        check_metadata(table_metadata(8) | {VERSION_KEY: "2"}, "t")
    with pytest.raises(TableDamaged, match="not written by potstill"):
        check_metadata({}, "t")
    assert rows_to_arrow([]).schema.metadata[b"potstill.alignment"].decode() == ALIGNMENT
