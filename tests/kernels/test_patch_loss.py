"""The patch loss and its gradient against autograd in float64, on the plain implementation.

The Triton kernel is held to the same in `on_triton/`.
"""

import pytest
import torch

from kernels import patch_loss, patchify
from tests.kernels.patch_loss_cases import CASES, ERROR_TOLERANCE, loss_inputs, plain_loss, relative_rms

# What the gradient is stored in rounds it to half a unit in the last place, twice where it is scaled.
GRADIENT_TOLERANCE = {torch.float32: 5e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", list(GRADIENT_TOLERANCE))
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_those_of_float64_autograd(case, dtype, normalize):
    patch = case[4]
    pred, image, ids, weight = loss_inputs(case, dtype)
    loss, mse = patch_loss(pred, image, ids, weight, patch=patch, mean=0.5, std=0.25, normalize=normalize)
    (loss * 3).backward()
    exact = pred.detach().double().requires_grad_()
    exact_loss, exact_mse = plain_loss(exact, image, ids, weight, patch, 0.5, 0.25, normalize)
    (exact_loss * 3).backward()
    assert loss.dtype == mse.dtype == torch.float32
    assert not mse.requires_grad
    assert pred.grad is not None and pred.grad.dtype == dtype
    assert relative_rms(loss, exact_loss) < ERROR_TOLERANCE
    assert relative_rms(mse, exact_mse) < ERROR_TOLERANCE
    assert relative_rms(pred.grad, exact.grad) < GRADIENT_TOLERANCE[dtype]


def test_the_plain_expression_is_that_of_mae():
    """`forward_loss` of MAE's released code, over the masked patches of one image."""
    pred, image, ids, _ = loss_inputs((1, 1, 64, 64, 16, 5), torch.float32)
    target = patchify(image, 16).float() / 255
    mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    target = (target - mean) / (var + 1.0e-6) ** 0.5
    target = target.gather(1, ids[..., None].expand(-1, -1, 256))
    expected = ((pred - target) ** 2).mean(dim=-1).mean()
    weight = torch.full((1, 5), 1 / 5)
    loss, _ = patch_loss(pred, image, ids, weight, patch=16, mean=0.0, std=1.0, normalize=True)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_patches_of_weight_zero_count_for_nothing_whatever_was_predicted(normalize):
    pred, image, ids, weight = loss_inputs((2, 1, 64, 96, 16, 7), torch.float32)
    weight = weight.clone()
    weight[0, 2] = weight[1, 0] = 0
    spoiled = pred.detach().clone()
    spoiled[0, 2], spoiled[1, 0, :3] = float("inf"), float("nan")
    spoiled.requires_grad_()
    loss, mse = patch_loss(spoiled, image, ids, weight, patch=16, mean=0.5, std=0.25, normalize=normalize)
    loss.backward()
    clean, _ = patch_loss(pred, image, ids, weight, patch=16, mean=0.5, std=0.25, normalize=normalize)
    clean.backward()
    assert torch.equal(loss, clean)
    assert not bool(torch.isfinite(mse[weight == 0]).any())
    assert spoiled.grad is not None and pred.grad is not None
    assert bool((spoiled.grad[weight == 0] == 0).all())
    assert torch.equal(spoiled.grad, pred.grad)


def test_nearly_flat_patches_lose_no_digits():
    image = torch.full((1, 1, 32, 32), 200, dtype=torch.uint8)
    image[0, 0, 3, 5] = 201
    pred = torch.zeros(1, 4, 256)
    ids, weight = torch.arange(4)[None], torch.ones(1, 4)
    _, mse = patch_loss(pred, image, ids, weight, patch=16, mean=0.5, std=0.25, normalize=True)
    _, exact = plain_loss(pred, image, ids, weight, 16, 0.5, 0.25, True)
    assert relative_rms(mse[:, :1], exact[:, :1]) < ERROR_TOLERANCE
    assert bool((mse[:, 1:] == 0).all())


def test_without_autograd_no_gradient_is_made():
    pred, image, ids, weight = loss_inputs((2, 1, 64, 96, 16, 7), torch.float32)
    arguments = {"patch": 16, "mean": 0.5, "std": 0.25}
    with_gradient, _ = patch_loss(pred, image, ids, weight, **arguments)
    with torch.no_grad():
        loss, mse = patch_loss(pred, image, ids, weight, **arguments)
    assert not loss.requires_grad and not mse.requires_grad
    assert torch.equal(loss, with_gradient)
    detached, _ = patch_loss(pred.detach(), image, ids, weight, **arguments)
    assert not detached.requires_grad


def test_no_predicted_patches_give_a_loss_of_zero():
    pred = torch.zeros(2, 0, 256, requires_grad=True)
    image = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    loss, mse = patch_loss(
        pred, image, torch.zeros(2, 0).long(), torch.zeros(2, 0), patch=16, mean=0.5, std=0.25
    )
    loss.backward()
    assert loss.item() == 0 and mse.shape == (2, 0)
    assert pred.grad is not None and pred.grad.shape == (2, 0, 256)


def test_a_loss_is_differentiated_once():
    pred, image, ids, weight = loss_inputs((1, 1, 32, 32, 16, 2), torch.float32)
    loss, _ = patch_loss(pred, image, ids, weight, patch=16, mean=0.5, std=0.25)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        loss.backward()


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda t: t.double(), "pred: got torch.float64"),
        (0, lambda t: t[..., 1:], r"pred: got .* wanted .* \[2, 7, 256\]"),
        (0, lambda t: t[0, 0], r"pred: got .* of shape \[256\]"),
        (1, lambda t: t.float(), "image: got torch.float32"),
        (2, lambda t: t.int(), "ids: got torch.int32"),
        (2, lambda t: t + 24, "ids: got .* wanted 0 to 23"),
        (2, lambda t: t - 24, "ids: got -24"),
        (3, lambda t: t.double(), "weight: got torch.float64"),
        (3, lambda t: t[:, 1:], r"weight: got .* wanted .* \[2, 7\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(place, change, message):
    inputs = [tensor.detach() for tensor in loss_inputs((2, 1, 64, 96, 16, 7), torch.float32)]
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=message):
        patch_loss(*inputs, patch=16, mean=0.5, std=0.25)


def test_normalising_single_values_is_refused():
    pred, image, ids, weight = loss_inputs((1, 1, 4, 4, 1, 5), torch.float32)
    with pytest.raises(ValueError, match="patches of 1 value, which have no variance"):
        patch_loss(pred, image, ids, weight, patch=1, mean=0.5, std=0.25, normalize=True)
