"""Which rows a stream takes and what they bring: chosen by SQL or key, sampled candidates, tail sums."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.rows import Row, TailSum
from storage.table import Table
from tests.trainer.test_stream import TEACHER, stream
from trainer.errors import StreamRefused


def test_rows_are_chosen_by_sql_and_by_key(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "t")
    rows = TEACHER.rows(6, prompt_licence="CC0-1.0") + TEACHER.rows(6, seed=1, prompt_licence=None)
    table.append(rows, writer="w", sequence=0)
    chosen = stream(table, holdout=0.0, where="prompt_licence = 'CC0-1.0'", left_out={rows[0].key, rows[9].key})
    assert len(chosen.index) == 5
    assert chosen.index.left_out == {"left out by the caller": 7}
    with pytest.raises(StreamRefused, match="left_out was"):
        stream(table, holdout=0.0).load_state_dict(chosen.state_dict())


def test_sampled_rows_bring_their_weights_and_other_rows_none(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "t")
    (row,) = TEACHER.rows(1, k=4)
    weights = np.tile(np.array([0.5, 0.25, 0.25, 0.0], dtype=np.float32), (24, 1))
    sampled = replace(row, key="e" * 64, estimator="sampled", top_weights=weights)
    table.append([*TEACHER.rows(1, seed=5, k=6), sampled], writer="w", sequence=0)
    (batch,) = list(stream(table, holdout=0.0, repeat=False))
    assert batch["top_weights"].shape == batch["top_ids"].shape
    drawn = batch["top_weights"].sum(1) > 0
    assert drawn.sum() == 24
    assert torch.equal(batch["top_weights"][drawn][:, :4], torch.from_numpy(weights))
    assert "top_weights" not in next(iter(stream(TEACHER.table(tmp_path / "plain", 4), holdout=0.0)))


def test_tail_sums_of_the_temperature_come_with_the_labels(tmp_path: Path) -> None:
    """Several temperatures a row, in any order; rows without the one that is asked for are left out and counted."""
    table, rows = Table.create(tmp_path / "t"), TEACHER.rows(4)
    sums = {T: [_tail_sum(row, T) for row in rows] for T in (2.0, 0.5)}
    for i, order in enumerate([(2.0, 0.5), (0.5, 2.0), (2.0,), (0.5,)]):
        stored = tuple(TailSum(temperature=T, log_sums=sums[T][i]) for T in order)
        rows[i] = replace(rows[i], tail_sums=stored)
    table.append(rows, writer="w", sequence=0)
    options = {"holdout": 0.0, "repeat": False, "pack": False, "batch_size": 1, "temperature": 2.0}
    warm = stream(table, **options)
    batches = list(warm)
    assert warm.index.left_out == {"no tail sums at the loss's temperature": 1}
    wanted = sorted(sums[2.0][i].tobytes() for i in range(3))
    assert sorted(batch["tail_sum"].numpy().tobytes() for batch in batches) == wanted

    id_map = np.arange(TEACHER.size)
    id_map[7] = -1
    for plain, mapped in zip(batches, stream(table, **options, id_map=id_map, unknown_id=0), strict=True):
        lost = ((plain["top_logprobs"] / 2).exp() * (plain["top_ids"] == 7)).sum(1)
        assert torch.allclose(mapped["tail_sum"].exp(), plain["tail_sum"].exp() + lost, rtol=1e-5)


def _tail_sum(row: Row, temperature: float) -> np.ndarray:
    assert row.labels is not None and row.prompt_token_ids is not None
    context = np.concatenate([row.prompt_token_ids[-1:], row.labels.token_ids[:-1]])
    powers = np.exp(TEACHER.log_p[context] / temperature)
    np.put_along_axis(powers, row.labels.top_ids, 0.0, axis=1)
    return np.log(powers.sum(1)).astype(np.float32)
