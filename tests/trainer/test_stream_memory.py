"""The stream's memory does not grow with the epochs, and its windows shuffle as far as the documentation says."""

from pathlib import Path

import numpy as np

from benchmarks.storage_figures import SAMPLE
from benchmarks.train_order import quality
from benchmarks.train_stream import build, memory_over_epochs


def test_memory_is_flat_over_epochs(tmp_path: Path) -> None:
    """67 MB of labels an epoch: what four epochs add, beside the allocator's ups and downs, is less than one's."""
    build(tmp_path / "table", 1024, SAMPLE)
    megabytes = memory_over_epochs(tmp_path / "table", 8)
    assert min(megabytes[4:]) - min(megabytes[:4]) < 67, megabytes


def test_a_window_shuffles_what_it_holds() -> None:
    """Of 64 row groups: a window of all is a full shuffle, one of 16 mixes a quarter of the table."""
    found = quality((4, 16, 64))
    assert found[64][0] < 0.02 and found[64][1] < 0.15
    assert 0.3 < found[16][1] < 0.6
    assert found[4][1] > 0.95
    assert np.all(np.diff([found[window][1] for window in (4, 16, 64)]) < 0)
