import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.errors import Rejected
from collectors.normalise import Received, normalise


def received(*positions: tuple[int, float | None, list[tuple[int, float | None]]], **more: Any) -> Received:
    return Received(
        token_ids=[p[0] for p in positions],
        token_logprobs=[p[1] for p in positions],
        counts=[len(p[2]) for p in positions],
        candidate_ids=[c[0] for p in positions for c in p[2]],
        candidate_logprobs=[c[1] for p in positions for c in p[2]],
        **more,
    )


def log(p: float) -> float:
    return math.log(p)


GOOD = (5, log(0.5), [(5, log(0.5)), (6, log(0.25)), (7, log(0.125))])


def test_a_good_position_keeps_ids_order_rank_and_tail() -> None:
    labels = normalise(received(GOOD), k=3, vocabulary=10).labels
    assert labels.top_ids.tolist() == [[5, 6, 7]] and labels.token_ranks.tolist() == [1]
    assert labels.top_ids.dtype == np.int32 and labels.top_logprobs.dtype == np.float32
    assert math.exp(labels.log_tail[0]) == pytest.approx(0.125)


def test_candidates_are_put_best_first() -> None:
    labels = normalise(
        received((6, log(0.25), [(7, log(0.125)), (5, log(0.5)), (6, log(0.25))])), k=3, vocabulary=10
    ).labels
    assert labels.top_ids.tolist() == [[5, 6, 7]] and labels.token_ranks.tolist() == [2]


def test_the_realised_token_leaves_the_list_when_it_came_besides_the_top_k() -> None:
    sent = (9, log(0.01), [(9, log(0.01)), *GOOD[2]])  # vLLM: the realised token first, then the top 3
    labels = normalise(received(sent), k=3, vocabulary=10).labels
    assert labels.top_ids.tolist() == [[5, 6, 7]]
    assert labels.token_ids.tolist() == [9] and labels.token_logprobs[0] == pytest.approx(log(0.01))
    assert labels.token_ranks.tolist() == [0]
    assert math.exp(labels.log_tail[0]) == pytest.approx(0.125)


def test_what_came_beyond_the_top_k_falls_into_the_tail() -> None:
    labels = normalise(received(GOOD), k=2, vocabulary=10).labels
    assert labels.top_ids.tolist() == [[5, 6]] and math.exp(labels.log_tail[0]) == pytest.approx(0.25)


def test_the_realised_token_does_not_take_the_place_of_a_masked_candidate() -> None:
    sent = (9, log(0.01), [(9, log(0.01)), (5, log(0.5)), (6, log(0.25)), (7, None)])
    found = normalise(received(sent), k=3, vocabulary=10)
    assert found.labels.top_ids.tolist() == [[5, 6, -1]] and found.masked == 1


def test_a_rank_that_the_endpoint_says_is_kept() -> None:
    sent = (9, log(0.01), [(9, log(0.01)), *GOOD[2]])
    assert normalise(received(sent, token_ranks=[700]), k=3, vocabulary=10).labels.token_ranks.tolist() == [700]


def test_in_the_kth_place_of_an_uncertain_shape_the_rank_is_unknown() -> None:
    sent = (7, log(0.125), [(7, log(0.125)), (5, log(0.5)), (6, log(0.25))])
    assert normalise(received(sent, last_uncertain=True), k=3, vocabulary=10).labels.token_ranks.tolist() == [0]
    assert normalise(received(GOOD, last_uncertain=True), k=3, vocabulary=10).labels.token_ranks.tolist() == [1]


@pytest.mark.parametrize("nothing", [None, -9999.0, -3.4028234663852886e38, -math.inf, math.nan])
def test_null_and_sentinels_are_masked_and_counted(nothing: float | None) -> None:
    found = normalise(received((5, log(0.5), [(5, log(0.5)), (6, nothing), (7, log(0.25))])), k=3, vocabulary=10)
    assert found.masked == 1
    assert found.labels.top_ids.tolist() == [[5, 7, -1]]
    assert found.labels.top_logprobs[0, 2] == -np.inf
    found = normalise(received((5, nothing, [(4, log(0.5)), (6, log(0.2)), (7, log(0.1))])), k=3, vocabulary=10)
    assert found.masked == 1 and np.isnan(found.labels.token_logprobs[0])


def test_a_candidate_whose_id_could_not_be_told_falls_into_the_tail() -> None:
    found = normalise(received((5, log(0.5), [(5, log(0.5)), (-1, log(0.25)), (7, log(0.125))])), k=3, vocabulary=10)
    assert found.labels.top_ids.tolist() == [[5, 7, -1]] and found.masked == 1
    assert math.exp(found.labels.log_tail[0]) == pytest.approx(0.375)


REFUSED: dict[str, Received] = {
    "mass_above_one": received((5, log(0.6), [(5, log(0.6)), (6, log(0.4)), (7, log(0.0012))])),
    "repeated_ids": received((5, log(0.5), [(5, log(0.5)), (6, log(0.2)), (6, log(0.1))])),
    "empty_candidates": received(GOOD, (6, 0.0, [])),
    "too_few_candidates": received((5, log(0.5), [(5, log(0.5)), (6, log(0.2))])),
    "id_out_of_vocabulary": received((5, log(0.5), [(5, log(0.5)), (6, log(0.2)), (10, log(0.1))])),
    "realised_disagrees": received((6, log(0.5), [(5, log(0.5)), (6, log(0.2)), (7, log(0.1))])),
    "length_mismatch": Received(
        token_ids=[1, 2], token_logprobs=[-1.0], counts=[0], candidate_ids=[], candidate_logprobs=[]
    ),
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_is_not_understood_is_refused_by_code(code: str) -> None:
    with pytest.raises(Rejected) as caught:
        normalise(REFUSED[code], k=3, vocabulary=10)
    assert caught.value.code == code


def test_other_ways_to_be_out_of_place() -> None:
    for ids, code in (
        ([-1], "id_out_of_vocabulary"),
        ([2**70], "id_out_of_vocabulary"),
        ([10], "id_out_of_vocabulary"),
    ):
        with pytest.raises(Rejected, match=code):
            normalise(received((ids[0], log(0.5), GOOD[2])), k=3, vocabulary=10)
    with pytest.raises(Rejected, match="mass_above_one"):  # the realised token alone
        normalise(received((9, 0.5, GOOD[2])), k=3, vocabulary=10)
    with pytest.raises(Rejected, match="too_few_candidates"):  # none at all, and it is not speculative decoding
        normalise(received((5, log(0.5), [])), k=3, vocabulary=10)
    with pytest.raises(Rejected, match="length_mismatch"):
        broken = Received(
            token_ids=[1], token_logprobs=[-1.0], counts=[2], candidate_ids=[1], candidate_logprobs=[-1.0]
        )
        normalise(broken, k=1, vocabulary=None)


def test_a_sum_within_the_tolerance_is_kept_without_a_tail() -> None:
    labels = normalise(
        received((5, log(0.6), [(5, log(0.6)), (6, log(0.4)), (7, log(0.0005))])), k=3, vocabulary=8
    ).labels
    assert labels.log_tail[0] == -np.inf


def test_fewer_candidates_are_no_fault_where_the_reason_is_known() -> None:
    short = received((5, log(0.5), [(5, log(0.5)), (6, log(0.5))]))
    assert normalise(short, k=3, vocabulary=10, truncated=True).labels.top_ids.tolist() == [[5, 6, -1]]
    assert normalise(short, k=20, vocabulary=2 + 5, truncated=True).labels.k == 20
    with pytest.raises(Rejected, match="too_few_candidates"):
        normalise(short, k=20, vocabulary=7)
    whole = received((1, log(0.5), [(0, log(0.5)), (1, log(0.5))]))
    assert normalise(whole, k=5, vocabulary=2).labels.top_ids.tolist() == [[0, 1, -1, -1, -1]]


def test_token_ids_without_labels_have_k_zero() -> None:
    bare = Received(
        token_ids=[3, 4], token_logprobs=[None, None], counts=[0, 0], candidate_ids=[], candidate_logprobs=[]
    )
    labels = normalise(bare, k=0, vocabulary=10).labels
    assert labels.k == 0 and labels.token_ids.tolist() == [3, 4] and labels.log_tail.tolist() == [0.0, 0.0]


def test_an_empty_sequence_is_empty_labels() -> None:
    labels = normalise(received(), k=3, vocabulary=10).labels
    assert labels.top_ids.shape == (0, 3) and len(labels) == 0


@given(st.lists(st.lists(st.floats(-30, 8), min_size=12, max_size=12), min_size=1, max_size=5), st.randoms())
def test_any_order_of_any_distribution_gives_the_same_labels(logits: list[list[float]], random: Any) -> None:
    positions, shuffled = [], []
    for row in logits:
        total = math.log(sum(math.exp(x) for x in row))
        candidates = [(i, x - total) for i, x in enumerate(row)]
        realised = random.choice(candidates)
        best = sorted(candidates, key=lambda c: -c[1])[:5]
        mixed = best if realised in best else [*best, realised]
        positions.append((*realised, list(mixed)))
        shuffled.append((*realised, random.sample(mixed, len(mixed))))
    labels, again = (normalise(received(*p), k=5, vocabulary=12).labels for p in (positions, shuffled))
    assert (labels.top_logprobs == again.top_logprobs).all()
    mass = np.exp(labels.top_logprobs.astype(np.float64)).sum(axis=1) + np.exp(labels.log_tail.astype(np.float64))
    assert mass == pytest.approx(np.ones(len(logits)), abs=1e-5)
    assert (labels.top_logprobs[:, 1:] <= labels.top_logprobs[:, :-1]).all()
