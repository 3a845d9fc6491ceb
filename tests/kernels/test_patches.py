"""Cutting images into patches, choosing some, and putting them together again."""

import pytest
import torch
import torch.nn.functional as F

from kernels import gather_patches, patchify, unpatchify

# Channels, height, width, patch: rows of 16, 8, 4, 2 and 1 bytes, and of several words.
SIZES = [
    (1, 64, 96, 16),
    (3, 28, 42, 14),
    (1, 40, 24, 8),
    (3, 12, 20, 4),
    (2, 6, 10, 2),
    (1, 9, 15, 3),
    (1, 128, 64, 64),
    (1, 5, 7, 1),
]


def image_of(channels, height, width, *, images=3):
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (images, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("channels", "height", "width", "patch"), SIZES)
def test_unpatchify_undoes_patchify(channels, height, width, patch):
    image = image_of(channels, height, width)
    patches = patchify(image, patch)
    assert patches.shape == (3, height // patch * (width // patch), channels * patch * patch)
    assert torch.equal(unpatchify(patches, height // patch, width // patch, patch, channels), image)


@pytest.mark.parametrize(("channels", "height", "width", "patch"), SIZES)
def test_a_convolution_is_a_linear_layer_on_patches(channels, height, width, patch):
    image = image_of(channels, height, width).double()
    weight = torch.randn(
        5, channels, patch, patch, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    convolved = F.conv2d(image, weight, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(image, patch) @ weight.flatten(1).T, convolved)


@pytest.mark.parametrize("shift", [0, 5, 8])
@pytest.mark.parametrize(("channels", "height", "width", "patch"), SIZES)
def test_gathered_patches_are_those_of_patchify(channels, height, width, patch, shift):
    image = image_of(channels, height, width)
    # The same image at another address: the widest element that fits depends on it.
    storage = torch.zeros(image.numel() + shift, dtype=torch.uint8)
    moved = storage[shift:].view(image.shape).copy_(image)
    all_patches = patchify(image, patch)
    ids = torch.randint(0, all_patches.shape[1], (3, 6), generator=torch.Generator().manual_seed(1))
    expected = all_patches.gather(1, ids[..., None].expand(-1, -1, all_patches.shape[2]))
    assert torch.equal(gather_patches(moved, ids, patch), expected)


def test_gather_takes_images_that_are_not_contiguous():
    image = image_of(1, 32, 32).transpose(2, 3)
    ids = torch.tensor([[0, 3], [1, 2], [2, 0]])
    expected = patchify(image, 16).gather(1, ids[..., None].expand(-1, -1, 256))
    assert torch.equal(gather_patches(image, ids, 16), expected)


def test_gather_of_no_patches_is_empty():
    ids = torch.zeros(3, 0, dtype=torch.int64)
    assert gather_patches(image_of(3, 32, 32), ids, 16).shape == (3, 0, 768)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patchify(image_of(1, 30, 32), 16), "30 x 32 pixels, wanted multiples of the patch, 16"),
        (
            lambda: patchify(image_of(1, 32, 32)[0], 16),
            r"image: got shape \(1, 32, 32\), wanted \[B, C, H, W\]",
        ),
        (lambda: unpatchify(torch.zeros(1, 4, 255), 2, 2, 16, 1), r"wanted \[B, 4, 256\]"),
        (lambda: gather_patches(image_of(1, 32, 32), torch.tensor([[0], [4], [1]]), 16), "ids: got 0 to 4"),
        (lambda: gather_patches(image_of(1, 32, 32), torch.tensor([[0], [-1], [1]]), 16), "ids: got -1 to 1"),
        (lambda: gather_patches(image_of(1, 32, 32).float(), torch.zeros(3, 1).long(), 16), "torch.uint8"),
        (lambda: gather_patches(image_of(1, 32, 32), torch.zeros(2, 1).long(), 16), r"wanted .* \[3, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
