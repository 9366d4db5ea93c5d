"""A checkpoint's state without pickle: the same again, and nothing in the folder that could run code."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.synthetic import MarkovTeacher, training_folder
from trainer.config import read_config
from trainer.fit import train
from trainer.optimizer_state import StateNotSaved, load_state, random_state, save_state, set_random_state

torch.set_num_threads(1)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
nested = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(nested)
def test_plain_data_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("state")
    save_state(folder, "it", value)
    assert load_state(folder, "it") == value


def test_an_optimizer_goes_on_where_it_was(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [torch.optim.AdamW([w], lr=0.1, amsgrad=True) for w in weights]
    for step in range(3):
        weights[0].grad = torch.full((3,), float(step))
        optimizers[0].step()
    save_state(tmp_path, "optimizer", optimizers[0].state_dict())
    weights[1].data.copy_(weights[0].data)
    optimizers[1].load_state_dict(load_state(tmp_path, "optimizer"))
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = torch.arange(3.0)
        optimizer.step()
    assert torch.equal(weights[0], weights[1])
    with pytest.raises(StateNotSaved, match="pickle"):
        save_state(tmp_path, "optimizer", {"of": object()})


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(0, 1)
    save_state(tmp_path, "random", random_state())
    first = random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(2).tolist()
    set_random_state(load_state(tmp_path, "random"))
    assert (random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(2).tolist()) == first


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    MarkovTeacher().table(tmp_path / "table", 30)
    out = train(read_config(training_folder(tmp_path, steps=20))).out
    files = list(out.glob("checkpoint-*/*"))
    assert any(path.name == "optimizer.safetensors" for path in files)
    assert {path.suffix for path in files} == {".json", ".safetensors"}
