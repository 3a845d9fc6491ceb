# Triton converts the arguments of its kernels.
# pyright: reportArgumentType=false
"""The Triton kernel of the patch loss against autograd in float64."""

import pytest
import torch

from kernels import patch_loss
from kernels.patch_loss.reference import LossAndGradient
from kernels.patch_loss.triton_kernel import block_sizes, launch_arguments, patch_loss_kernel, scale_gradient
from tests.kernels.patch_loss_cases import CASES, ERROR_TOLERANCE, loss_inputs, plain_loss, relative_rms


def on(device, tensors):
    pred, *others = tensors
    return pred.detach().to(device).requires_grad_(), *(tensor.to(device) for tensor in others)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_those_of_float64_autograd(device, units, case, dtype, normalize):
    patch = case[4]
    pred, image, ids, weight = on(device, loss_inputs(case, dtype))
    loss, mse = patch_loss(
        pred, image, ids, weight, patch=patch, mean=0.5, std=0.25, normalize=normalize, backend="triton"
    )
    (loss * 3).backward()
    exact = pred.detach().double().requires_grad_()
    exact_loss, exact_mse = plain_loss(exact, image, ids, weight, patch, 0.5, 0.25, normalize)
    (exact_loss * 3).backward()
    assert pred.grad is not None and pred.grad.dtype == dtype
    assert relative_rms(loss, exact_loss) < ERROR_TOLERANCE
    assert relative_rms(mse, exact_mse) < ERROR_TOLERANCE
    # Cutting off instead of rounding doubles the error of bf16.
    tolerance = {torch.float32: 5e-7, torch.bfloat16: 4e-3 * (1 + units), torch.float16: 5e-4}[dtype]
    assert relative_rms(pred.grad, exact.grad) < tolerance


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_output_is_written_and_nothing_behind_it(device, case, with_gradient):
    patch = case[4]
    pred, image, ids, weight = on(device, loss_inputs(case, torch.float32))
    rows, values = ids.numel(), pred.shape[2]
    programs = -(-rows // block_sizes(values)[0])
    guard, nan = 5, float("nan")
    mse = torch.full((rows + guard,), nan, device=device)
    partial = torch.full((programs + guard,), nan, device=device)
    gradient = torch.full((rows * values + guard,), nan, device=device)
    out = LossAndGradient(
        partial[:programs],
        mse[:rows].view(ids.shape),
        gradient[:-guard].view(pred.shape) if with_gradient else None,
    )
    arguments, constants = launch_arguments(
        pred.detach(), image, ids, weight, out, patch=patch, mean=0.5, std=0.25, normalize=False
    )
    patch_loss_kernel[(programs,)](*arguments, **constants)
    exact_loss, exact_mse = plain_loss(pred.detach(), image, ids, weight, patch, 0.5, 0.25, False)
    assert relative_rms(out.loss.sum(), exact_loss) < ERROR_TOLERANCE
    assert relative_rms(out.mse_BM, exact_mse) < ERROR_TOLERANCE
    written = rows * values if with_gradient else 0
    assert bool(torch.isfinite(gradient[:written]).all())
    for buffer, size in ((mse, rows), (partial, programs), (gradient, written)):
        assert bool(torch.isnan(buffer[size:]).all())


@pytest.mark.parametrize("normalize", [False, True])
def test_patches_of_weight_zero_count_for_nothing_whatever_was_predicted(device, normalize):
    pred, image, ids, weight = on(device, loss_inputs((2, 1, 64, 96, 16, 7), torch.float32))
    weight[0, 2] = weight[1, 0] = 0
    spoiled = pred.detach().clone()
    spoiled[0, 2], spoiled[1, 0, :3] = float("inf"), float("nan")
    spoiled.requires_grad_()
    losses = [
        patch_loss(
            p, image, ids, weight, patch=16, mean=0.5, std=0.25, normalize=normalize, backend="triton"
        )[0]
        for p in (spoiled, pred)
    ]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    assert spoiled.grad is not None and pred.grad is not None
    assert bool((spoiled.grad[weight == 0] == 0).all())
    assert torch.equal(spoiled.grad, pred.grad)


def test_without_autograd_the_loss_is_the_same(device):
    pred, image, ids, weight = on(device, loss_inputs((2, 1, 64, 96, 16, 7), torch.bfloat16))
    arguments = {"patch": 16, "mean": 0.5, "std": 0.25, "backend": "triton"}
    with_gradient, _ = patch_loss(pred, image, ids, weight, **arguments)
    with torch.no_grad():
        loss, _ = patch_loss(pred, image, ids, weight, **arguments)
    assert not loss.requires_grad
    assert torch.equal(loss, with_gradient)


def test_no_predicted_patches_give_a_loss_of_zero(device):
    pred = torch.zeros(2, 0, 256, device=device, requires_grad=True)
    image = torch.zeros(2, 1, 32, 32, dtype=torch.uint8, device=device)
    ids, weight = torch.zeros(2, 0, dtype=torch.int64, device=device), torch.zeros(2, 0, device=device)
    loss, _ = patch_loss(pred, image, ids, weight, patch=16, mean=0.5, std=0.25, backend="triton")
    loss.backward()
    assert loss.item() == 0
    assert pred.grad is not None and pred.grad.shape == (2, 0, 256)


@pytest.mark.parametrize("size", [1, 16, 4096, 5000])
@pytest.mark.parametrize("factor", [1.0, 0.125, 0.0])
def test_scaling_multiplies_in_place_and_nothing_behind(device, size, factor):
    buffer = torch.arange(1.0, size + 6, device=device)
    before = buffer.clone()
    scale_gradient(buffer[:size], torch.tensor(factor, device=device))
    assert torch.equal(buffer[:size], before[:size] * factor)
    assert torch.equal(buffer[size:], before[size:])
