"""The fused head against the dense loss: values, gradients, memory, precision."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.head_memory import LargestTensor
from tests.trainer.labels import drop_candidates, truncated
from trainer.head import fused_distillation_loss, project
from trainer.losses import SoftTargets, distillation_loss, student_logits
from trainer.objective import Objective

N, D, V, K = 23, 6, 40, 5
OBJECTIVES = [
    Objective(hard_weight=0.3),
    Objective("reverse_kl"),
    Objective("jensen_shannon", hard_weight=1.0),
    Objective("total_variation"),
    Objective("skewed_kl", "renormalised", temperature=2.0, hard_weight=0.2),
    Objective(tail="bucket_shape"),
    Objective(tail="realised_token", hard_weight=0.1),
    Objective(tail="zero"),
    Objective(temperature=3.0, hard_weight=0.5),
]


def problem(seed: int, temperature: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...] | Any:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()

    hidden_ND, weight_VD, bias_V = draw(N, D), draw(V, D), draw(V)
    target_ids_N = torch.randint(0, V, (N,), generator=random)
    targets = truncated(draw(N, V).detach().double(), K, target_ids_N, temperature)
    weight_N = torch.rand(N, generator=random, dtype=torch.float64)
    targets = dataclasses.replace(targets, weight_N=weight_N)
    drop_candidates(targets, 2, keep=3)
    drop_candidates(targets, 3, keep=0)
    targets.target_ids_N[4] = -1
    targets.target_ids_N[5] = targets.top_ids_NK[5, 1]
    targets.from_teacher_N[6] = False
    return hidden_ND, weight_VD, bias_V, targets


def dense_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets: SoftTargets,
    objective: Objective,
    softcap: float | None = None,
) -> Tensor:
    logits_NV = hidden_ND @ weight_VD.T + (0 if bias_V is None else bias_V)
    logits_NV = logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)
    return distillation_loss(student_logits(logits_NV, targets, objective.temperature), targets, objective).loss


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.divergence}-{o.tail}-{o.temperature}")
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 999), chunk=st.integers(1, N + 3), softcap=st.sampled_from([None, 4.0]))
def test_chunked_equals_dense(objective: Objective, seed: int, chunk: int, softcap: float | None) -> None:
    hidden_ND, weight_VD, bias_V, targets = problem(seed, objective.temperature)
    leaves = (hidden_ND, weight_VD, bias_V)
    fused = fused_distillation_loss(
        hidden_ND, weight_VD, targets, objective, bias_V=bias_V, softcap=softcap, chunk=chunk
    ).loss
    dense = dense_loss(*leaves, targets, objective, softcap)
    assert torch.allclose(fused, dense, rtol=1e-10)
    for one, other in zip(torch.autograd.grad(fused, leaves), torch.autograd.grad(dense, leaves), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.divergence}-{o.tail}-{o.temperature}")
def test_gradcheck(objective: Objective) -> None:
    hidden_ND, weight_VD, bias_V, targets = problem(1, objective.temperature)

    def loss(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
        return fused_distillation_loss(hidden_ND, weight_VD, targets, objective, bias_V=bias_V, chunk=7).loss

    assert torch.autograd.gradcheck(loss, (hidden_ND, weight_VD, bias_V))


def test_all_pieces_equal_the_dense_ones() -> None:
    hidden_ND, weight_VD, _, targets = problem(2, 2.0)
    one, other = (
        project(hidden_ND, weight_VD, targets, temperature=2.0, chunk=4),
        student_logits(hidden_ND @ weight_VD.T, targets, 2.0),
    )
    for name, a, b in zip(one._fields, one, other, strict=True):
        assert torch.allclose(a, b), name


def large(frozen: bool = False) -> tuple[Tensor, Tensor, SoftTargets]:
    torch.manual_seed(0)
    hidden_ND = torch.randn(512, 16, requires_grad=True)
    weight_VD = torch.randn(8192, 16).requires_grad_(not frozen)
    targets = truncated(torch.randn(512, 8192), 20, torch.randint(0, 8192, (512,)), 2.0)
    return hidden_ND, weight_VD, targets


@pytest.mark.parametrize("objective", [Objective(hard_weight=0.5), Objective(temperature=2.0, hard_weight=0.5)])
def test_no_tensor_is_larger_than_chunk_times_vocabulary(objective: Objective) -> None:
    hidden_ND, weight_VD, targets = large()
    with LargestTensor() as seen:
        fused_distillation_loss(hidden_ND, weight_VD, targets, objective, chunk=32).loss.backward()
    assert seen.elements == 32 * 8192
    with LargestTensor() as seen:
        dense_loss(hidden_ND, weight_VD, None, targets, objective).backward()
    assert seen.elements == 512 * 8192


def test_kept_for_backward_is_tokens_times_d_plus_k() -> None:
    """Besides the weight itself: hidden states, and at most 16 numbers for each candidate and position."""
    hidden_ND, weight_VD, targets = large()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused_distillation_loss(hidden_ND, weight_VD, targets, Objective(hard_weight=0.5), chunk=32)
    kept.pop(weight_VD.untyped_storage().data_ptr())
    assert sum(kept.values()) <= 512 * 4 * (16 + 16 * (20 + 4))
    assert sum(kept.values()) < 512 * 8192 * 4 / 10


def test_frozen_weight_gets_no_gradient_and_costs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_ND, weight_VD, targets = large(frozen=True)
    with LargestTensor() as seen:
        fused_distillation_loss(hidden_ND, weight_VD, targets, Objective(), chunk=8).loss.backward()
    assert seen.elements == 8192 * 16  # the weight's own transpose, a view; the chunk is smaller
    assert weight_VD.grad is None
    assert hidden_ND.grad is not None


@pytest.mark.parametrize("run", ["bfloat16", "autocast"])
def test_bfloat16_accumulates_in_float32(run: str) -> None:
    hidden_ND, weight_VD, targets = large()
    wanted = torch.autograd.grad(dense_loss(hidden_ND, weight_VD, None, targets, Objective()), (hidden_ND, weight_VD))
    if run == "bfloat16":
        leaves = tuple(t.detach().bfloat16().requires_grad_() for t in (hidden_ND, weight_VD))
        loss = fused_distillation_loss(*leaves, targets, Objective(), chunk=32).loss
    else:
        leaves = (hidden_ND, weight_VD)
        with torch.autocast("cpu", torch.bfloat16):
            loss = fused_distillation_loss(*leaves, targets, Objective(), chunk=32).loss
    assert loss.dtype == torch.float32
    for gradient, leaf, reference in zip(torch.autograd.grad(loss, leaves), leaves, wanted, strict=True):
        assert gradient.dtype == leaf.dtype
        assert (gradient.float() - reference).norm() < 0.02 * reference.norm()


def test_student_equal_to_teacher_is_0_through_bfloat16() -> None:
    torch.manual_seed(1)
    hidden_ND = torch.randn(32, 16).bfloat16().requires_grad_()
    weight_VD = torch.randn(500, 16).bfloat16().requires_grad_()
    targets = truncated((hidden_ND @ weight_VD.T).detach().float(), 10, torch.zeros(32, dtype=torch.long))
    parts = fused_distillation_loss(hidden_ND, weight_VD, targets, Objective(), chunk=5)
    assert abs(parts.loss.item()) < 1e-5
    assert parts.agreement == 32
    assert all(gradient.abs().max() < 1e-5 for gradient in torch.autograd.grad(parts.loss, (hidden_ND, weight_VD)))


def test_no_loss_tokens_at_all() -> None:
    hidden_ND, weight_VD = torch.randn(0, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets = truncated(torch.randn(0, 9), 3, torch.zeros(0, dtype=torch.long))
    loss = fused_distillation_loss(hidden_ND, weight_VD, targets, Objective(hard_weight=0.5)).loss
    loss.backward()
    assert loss == 0
    assert weight_VD.grad is not None and (weight_VD.grad == 0).all()


def test_under_gradient_checkpointing() -> None:
    hidden_ND, weight_VD, _, targets = problem(3)

    def loss(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        return fused_distillation_loss(hidden_ND * 2, weight_VD, targets, Objective(), chunk=7).loss

    checkpointed = torch.utils.checkpoint.checkpoint(loss, hidden_ND, weight_VD, use_reentrant=False)
    plain = torch.autograd.grad(loss(hidden_ND, weight_VD), (hidden_ND, weight_VD))
    for one, other in zip(torch.autograd.grad(checkpointed, (hidden_ND, weight_VD)), plain, strict=True):
        assert torch.equal(one, other)


def test_compiled_into_one_graph() -> None:
    """No break in the graph, and the same gradients. Code is generated and run in benchmarks.train_head."""
    torch._dynamo.reset()
    hidden_ND, weight_VD, _, targets = problem(4, 2.0)

    def loss(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        objective = Objective(temperature=2.0, hard_weight=0.3)
        return fused_distillation_loss(hidden_ND, weight_VD, targets, objective, chunk=12).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(hidden_ND, weight_VD)
    plain = torch.autograd.grad(loss(hidden_ND, weight_VD), (hidden_ND, weight_VD))
    for one, other in zip(torch.autograd.grad(compiled, (hidden_ND, weight_VD)), plain, strict=True):
        assert torch.allclose(one, other)
