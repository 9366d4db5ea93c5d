import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.canary import DIVERGENCE_NATS, PROMPTS, Comparison, compare, divergence, sing
from collectors.config import AskSettings, EndpointSettings, TeacherSettings
from collectors.http import FakeSender, HttpSender, Request, Response
from collectors.providers.embedded import EmbeddedServer
from collectors.tokenizer import Tokenizer
from storage.codec import Labels, log_tail

TEACHER = TeacherSettings(model="m")


def labels(*positions: Sequence[tuple[int, float]], tokens: Sequence[int] | None = None) -> Labels:
    ids = np.array([[i for i, _ in row] for row in positions], np.int32)
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array([[p for _, p in row] for row in positions]))
    realised = np.array(tokens if tokens is not None else ids[:, 0], np.int32)
    return Labels(
        token_ids=realised,
        token_logprobs=logprobs[:, 0].astype(np.float32),
        token_ranks=np.ones(len(ids), np.int32),
        top_ids=ids,
        top_logprobs=logprobs.astype(np.float32),
        log_tail=log_tail(logprobs),
    )


A = labels([(1, 0.5), (2, 0.3)], [(3, 0.9), (4, 0.05)])


def test_the_same_answers_are_the_same_teacher() -> None:
    found = compare([A, A], [A, A])
    assert found == Comparison(1.0, pytest.approx(0.0, abs=1e-7), 4) and found.same_teacher


def test_other_numbers_are_another_teacher() -> None:
    other = labels([(1, 0.9), (2, 0.05)], [(3, 0.4), (4, 0.35)])
    found = compare([A], [other])
    expected = [
        0.5 * np.log(0.5 / 0.9) + 0.3 * np.log(0.3 / 0.05) + 0.2 * np.log(0.2 / 0.05),
        0.9 * np.log(0.9 / 0.4) + 0.05 * np.log(0.05 / 0.35) + 0.05 * np.log(0.05 / 0.25),
    ]
    assert found.divergence == pytest.approx(np.mean(expected), rel=1e-5)
    assert found.top_1_agreement == 1.0 and not found.same_teacher


def test_other_best_tokens_are_another_teacher() -> None:
    other = labels([(2, 0.41), (1, 0.40)], [(3, 0.9), (4, 0.05)])
    found = compare([A], [other])
    assert found.positions == 1  # behind the first difference the contexts differ
    assert found.top_1_agreement == 0.0 and not found.same_teacher


def test_a_near_tie_is_no_difference() -> None:
    one, two = labels([(1, 0.41), (2, 0.40)]), labels([(2, 0.41), (1, 0.40)])
    assert compare([one], [two]).same_teacher
    assert compare([labels([(1, 0.5), (2, 0.3)])], [two]).top_1_agreement == 0.0


def test_ids_that_only_one_names_fall_into_the_bucket() -> None:
    one, two = labels([(1, 0.5), (2, 0.3)]), labels([(1, 0.5), (9, 0.3)])
    assert divergence(one, two, 0) == pytest.approx(0.0, abs=1e-7)
    assert divergence(labels([(1, 1.0)]), labels([(2, 1.0)]), 0) == pytest.approx(0.0, abs=1e-7)


def test_candidates_that_both_miss_are_no_candidates() -> None:
    one, two = labels([(1, 0.5), (-1, 0.0)]), labels([(1, 0.25), (-1, 0.0)])
    assert divergence(one, two, 0) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75), rel=1e-5)


def test_nothing_compared_is_no_proof() -> None:
    for one, two in (([None], [A]), ([A], [None]), ([], [])):
        found = compare(one, two)
        assert found.positions == 0 and not found.same_teacher


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_the_divergence_is_never_negative(a: list[float], b: list[float]) -> None:
    one, two = ([(i, x / (sum(row) + 0.1)) for i, x in enumerate(row)] for row in (a, b))
    assert divergence(labels(one), labels(two), 0) >= -1e-7


def test_the_real_teacher_equals_itself_under_load(
    teacher_server: EmbeddedServer, teacher_tokenizer: Tokenizer
) -> None:
    async def go() -> Comparison:
        async with HttpSender(teacher_server.base_url) as sender:
            settings = {"teacher": TEACHER, "ask": AskSettings(), "tokenizer": teacher_tokenizer}
            endpoint = EndpointSettings(kind="embedded")
            alone = await sing(sender, endpoint=endpoint, **settings)  # type: ignore[arg-type]
            both = await asyncio.gather(*(sing(sender, endpoint=endpoint, **settings) for _ in range(2)))  # type: ignore[arg-type]
        return compare(alone, both[0])

    found = asyncio.run(go())
    assert found.positions >= len(PROMPTS) and found.same_teacher
    assert found.divergence < DIVERGENCE_NATS / 2


def test_an_endpoint_that_answers_nothing_readable_proves_nothing() -> None:
    def broken(request: Request) -> Response:
        return Response(status=200, headers={}, body=b"<html>", seconds=0.0)

    endpoint = EndpointSettings(kind="openai", base_url="http://127.0.0.1:1")
    found = asyncio.run(sing(FakeSender(broken), teacher=TEACHER, endpoint=endpoint, ask=AskSettings()))
    assert found == (None,) * len(PROMPTS)
