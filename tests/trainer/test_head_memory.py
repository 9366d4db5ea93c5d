"""The fused head's memory at 2,048 tokens × 32,000 words, beside the dense loss, as the machine saw it."""

import multiprocessing

import pytest

from tests.trainer.head_memory import Measured, Size, measured
from trainer.head import CHUNK_ELEMENTS

SIZE = Size(tokens=2048, vocabulary=32_000, candidates=64)


@pytest.fixture(scope="module")
def found() -> dict[str, Measured]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.ranks", "torch._dynamo"])  # as in test_splits: one server for all
    return {name: measured(context, name, SIZE) for name in ("potstill", "dense")}


def test_peak_memory_is_less_than_a_fifth_of_the_dense_loss(found: dict[str, Measured]) -> None:
    dense, ours = found["dense"].extra_bytes, found["potstill"].extra_bytes
    assert dense > 2 * 4 * SIZE.tokens * SIZE.vocabulary  # the logits and their gradient, at the least
    assert ours < dense / 5


def test_no_tensor_is_larger_than_chunk_times_vocabulary(found: dict[str, Measured]) -> None:
    """Every allocation of forward and backward, labels included."""
    chunk = CHUNK_ELEMENTS // SIZE.vocabulary
    assert found["potstill"].largest_elements == chunk * SIZE.vocabulary
    assert found["dense"].largest_elements == SIZE.tokens * SIZE.vocabulary
