"""The five tests that catch the field's bugs, through the fused head, for every loss that `Objective` accepts.

One batch holds all kinds of labels: top k, fewer candidates, the whole vocabulary, sampled, text alone, no target. What
`Objective` accepts is asked of it: a loss that is added is tested here without a line more.
"""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.labels import accepted, drop_candidates, sampled, truncated
from trainer.head import fused_distillation_loss
from trainer.losses import SoftTargets, distillation_loss, soft_divergence, student_logits
from trainer.objective import Objective

N, D, V = 10, 4, 14
OBJECTIVES = accepted(temperatures=(1.0, 2.0))
NAMES = [f"{o.divergence}-{o.tail}-{o.temperature}" for o in OBJECTIVES]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def takes_samples(objective: Objective) -> bool:
    return objective.divergence == "forward_kl" and objective.temperature == 1


def mixed(teacher_NV: Tensor, objective: Objective, seed: int) -> SoftTargets:
    """Ten rows of six kinds; V candidates wide."""
    random = torch.Generator().manual_seed(seed)
    targets = truncated(teacher_NV, V, torch.randint(0, V, (N,), generator=random), objective.temperature)
    for row in (0, 1, 2, 7, 8, 9):
        drop_candidates(targets, row, keep=5, temperature=objective.temperature)
    drop_candidates(targets, 3, keep=2, temperature=objective.temperature)
    drop_candidates(targets, 4, keep=0)
    targets.target_ids_N[5] = -1
    targets.from_teacher_N[1] = False
    weight_N = torch.rand(N, generator=random, dtype=targets.log_tail_N.dtype)
    weight_N[9] = 0
    targets = dataclasses.replace(targets, weight_N=weight_N)
    return sampled(targets, teacher_NV, rows=(7, 8), draws=6, seed=seed) if takes_samples(objective) else targets


def problem(objective: Objective, dtype: torch.dtype, seed: int, same: bool = False) -> tuple[Tensor, Tensor, Any]:
    """Hidden states, weight and labels; with `same` the labels are those of the student itself."""
    random = torch.Generator().manual_seed(seed)
    hidden_ND, weight_VD = (torch.randn(n, D, generator=random, dtype=torch.float64).to(dtype) for n in (N, V))
    logits_NV = hidden_ND @ weight_VD.T if same else torch.randn(N, V, generator=random, dtype=torch.float64) * 2
    targets = mixed(logits_NV.to(torch.promote_types(dtype, torch.float32)), objective, seed)
    return hidden_ND.requires_grad_(), weight_VD.requires_grad_(), targets


def part(targets: SoftTargets, rows: list[int]) -> SoftTargets:
    fields = {f.name: getattr(targets, f.name) for f in dataclasses.fields(targets)}
    return SoftTargets(**{name: None if t is None else t[rows] for name, t in fields.items()})


@every_dtype
@every_objective
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 9999), chunk=st.integers(1, N))
def test_1_zero_where_the_student_is_the_teacher(
    objective: Objective, dtype: torch.dtype, seed: int, chunk: int
) -> None:
    if objective.tail == "zero":
        pytest.skip("is not 0 there, which test_losses says")
    hidden_ND, weight_VD, targets = problem(objective, dtype, seed, same=True)
    parts = fused_distillation_loss(hidden_ND, weight_VD, targets, objective, chunk=chunk)
    assert parts.divergence.abs() < 2e-5 * max(objective.temperature, 1) ** 2
    if objective.tail not in ("realised_token", "bucket_shape"):  # whose gradient is 0 in the mean (test_losses)
        soft = dataclasses.replace(targets, weight_N=targets.weight_N * targets.has_soft_N)
        if soft.top_weights_NK is not None:  # and so is that of sampled labels
            soft = dataclasses.replace(soft, weight_N=soft.weight_N * (soft.top_weights_NK.sum(-1) == 0))
        loss = fused_distillation_loss(hidden_ND, weight_VD, soft, objective, chunk=chunk).loss
        for gradient in torch.autograd.grad(loss, (hidden_ND, weight_VD)):
            assert gradient.abs().max() < 2e-5 * max(objective.temperature, 1)


@every_objective
def test_2_a_shift_by_one_shows(objective: Objective) -> None:
    """The shifted answer differs from the unshifted, so the test above would not pass on shifted labels."""
    hidden_ND, weight_VD, targets = problem(objective, torch.float64, 0, same=True)
    rows = [0, 1, 2, 5, 6]
    right, shifted = (part(targets, r) for r in (rows, [*rows[1:], rows[0]]))
    one, other = (
        fused_distillation_loss(hidden_ND[rows], weight_VD, t, objective).divergence for t in (right, shifted)
    )
    assert other > one.abs() + 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_objective
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 9999), scale=st.sampled_from([1.0, 30.0, 1e4]), hard_weight=st.sampled_from([0.0, 0.5, 1.0]))
def test_3_sure_and_masked_positions_stay_finite(
    objective: Objective, dtype: torch.dtype, seed: int, scale: float, hard_weight: float
) -> None:
    """p = 1 − 1e-9 beside a student that is sure of something else, in the dtype, through the head's two passes."""
    _, _, targets = problem(objective, torch.float32, seed)
    sure = truncated(torch.eye(N, V) * 21.0, V, torch.arange(N), objective.temperature)
    for name in ("top_ids_NK", "top_logprobs_NK", "log_tail_N"):
        getattr(targets, name)[2] = getattr(sure, name)[2]
    hidden_NN = torch.eye(N).to(dtype).requires_grad_()  # so that the logits are the weight
    weight_VN = (torch.randn(V, N, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    weight_VN[3, 0] = torch.finfo(dtype).min
    weight_VN.requires_grad_()
    chosen = dataclasses.replace(objective, hard_weight=hard_weight)
    loss = fused_distillation_loss(hidden_NN, weight_VN, targets, chosen, chunk=3).loss
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, (hidden_NN, weight_VN)))


@every_objective
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 9999), order=st.permutations(range(N)), cuts=st.sets(st.integers(1, N - 1), max_size=4))
def test_4_the_gradient_is_that_of_any_order_and_split(
    objective: Objective, seed: int, order: list[int], cuts: set[int]
) -> None:
    """Micro-batches, ranks and packs are orders and splits of the step's loss tokens; K is that of each part alone."""
    objective = dataclasses.replace(objective, hard_weight=0.3)
    hidden_ND, weight_VD, targets = problem(objective, torch.float64, seed)
    leaves = hidden_ND, weight_VD
    whole = torch.autograd.grad(fused_distillation_loss(*leaves, targets, objective).loss, leaves)
    total = torch.zeros((), dtype=torch.float64)
    for start, end in itertools.pairwise([0, *sorted(cuts), N]):
        rows = order[start:end]
        piece = part(targets, rows)
        width = max(int((piece.top_ids_NK >= 0).sum(-1).max()), 1)
        narrow = {name: getattr(piece, name)[:, :width] for name in ("top_ids_NK", "top_logprobs_NK")}
        if piece.top_weights_NK is not None:
            narrow["top_weights_NK"] = piece.top_weights_NK[:, :width]
        piece = dataclasses.replace(piece, **narrow)
        total = (
            total
            + fused_distillation_loss(
                hidden_ND[rows], weight_VD, piece, objective, normaliser=targets.weight_N.sum()
            ).loss
        )
    for one, other in zip(torch.autograd.grad(total, leaves), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@every_objective
def test_5_gradcheck_and_chunked_equals_whole(objective: Objective) -> None:
    objective = dataclasses.replace(objective, hard_weight=0.3)
    hidden_ND, weight_VD, targets = problem(objective, torch.float64, 3)

    def loss(hidden_ND: Tensor, weight_VD: Tensor, chunk: int = 3) -> Tensor:
        return fused_distillation_loss(hidden_ND, weight_VD, targets, objective, chunk=chunk, softcap=5.0).loss

    leaves = hidden_ND, weight_VD
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)  # the whole Jacobian: test_head
    logits_NV = 5 * torch.tanh(hidden_ND @ weight_VD.T / 5)
    dense = distillation_loss(student_logits(logits_NV, targets, objective.temperature), targets, objective).loss
    expected = torch.autograd.grad(dense, leaves)
    for chunk in (1, 4, N):
        chunked = loss(*leaves, chunk)
        torch.testing.assert_close(chunked, dense, rtol=1e-11, atol=1e-12)
        for one, other in zip(torch.autograd.grad(chunked, leaves), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@every_objective
def test_5_what_is_kept_for_backward_does_not_grow_with_the_vocabulary(objective: Objective) -> None:
    kept = []
    for vocabulary in (V, 40 * V):
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        hidden_ND, _, targets = problem(objective, torch.float32, 5)
        weight_VD = torch.randn(vocabulary, D, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            fused_distillation_loss(hidden_ND, weight_VD, targets, objective, chunk=3)
        storages.pop(weight_VD.untyped_storage().data_ptr())
        kept.append(sum(storages.values()))
    assert kept[0] == kept[1] < N * 4 * 24 * (D + V + 8)


@every_objective
def test_a_row_counts_the_same_alone_and_among_others(objective: Objective) -> None:
    """Each row gets the estimator that its own columns allow, whatever stands beside it."""
    hidden_ND, weight_VD, targets = problem(objective, torch.float64, 7)
    logits_NV = (hidden_ND @ weight_VD.T).detach()
    together = soft_divergence(student_logits(logits_NV, targets, objective.temperature), targets, objective)
    for row in targets.has_soft_N.nonzero()[:, 0].tolist():
        piece = part(targets, [row])
        own = int((piece.top_ids_NK >= 0).sum())
        narrow = {name: getattr(piece, name)[:, :own] for name in ("top_ids_NK", "top_logprobs_NK")}
        if piece.top_weights_NK is not None:
            narrow["top_weights_NK"] = piece.top_weights_NK[:, :own] if row in (7, 8) else None
        piece = dataclasses.replace(piece, **narrow)
        alone = soft_divergence(
            student_logits(logits_NV[row : row + 1], piece, objective.temperature), piece, objective
        )
        torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-12)
