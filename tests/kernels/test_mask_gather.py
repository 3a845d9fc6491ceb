"""What masking and gathering promise for every input, on the plain implementation.

The Triton kernel is held to the same results in `on_triton/`.
"""

import pytest
import torch

from kernels import mask_and_gather, patchify, rect_contour
from kernels.mask_gather import Draw
from kernels.mask_gather.reference import inclusion_weights, stratum_size

# Images, channels, height, width, patch, kept, predicted: both ends of each range, odd sizes.
CASES = [
    (2, 1, 64, 96, 16, 7, 10),
    (2, 3, 28, 42, 14, 2, 4),
    (3, 1, 8, 8, 8, 1, 0),
    (3, 2, 9, 15, 3, 15, 0),
    (3, 1, 40, 24, 8, 14, 1),
    (3, 1, 40, 24, 8, 1, 14),
    (1, 1, 320, 320, 16, 100, 75),
    (2, 1, 1280, 1280, 16, 640, 1440),
]
DRAWS: list[Draw] = ["stratified", "weighted"]


def batch(images, channels, height, width, patch, *, padding=0.15):
    generator = torch.Generator().manual_seed(images + height + width)
    length = height // patch * (width // patch)
    return (
        torch.randint(0, 256, (images, channels, height, width), dtype=torch.uint8, generator=generator),
        torch.rand(images, length, generator=generator),
        torch.rand(images, length, generator=generator) >= padding,
        torch.randint(0, 2**62, (images,), generator=generator),
    )


def mask(
    inputs, *, keep, predict, patch, draw: Draw = "stratified", seed=11, inside=0.05, outside=0.15, **settings
):
    return mask_and_gather(
        *inputs,
        seed=seed,
        keep=keep,
        predict=predict,
        patch=patch,
        keep_inside=inside,
        keep_outside=outside,
        draw=draw,
        mean=0.5,
        std=0.25,
        **settings,
    )


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("case", CASES)
def test_ids_and_mask_belong_together(case, draw):
    *sizes, keep, predict = case
    inputs = batch(*sizes)
    result = mask(inputs, keep=keep, predict=predict, patch=sizes[-1], draw=draw)
    is_valid = inputs[2]
    images, length = is_valid.shape
    assert result.visible_BK.shape == (images, keep)
    assert result.predicted_BM.shape == (images, predict)
    assert bool((result.visible_BK.diff() > 0).all())
    assert bool((result.predicted_BM.diff() > 0).all())
    is_visible = torch.zeros(images, length, dtype=torch.bool).scatter_(1, result.visible_BK, True)
    assert torch.equal(result.is_masked_BL, ~is_visible)
    assert bool(result.is_masked_BL.gather(1, result.predicted_BM).all())
    assert torch.equal(result.is_scored_BM, is_valid.gather(1, result.predicted_BM))


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("case", CASES)
def test_padding_is_taken_only_where_nothing_else_is_left(case, draw):
    *sizes, keep, predict = case
    inputs = batch(*sizes, padding=0.6)
    result = mask(inputs, keep=keep, predict=predict, patch=sizes[-1], draw=draw)
    is_valid = inputs[2]
    valid = is_valid.sum(1)
    kept_valid = is_valid.gather(1, result.visible_BK).sum(1)
    assert torch.equal(kept_valid, valid.clamp(max=keep))
    assert torch.equal(result.is_scored_BM.sum(1), (valid - kept_valid).clamp(max=predict))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES[:4])
def test_patches_are_the_normalised_visible_ones(case, dtype):
    *sizes, keep, predict = case
    inputs = batch(*sizes)
    result = mask(inputs, keep=keep, predict=predict, patch=sizes[-1], dtype=dtype)
    every = (patchify(inputs[0], sizes[-1]).double() / 255 - 0.5) / 0.25
    expected = every.gather(1, result.visible_BK[..., None].expand(-1, -1, every.shape[2]))
    assert result.patches_BKP.dtype == dtype
    torch.testing.assert_close(
        result.patches_BKP.double(), expected, atol=1e-6, rtol=torch.finfo(dtype).eps / 2 + 1e-7
    )


@pytest.mark.parametrize("draw", DRAWS)
def test_masks_do_not_depend_on_the_batch(draw):
    inputs = batch(5, 1, 96, 96, 8)
    together = mask(inputs, keep=20, predict=30, patch=8, draw=draw)
    order = [3, 0, 4]
    apart = mask([tensor[order] for tensor in inputs], keep=20, predict=30, patch=8, draw=draw)
    for whole, part in zip(together, apart, strict=True):
        assert torch.equal(whole[order], part)


@pytest.mark.parametrize("draw", DRAWS)
def test_seed_and_position_change_the_masks(draw):
    image, contour, is_valid, position = batch(4, 1, 96, 96, 8)
    one = mask((image, contour, is_valid, position), keep=20, predict=30, patch=8, draw=draw)
    for seed, moved in ((12, position), (11, position + 1)):
        other = mask((image, contour, is_valid, moved), keep=20, predict=30, patch=8, draw=draw, seed=seed)
        assert not bool((one.visible_BK == other.visible_BK).all(1).any())
        assert not bool((one.predicted_BM == other.predicted_BM).all(1).any())


def test_which_patches_are_visible_does_not_depend_on_how_many_are_predicted():
    inputs = batch(4, 1, 96, 96, 8)
    few, many = (mask(inputs, keep=20, predict=predict, patch=8) for predict in (5, 124))
    assert torch.equal(few.visible_BK, many.visible_BK)


@pytest.mark.parametrize(
    ("inside", "outside", "rounding", "keep", "rates", "kept_inside"),
    [
        (50, 50, 0, 40, (1, 3), 10),  # 40 * 50 / (50 + 150), no fraction to round
        (50, 50, 65535, 40, (1, 3), 10),
        (50, 50, 0, 41, (1, 3), 11),  # 10.25
        (50, 50, 16383, 41, (1, 3), 11),
        (50, 50, 16384, 41, (1, 3), 10),
        (0, 50, 0, 40, (1, 3), 0),
        (50, 0, 0, 40, (1, 3), 40),
        (90, 10, 0, 80, (1, 3), 70),  # 60, but only 10 exist outside
        (10, 90, 0, 80, (3, 1), 10),  # 20, but only 10 exist inside
        (5, 6, 0, 20, (1, 3), 5),  # fewer valid patches than are to be kept
        (0, 0, 0, 20, (1, 3), 0),
        (2_000_000, 97_151, 0, 1_000_000, (65536, 1), 1_000_000),
    ],
)
def test_stratum_size_follows_the_rates_and_what_exists(inside, outside, rounding, keep, rates, kept_inside):
    numbers = (torch.tensor([number]) for number in (inside, outside, rounding))
    result = stratum_size(*numbers, keep=keep, rate_inside=rates[0], rate_outside=rates[1])
    assert int(result) == kept_inside


def test_inclusion_weights_share_out_what_sure_patches_leave():
    contour = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0]])
    is_valid = torch.tensor([[True] * 7 + [False]])
    # Weights 8, 8, 1, 1, 1, 1, 4.5: with 5 of 7 kept, the heavy three are sure, and 2 of 4 remain.
    weight, rest, total = inclusion_weights(
        contour, is_valid, keep=5, rate_inside=8 * 4096, rate_outside=4096
    )
    probability = (weight * rest / total).clamp(max=1)
    assert int(rest) == 2
    torch.testing.assert_close(probability[0], torch.tensor([1, 1, 0.5, 0.5, 0.5, 0.5, 1, 0]))


@pytest.mark.parametrize("draw", DRAWS)
def test_a_region_at_rate_one_is_kept_before_a_sparse_one(draw):
    """Weights 65536 : 1, 4 patches inside, 5 kept: all inside ones and one other."""
    contour = torch.zeros(50, 16)
    contour[:, 3:7] = 1
    inputs = (
        torch.zeros(50, 1, 16, 16, dtype=torch.uint8),
        contour,
        torch.ones(50, 16, dtype=torch.bool),
        torch.arange(50),
    )
    result = mask(inputs, keep=5, predict=0, patch=4, draw=draw, inside=1.0, outside=1e-9)
    assert not bool(result.is_masked_BL[:, 3:7].any())


@pytest.mark.parametrize(("grid", "rows", "columns"), [(20, (6, 16), (3, 16)), (80, (24, 64), (12, 64))])
def test_rect_contour_is_the_released_rectangle_in_patches_of_any_size(grid, rows, columns):
    contour = rect_contour(grid).view(grid, grid)
    expected = torch.zeros(grid, grid)
    expected[rows[0] : rows[1], columns[0] : columns[1]] = 1
    assert torch.equal(contour, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 0}, "keep: got 0 patches, wanted 1 to 144"),
        ({"keep": 145}, "keep: got 145 patches, wanted 1 to 144"),
        ({"predict": -1}, "predict: got -1 patches, wanted 0 to 124"),
        ({"predict": 125}, "predict: got 125 patches, wanted 0 to 124"),
        ({"patch": 7}, "wanted multiples of the patch, 7"),
        ({"inside": 0.0}, r"keep_inside: got 0.0, wanted a keep rate in \(0, 1\]"),
        ({"outside": 1.5}, "keep_outside: got 1.5"),
        ({"draw": "poisson"}, "draw: got 'poisson', wanted one of stratified, weighted"),
        ({"dtype": torch.float64}, "dtype: got torch.float64"),
        ({"seed": -1}, "seed: got -1"),
        ({"backend": "cuda"}, "backend: got 'cuda', wanted one of auto, torch, triton"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    settings = {"keep": 20, "predict": 5, "patch": 8} | change
    with pytest.raises(ValueError, match=message):
        mask(batch(2, 1, 96, 96, 8), **settings)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda t: t.float(), "image: got torch.float32"),
        (0, lambda t: t[0], r"image: got shape \(1, 96, 96\), wanted \[B, C, H, W\]"),
        (1, lambda t: t.double(), "contour: got torch.float64"),
        (1, lambda t: t[:, 1:], r"contour: got .* \[2, 143\].* wanted .* \[2, 144\]"),
        (1, lambda t: t + 1, r"contour: got values outside \[0, 1\]"),
        (1, lambda t: t * float("nan"), "contour: got values outside .* or NaN"),
        (2, lambda t: t.long(), "is_valid: got torch.int64"),
        (3, lambda t: t.int(), "position: got torch.int32"),
        (3, lambda t: t[:1], r"position: got .* \[1\].* wanted .* \[2\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(place, change, message):
    inputs = list(batch(2, 1, 96, 96, 8))
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=message):
        mask(inputs, keep=20, predict=5, patch=8)


def test_a_std_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="std: got 0"):
        mask_and_gather(
            *batch(2, 1, 96, 96, 8),
            seed=0,
            keep=5,
            predict=5,
            patch=8,
            keep_inside=0.1,
            keep_outside=0.1,
            mean=0.5,
            std=0,
        )


def test_triton_on_the_cpu_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"needs CUDA tensors, got tensors on cpu; use backend='torch'"):
        mask(batch(2, 1, 96, 96, 8), keep=20, predict=5, patch=8, backend="triton")
