"""Inputs and the plain expression that both implementations of the patch loss are tested on."""

import torch

from kernels import patchify

# Images, channels, height, width, patch, predicted: one and several blocks of values, full and not.
CASES = [
    (2, 1, 64, 96, 16, 7),
    (2, 3, 28, 42, 14, 2),
    (3, 1, 9, 15, 3, 15),
    (1, 2, 4, 4, 2, 1),
    (2, 3, 32, 64, 32, 2),
    (1, 1, 128, 64, 64, 1),
    (3, 3, 48, 32, 16, 5),
]

# Sums of up to 4,096 squares in fp32, one for the variance and one for the error.
ERROR_TOLERANCE = 3e-6


def loss_inputs(case, dtype):
    """(pred, image, ids, weight) of a case; each image begins with a flat patch."""
    images, channels, height, width, patch, predicted = case
    generator = torch.Generator().manual_seed(height + width)
    length = height // patch * (width // patch)
    image = torch.randint(0, 256, (images, channels, height, width), dtype=torch.uint8, generator=generator)
    image[:, :, :patch, :patch] = 77
    ids = torch.rand(images, length, generator=generator).argsort(1)[:, :predicted].sort(1).values
    ids[:, 0] = 0
    pred = torch.randn(images, predicted, channels * patch * patch, generator=generator)
    weight = torch.rand(images, predicted, generator=generator)
    return pred.to(dtype).requires_grad_(), image, ids, weight


def plain_loss(pred, image, ids, weight, patch, mean, std, normalize):
    """(loss, mse) in float64, from all patches."""
    target = (patchify(image, patch).double() / 255 - mean) / std
    target = target.gather(1, ids[..., None].expand(-1, -1, target.shape[2]))
    if normalize:
        variance = target.var(dim=-1, keepdim=True)
        target = (target - target.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()
    mse = (pred.double() - target).square().mean(dim=-1)
    return (weight.double() * mse).sum(), mse


def relative_rms(value, exact):
    """Root mean square of the error over that of the exact tensor."""
    error, exact = value.detach().double() - exact.detach(), exact.detach()
    return float(error.square().mean().sqrt() / exact.square().mean().sqrt())
