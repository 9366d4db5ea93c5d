"""The GPU kernels of the head against its torch lines: on a GPU, or, where Triton has none, by its interpreter."""

import os
from importlib.util import find_spec

import pytest
import torch

from tests.trainer.test_head import OBJECTIVES, problem
from trainer import head
from trainer.objective import Objective

ON_GPU = torch.cuda.is_available()
if find_spec("triton") is None:
    pytest.skip("Triton comes with torch's builds for GPUs", allow_module_level=True)
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

from trainer import kernels  # noqa: E402  # after what it reads

DEVICE = "cuda" if ON_GPU else "cpu"
SHAPE = (5, 2 * kernels.BLOCK + 77)


def logits(scale: float) -> torch.Tensor:
    """Rows of usual logits, of a few tail tokens alone, and of none."""
    z_CV = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * scale
    z_CV[1, 3:] = -torch.inf
    z_CV[2] = -torch.inf
    z_CV[3, kernels.BLOCK :] += 50
    return z_CV


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_both_passes_give_torchs_numbers(scale: float, temperature: float) -> None:
    z_CV = logits(scale)
    expected = head.tail_sums(z_CV.clone(), temperature)
    found = kernels.tail_sums(z_CV.to(DEVICE), temperature)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-5)
    assert expected[1][2] == -torch.inf and torch.isfinite(expected[1][[0, 1, 3, 4]]).all()
    _, lse_C, lse_T_C = (numbers.clamp(min=head.MISSING) for numbers in expected)
    factors = lse_C, torch.randn(5), lse_T_C, torch.randn(5)
    gradient = kernels.tail_gradient(z_CV.clone().to(DEVICE), *(f.to(DEVICE) for f in factors), temperature)
    torch.testing.assert_close(gradient.cpu(), head.tail_gradient(z_CV, *factors, temperature), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.divergence}-{o.tail}-{o.temperature}")
def test_the_head_is_the_same_function_with_them(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_ND, weight_VD, bias_V, targets = problem(0, objective.temperature, torch.float32)
    leaves = hidden_ND, weight_VD, bias_V

    def run(device: str) -> tuple[torch.Tensor, ...]:
        there = [leaf.detach().to(device).requires_grad_() for leaf in leaves]
        labels = type(targets)(
            **{
                name: None if (value := getattr(targets, name)) is None else value.to(device)
                for name in targets.__dataclass_fields__
            }
        )
        loss = head.fused_distillation_loss(
            there[0], there[1], labels, objective, bias_V=there[2], softcap=4.0, chunk=7
        ).loss
        return (loss, *torch.autograd.grad(loss, there))

    plain = run("cpu")
    monkeypatch.setattr(head, "_kernels", lambda z_CV: kernels)
    for one, other in zip(run(DEVICE), plain, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-6)
