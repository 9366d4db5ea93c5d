"""The losses against the field's bugs: 0 at student = teacher, the dense reference, confident and missing entries."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storage.codec import round_mantissa
from tests.trainer.labels import drop_candidates, truncated
from trainer.divergences import SAME_PROBABILITY
from trainer.errors import LossRefused
from trainer.losses import SoftTargets, distillation_loss, soft_divergence, student_logits
from trainer.objective import DIVERGENCES, TAILS, Objective

V = 24
ACCEPTED = [
    Objective(divergence, tail, temperature, hard_weight=0.0)
    for divergence in DIVERGENCES
    for tail in TAILS
    for temperature in (1.0, 0.7, 2.0, 4.0)
    if (tail in ("bucket", "renormalised") or (divergence == "forward_kl" and temperature == 1))
]
SELF_ZERO = [objective for objective in ACCEPTED if objective.tail != "zero"]
NAMES = [f"{o.divergence}-{o.tail}-{o.temperature}" for o in ACCEPTED]

logits = st.integers(0, 2**31 - 1).flatmap(
    lambda seed: st.sampled_from([0.3, 2.0, 8.0, 30.0]).map(
        lambda scale: (torch.randn(6, V, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()
    )
)


def loss_and_gradient(logits_NV: Tensor, targets: SoftTargets, objective: Objective) -> tuple[Tensor, Tensor]:
    """The divergence of each position, and the gradient of their sum in the logits."""
    logits_NV = logits_NV.detach().requires_grad_()
    loss_N = soft_divergence(student_logits(logits_NV, targets, objective.temperature), targets, objective)
    (gradient_NV,) = torch.autograd.grad(loss_N.sum(), logits_NV)
    return loss_N.detach(), gradient_NV


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", SELF_ZERO, ids=[name for name in NAMES if "-zero-" not in name])
@settings(max_examples=12, deadline=None)
@given(z=logits, k=st.integers(1, V), missing=st.integers(0, 8))
def test_zero_where_the_student_is_the_teacher(
    objective: Objective, dtype: torch.dtype, z: Tensor, k: int, missing: int
) -> None:
    targets = truncated(z.to(dtype), k, z.argmax(-1), objective.temperature)
    targets.target_ids_N[:] = targets.top_ids_NK[:, 0]  # within K also where two are likeliest
    if missing and objective.temperature == 1:
        drop_candidates(targets, row=0, keep=max(k - missing, 1))
    loss_N, gradient_NV = loss_and_gradient(z.to(dtype), targets, objective)
    assert loss_N.abs().max() < 2e-5 * max(objective.temperature, 1)
    if objective.tail != "realised_token":  # whose gradient is 0 in the mean over realised tokens, see below
        assert gradient_NV.abs().max() < 1e-5


@pytest.mark.parametrize("objective", ACCEPTED, ids=NAMES)
@settings(max_examples=10, deadline=None)
@given(z=logits, other=logits, k=st.integers(1, V - 1))
def test_not_negative_elsewhere(objective: Objective, z: Tensor, other: Tensor, k: int) -> None:
    targets = truncated(z.double(), k, z.argmax(-1), objective.temperature)
    loss_N, _ = loss_and_gradient(other.double(), targets, objective)
    if objective.tail != "realised_token":
        assert (loss_N > -1e-6).all()
    assert torch.isfinite(loss_N).all()


def dense(p_NV: Tensor, q_NV: Tensor, kept_NV: Tensor, objective: Objective) -> Tensor:
    """The same loss written for whole distributions, as a textbook would: [N, V] everywhere, plain probabilities."""
    T = objective.temperature
    p_NV, q_NV = p_NV ** (1 / T), q_NV ** (1 / T)
    p_NV, q_NV = p_NV / p_NV.sum(-1, keepdim=True), q_NV / q_NV.sum(-1, keepdim=True)
    shape = (len(p_NV), -1)
    p_NE, q_NE = p_NV[kept_NV].reshape(shape), q_NV[kept_NV].reshape(shape)
    if objective.tail == "bucket":
        p_NE = torch.cat([p_NE, (p_NV * ~kept_NV).sum(-1, keepdim=True)], -1)
        q_NE = torch.cat([q_NE, (q_NV * ~kept_NV).sum(-1, keepdim=True)], -1)
    elif objective.tail == "renormalised":
        p_NE, q_NE = p_NE / p_NE.sum(-1, keepdim=True), q_NE / q_NE.sum(-1, keepdim=True)
    else:
        p_NE = p_NE / p_NE.sum(-1, keepdim=True)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    m = objective.beta * p_NE + (1 - objective.beta) * q_NE
    skewed = objective.skew * p_NE + (1 - objective.skew) * q_NE
    return {
        "forward_kl": kl(p_NE, q_NE),
        "reverse_kl": kl(q_NE, p_NE),
        "jensen_shannon": objective.beta * kl(p_NE, m) + (1 - objective.beta) * kl(q_NE, m),
        "skewed_kl": kl(p_NE, skewed),
        # what float32 cannot tell apart counts as equal
        "total_variation": ((p_NE - q_NE).abs() - SAME_PROBABILITY).clamp(min=0).sum(-1) / 2,
    }[objective.divergence]


@pytest.mark.parametrize(
    "objective",
    [dataclasses.replace(o, beta=0.3, skew=0.2) for o in ACCEPTED if o.tail in ("bucket", "renormalised", "zero")],
    ids=[name for name in NAMES if name.split("-")[1] in ("bucket", "renormalised", "zero")],
)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, V - 1))
def test_equals_the_dense_reference_with_its_gradient(objective: Objective, seed: int, k: int) -> None:
    random = torch.Generator().manual_seed(seed)
    teacher_NV = torch.randn(6, V, generator=random, dtype=torch.float64) * 2
    student_NV = (torch.randn(6, V, generator=random, dtype=torch.float64) * 2).requires_grad_()
    targets = truncated(teacher_NV, k, teacher_NV.argmax(-1), objective.temperature)
    kept_NV = torch.zeros(6, V, dtype=torch.bool).scatter(1, targets.top_ids_NK, True)
    reference_N = dense(teacher_NV.softmax(-1), student_NV.softmax(-1), kept_NV, objective)
    (reference_gradient,) = torch.autograd.grad(reference_N.sum(), student_NV)
    loss_N, gradient_NV = loss_and_gradient(student_NV, targets, objective)
    assert torch.allclose(loss_N, reference_N.detach(), atol=1e-9)
    assert torch.allclose(gradient_NV, reference_gradient, atol=1e-9)


def test_gradient_of_the_bucket_is_the_published_one() -> None:
    """v ∈ K: q_v − p_v; v ∉ K: q_v (P − Q)/(1 − Q)."""
    torch.manual_seed(0)
    teacher_NV, student_NV = torch.randn(2, 5, V, dtype=torch.float64).mul(2)
    targets = truncated(teacher_NV, 6, teacher_NV.argmax(-1))
    q_NV, kept_NV = student_NV.softmax(-1), torch.zeros(5, V, dtype=torch.bool).scatter(1, targets.top_ids_NK, True)
    p_NV = teacher_NV.softmax(-1)
    P_N1, Q_N1 = (p_NV * kept_NV).sum(-1, keepdim=True), (q_NV * kept_NV).sum(-1, keepdim=True)
    expected_NV = torch.where(kept_NV, q_NV - p_NV, q_NV * (P_N1 - Q_N1) / (1 - Q_N1))
    assert torch.allclose(loss_and_gradient(student_NV, targets, Objective())[1], expected_NV)


@pytest.mark.parametrize("tail", ["bucket_shape", "realised_token"])
@pytest.mark.parametrize("same_student", [True, False])
def test_realised_tokens_are_unbiased_for_the_full_kl(tail: str, same_student: bool) -> None:
    """The mean over all y of p_y · estimate(y), and of its gradient, are those of the full KL."""
    torch.manual_seed(1)
    teacher_V = torch.randn(V, dtype=torch.float64) * 2
    student_V = teacher_V.clone() if same_student else torch.randn(V, dtype=torch.float64)
    p_V = teacher_V.softmax(-1)
    targets = truncated(teacher_V.expand(V, V), 5, torch.arange(V))
    student_NV = student_V.expand(V, V).clone().requires_grad_()
    loss_N = soft_divergence(student_logits(student_NV, targets), targets, Objective(tail=tail))
    (gradient_NV,) = torch.autograd.grad((p_V * loss_N).sum(), student_NV)
    full = (p_V * (p_V.log() - student_V.log_softmax(-1))).sum()
    assert torch.allclose((p_V * loss_N).sum(), full)
    assert torch.allclose(gradient_NV.sum(0), student_V.softmax(-1) - p_V)
    assert gradient_NV.abs().max() > 1e-3  # one sample alone is noisy, also where the student is the teacher


@pytest.mark.parametrize("tail", ["bucket_shape", "realised_token"])
def test_tokens_that_the_teacher_did_not_draw_keep_the_bucket(tail: str) -> None:
    torch.manual_seed(2)
    teacher_NV, student_NV = torch.randn(2, V, V, dtype=torch.float64)
    targets = truncated(teacher_NV, 5, torch.arange(V))
    foreign = dataclasses.replace(targets, from_teacher_N=torch.zeros(V, dtype=torch.bool))
    bucket_N, gradient_NV = loss_and_gradient(student_NV, targets, Objective())
    for labels in (foreign, dataclasses.replace(targets, target_ids_N=torch.full((V,), -1))):
        loss_N, other_NV = loss_and_gradient(student_NV, labels, Objective(tail=tail))
        assert torch.equal(loss_N, bucket_N)
        assert torch.allclose(other_NV, gradient_NV)
    with pytest.raises(LossRefused, match="which realised tokens the teacher drew"):
        loss_and_gradient(student_NV, dataclasses.replace(targets, from_teacher_N=None), Objective(tail=tail))


@pytest.mark.parametrize("tail", ["bucket_shape", "realised_token"])
def test_unknown_logprob_of_the_realised_token_leaves_the_gradient(tail: str) -> None:
    torch.manual_seed(3)
    teacher_NV, student_NV = torch.randn(2, V, V, dtype=torch.float64)
    targets = truncated(teacher_NV, 5, torch.arange(V))
    unknown = dataclasses.replace(targets, target_logprobs_N=torch.full((V,), torch.nan, dtype=torch.float64))
    with_it, without = (loss_and_gradient(student_NV, t, Objective(tail=tail)) for t in (targets, unknown))
    assert torch.isfinite(without[0]).all()
    assert torch.allclose(with_it[1], without[1])


def test_sampled_labels_are_unbiased_for_the_full_kl() -> None:
    """Each single draw v, weighted by p_v."""
    torch.manual_seed(4)
    p_V, log_q_V = torch.randn(V, dtype=torch.float64).softmax(-1), torch.randn(V, dtype=torch.float64).log_softmax(-1)
    targets = SoftTargets(
        target_ids_N=torch.arange(V),
        top_ids_NK=torch.arange(V)[:, None],
        top_logprobs_NK=p_V.log()[:, None],
        log_tail_N=torch.log1p(-p_V),
        weight_N=torch.ones(V, dtype=torch.float64),
        top_weights_NK=torch.ones(V, 1, dtype=torch.float64),
    )
    student_NV = log_q_V.expand(V, V).clone().requires_grad_()
    loss = (p_V * soft_divergence(student_logits(student_NV, targets), targets, Objective())).sum()
    (gradient_NV,) = torch.autograd.grad(loss, student_NV)
    assert torch.allclose(loss, (p_V * (p_V.log() - log_q_V)).sum())
    assert torch.allclose(gradient_NV.sum(0), log_q_V.exp() - p_V)
    with pytest.raises(LossRefused, match="sampled with replacement"):
        soft_divergence(student_logits(student_NV, targets), targets, Objective("reverse_kl"))


def test_zero_tail_teaches_that_there_is_none() -> None:
    """Named for what it is: 0 for a student that puts p / P on the candidates, above 0 for one that is the teacher."""
    torch.manual_seed(5)
    teacher_NV = torch.randn(4, V, dtype=torch.float64)
    targets = truncated(teacher_NV, 5, teacher_NV.argmax(-1))
    no_tail_NV = torch.full_like(teacher_NV, -60.0).scatter(1, targets.top_ids_NK, targets.top_logprobs_NK)
    objective = Objective(tail="zero")
    assert loss_and_gradient(no_tail_NV, targets, objective)[0].abs().max() < 1e-9
    P_N = targets.top_logprobs_NK.exp().sum(-1)
    assert torch.allclose(loss_and_gradient(teacher_NV, targets, objective)[0], -P_N.log())


@settings(max_examples=30, deadline=None)
@given(z=logits, bits=st.integers(5, 10), k=st.integers(1, V - 1))
def test_rounded_labels_do_not_push_the_bucket_below_zero(z: Tensor, bits: int, k: int) -> None:
    targets = truncated(z.float(), k, z.argmax(-1))
    rounded = torch.from_numpy(round_mantissa(targets.top_logprobs_NK.numpy(), bits))
    for divergence in DIVERGENCES:
        stored = dataclasses.replace(targets, top_logprobs_NK=rounded)
        loss_N, _ = loss_and_gradient(z.float(), stored, Objective(divergence))
        assert loss_N.min() > -2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", ACCEPTED, ids=NAMES)
def test_extreme_positions_stay_finite(objective: Objective, dtype: torch.dtype) -> None:
    """p = 1 − 1e-9; a student just as sure of another token; masked candidates; missing ids; no labels at all."""
    torch.manual_seed(6)
    teacher_NV = torch.randn(7, V)
    teacher_NV[0, 3] = 25.0
    teacher_NV[1, 3] = 90.0
    targets = truncated(teacher_NV, 6, teacher_NV.argmax(-1), objective.temperature)
    drop_candidates(targets, 2, keep=2)
    drop_candidates(targets, 3, keep=0)
    drop_candidates(targets, 4, keep=0)
    targets.target_ids_N[4] = -1
    targets.log_tail_N[5] = -torch.inf
    student_NV = torch.randn(7, V).to(dtype)
    student_NV[0, 4] = 300.0
    student_NV[1, targets.top_ids_NK[1, 1:3]] = -torch.inf
    student_NV[5] = torch.finfo(dtype).min
    student_NV[5, 0] = 0
    student_NV[6] = -torch.inf
    student_NV[6, targets.top_ids_NK[6]] = 1
    student_NV.requires_grad_()
    for hard_weight in (0.0, 0.5, 1.0):
        loss = distillation_loss(
            student_logits(student_NV, targets, objective.temperature),
            targets,
            dataclasses.replace(objective, hard_weight=hard_weight),
        ).loss
        (gradient_NV,) = torch.autograd.grad(loss, student_NV)
        assert loss.abs() < 1e5  # a masked candidate costs at most −FLOOR
        assert torch.isfinite(gradient_NV).all()


def test_a_rare_token_still_pulls_on_a_student_that_calls_it_impossible() -> None:
    """No floor on the student's finite logits: the gradient q − p reaches a candidate at log q = −200."""
    teacher_NV = torch.zeros(1, V)
    targets = truncated(teacher_NV, 4, torch.tensor([0]))
    student_NV = torch.zeros(1, V)
    student_NV[0, targets.top_ids_NK[0, 0]] = -200.0
    _, gradient_NV = loss_and_gradient(student_NV, targets, Objective())
    assert gradient_NV[0, targets.top_ids_NK[0, 0]] == pytest.approx(-1 / V)


def test_a_tail_lost_in_rounding_is_not_called_impossible() -> None:
    """r = 0 after rounding counts as 1e-7: a student with 0.1 % there has reverse KL 0.001 · log(0.001 / 1e-7)."""
    targets = truncated(torch.randn(1, V), 1, torch.tensor([0]))
    targets.top_ids_NK[:], targets.top_logprobs_NK[:], targets.log_tail_N[:] = 0, 0.0, -torch.inf
    student_NV = torch.full((1, V), math.log(0.001 / (V - 1)))
    student_NV[0, 0] = math.log(0.999)
    loss_N, _ = loss_and_gradient(student_NV, targets, Objective("reverse_kl"))
    assert loss_N.item() == pytest.approx(0.001 * math.log(0.001 / 1e-7) - 0.001, rel=0.01)


def test_there_is_no_tail_where_the_student_has_no_other_token() -> None:
    """A rounded r = 1e-4 beside all V candidates is not held against a student that has no token to put it on."""
    student_NV = torch.randn(3, V)
    targets = truncated(student_NV, V, torch.zeros(3, dtype=torch.long))
    targets.log_tail_N[:] = math.log(1e-4)
    assert loss_and_gradient(student_NV, targets, Objective())[0].abs().max() < 1e-6


def test_tiny_tails_keep_their_digits() -> None:
    """1 − Q = 1e-12 comes from the tail's own log-sum-exp: from Q it would be 0."""
    student_NV = torch.full((1, V), -30.0)
    student_NV[0, 0] = 0.0
    targets = truncated(torch.randn(1, V), 1, torch.tensor([0]))
    targets.top_ids_NK[:] = 0
    student = student_logits(student_NV, targets)
    assert student.tail_lse_N.item() == pytest.approx(math.log(V - 1) - 30)
    loss_N, _ = loss_and_gradient(student_NV, targets, Objective())
    r = targets.log_tail_N.exp().item()
    expected = (1 - r) * math.log(1 - r) + r * (math.log(r) - (math.log(V - 1) - 30))
    assert loss_N.item() == pytest.approx(expected, rel=1e-5)


def test_hard_weight_mixes_and_stands_in_where_there_are_no_soft_labels() -> None:
    torch.manual_seed(7)
    teacher_NV, student_NV = torch.randn(2, 4, V, dtype=torch.float64)
    targets = truncated(teacher_NV, 5, torch.tensor([1, 2, 3, -1]))
    drop_candidates(targets, 2, keep=0)
    student = student_logits(student_NV, targets)
    kl_N = soft_divergence(student, targets, Objective())
    ce_N = -student_NV.log_softmax(-1).gather(1, targets.target_ids_N.clamp(min=0)[:, None])[:, 0]
    parts = distillation_loss(student, targets, Objective(hard_weight=0.25))
    mixed = 0.75 * kl_N[0] + 0.25 * ce_N[0] + 0.75 * kl_N[1] + 0.25 * ce_N[1] + ce_N[2] + 0.75 * kl_N[3]
    assert torch.allclose(parts.loss, mixed / 4)
    assert torch.allclose(parts.divergence, kl_N[[0, 1, 3]].sum())
    assert torch.allclose(parts.hard, ce_N[:3].sum())
    assert (parts.soft_tokens, parts.hard_tokens, parts.tokens) == (3, 3, 4)
    assert torch.allclose(parts.teacher_mass, targets.top_logprobs_NK[[0, 1, 3]].exp().sum())


def test_weights_and_normaliser_add_up_over_any_split() -> None:
    torch.manual_seed(8)
    teacher_NV, student_NV = torch.randn(2, 10, V, dtype=torch.float64)
    targets = truncated(teacher_NV, 5, teacher_NV.argmax(-1))
    weighted = dataclasses.replace(targets, weight_N=torch.rand(10, dtype=torch.float64))
    whole = distillation_loss(student_logits(student_NV, weighted), weighted, Objective())
    assert torch.allclose(whole.loss, whole.divergence / whole.tokens)
    total = torch.zeros((), dtype=torch.float64)
    for part in (slice(0, 3), slice(3, 4), slice(4, 10)):
        fields = {f.name: getattr(weighted, f.name) for f in dataclasses.fields(weighted)}
        piece = SoftTargets(**{name: None if t is None else t[part] for name, t in fields.items()})
        logits = student_logits(student_NV[part], piece)
        total += distillation_loss(logits, piece, Objective(), normaliser=whole.tokens).loss
    assert torch.allclose(total, whole.loss)


def test_nothing_to_learn_is_loss_0() -> None:
    student_NV = torch.randn(3, V, requires_grad=True)
    targets = truncated(torch.randn(3, V), 5, torch.zeros(3, dtype=torch.long))
    silent = dataclasses.replace(targets, weight_N=torch.zeros(3))
    loss = distillation_loss(student_logits(student_NV, silent), silent, Objective(hard_weight=0.5)).loss
    loss.backward()
    assert loss == 0
    assert student_NV.grad is not None and (student_NV.grad == 0).all()


def test_agreement_counts_equal_first_tokens() -> None:
    teacher_NV = torch.randn(6, V)
    targets = truncated(teacher_NV, 4, teacher_NV.argmax(-1))
    student_NV = teacher_NV.clone()
    student_NV[0, targets.top_ids_NK[0, 1]] += 50  # another candidate first
    student_NV[1, _outside(targets, 1)] += 50  # a tail token first
    parts = distillation_loss(student_logits(student_NV, targets), targets, Objective())
    assert parts.agreement == 4


def _outside(targets: SoftTargets, row: int) -> int:
    return next(v for v in range(V) if v not in targets.top_ids_NK[row].tolist())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tail": "zero", "divergence": "reverse_kl"}, "forward KL alone"),
        ({"tail": "realised_token", "divergence": "jensen_shannon"}, "forward KL alone"),
        ({"tail": "zero", "temperature": 2.0}, "tail at T ≠ 1"),
        ({"tail": "bucket_shape", "temperature": 0.5}, "tail at T ≠ 1"),
        ({"temperature": 0.0}, "not above 0"),
        ({"hard_weight": 1.5}, "not between 0 and 1"),
        ({"divergence": "forwards"}, "choose one of forward_kl"),
        ({"tail": "none"}, "choose one of bucket"),
        ({"divergence": "jensen_shannon", "beta": 1.0}, "0 everywhere"),
        ({"divergence": "skewed_kl", "skew": 1.0}, "below 1"),
    ],
)
def test_what_cannot_be_right_is_refused_with_the_reason(changes: dict, message: str) -> None:
    with pytest.raises(LossRefused, match=message):
        Objective(**changes)


def test_bucket_at_a_temperature_needs_tail_sums() -> None:
    """r^{1/T} would be the wrong tail: on this Zipf law a perfect student would pay for it."""
    ranks = torch.arange(1, 32_001, dtype=torch.float64)
    teacher_1V = (-1.3 * ranks.log())[None]
    targets = truncated(teacher_1V, 64, torch.tensor([0]), temperature=2.0)
    objective = Objective(temperature=2.0)
    assert loss_and_gradient(teacher_1V, targets, objective)[0].item() == pytest.approx(0, abs=1e-9)
    guessed = dataclasses.replace(targets, tail_sum_N=targets.log_tail_N / 2)
    assert loss_and_gradient(teacher_1V, guessed, objective)[0].item() > 0.1
    with pytest.raises(LossRefused, match="tail sums"):
        loss_and_gradient(teacher_1V, dataclasses.replace(targets, tail_sum_N=None), objective)


def test_t_squared_multiplies_the_gradient() -> None:
    torch.manual_seed(9)
    teacher_NV, student_NV = torch.randn(2, 4, V, dtype=torch.float64)
    targets = truncated(teacher_NV, 5, teacher_NV.argmax(-1))
    objective = Objective(tail="renormalised", temperature=3.0)
    student_NV.requires_grad_()
    parts = distillation_loss(student_logits(student_NV, targets, 3.0), targets, objective)
    plain_N = soft_divergence(student_logits(student_NV, targets, 3.0), targets, objective)
    one, other = (torch.autograd.grad(loss, student_NV)[0] for loss in (parts.loss, plain_N.mean()))
    assert torch.allclose(one, 9 * other)
