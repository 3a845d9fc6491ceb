"""Masking and gathering in plain PyTorch: the definition that the Triton kernel is held to.

Shape suffixes: B images, C channels, L patches of an image, K visible, M predicted, P values of a patch.

Every choice is "the k smallest of a row of unsigned 32-bit keys, the earlier patch first among equals".
The upper bits of a key say which group the patch belongs to, the lower bits hold its random draw, so the
groups follow each other in one order, and padding, the last group, is reached only when nothing else is
left. All arithmetic that decides is on integers, or single fp32 operations that IEEE 754 rounds in one way
(difference, product, division), so any device selects the same patches.

Stratified draw
    Groups: inside the contour, outside, padding. The number kept inside, k_in, is

        k * n_in * rate_in / (n_in * rate_in + n_out * rate_out)

    rounded up with the probability of the fraction, so its expectation is exact, then clamped to what the
    two regions hold. In each region every subset of its size is equally likely.

Weighted draw
    Inclusion probabilities pi_i in proportion to the keep rate at the patch, which follows the covered
    fraction from the outside to the inside rate. Keys are those of Pareto sampling (Rosen, "On sampling
    with probability proportional to size", Journal of Statistical Planning and Inference 62, 1997):

        [u / (1 - u)] / [pi / (1 - pi)]

    The well-known keys E / w (successive sampling; Efraimidis and Spirakis) do not give inclusion in
    proportion to w: of 20 patches of weight 3 and 44 of weight 1, with K = 26, they keep a heavy one with
    probability 0.651 instead of 0.750. E / -log(1 - pi) and Pareto's keys both get there up to O(1/L);
    Pareto's error is about half as large (0.023 against 0.051 relative at L = 8), and its keys
    need no logarithm, whose last bit differs between devices. Where the rates ask for pi >= 1, the patch is
    kept for sure and the rest of K is shared out among the others by the same rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernels.mask_gather.masked_patches import MaskedPatches
from kernels.patches import gather_patches, normalize_pixels
from kernels.philox import STREAM_MASK, STREAM_PREDICTION, STREAM_ROUNDING, draws

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, UInt8

RATE_ONE = 1 << 16
"""A keep rate of 1 in the integer arithmetic of the draws."""
COVER_ONE = 1 << 12
"""A covered fraction of 1. The product with RATE_ONE fits 32 bits."""


def mask_and_gather(
    image_BCHW: UInt8[Tensor, "B C H W"],
    contour_BL: Float[Tensor, "B L"],
    is_valid_BL: Bool[Tensor, "B L"],
    position_B: Int64[Tensor, " B"],
    *,
    seed: int,
    keep: int,
    predict: int,
    patch: int,
    rate_inside: int,
    rate_outside: int,
    weighted: bool,
    mean: float,
    std: float,
    dtype: torch.dtype,
) -> MaskedPatches:
    """As the public function, with the rates in units of 1 / RATE_ONE and without its checks."""
    select = select_weighted if weighted else select_stratified
    is_visible_BL = select(
        contour_BL,
        is_valid_BL,
        position_B,
        seed=seed,
        keep=keep,
        rate_inside=rate_inside,
        rate_outside=rate_outside,
    )
    visible_BK = raster_ids(is_visible_BL, keep)
    is_predicted_BL = ~is_visible_BL
    if predict < contour_BL.shape[1] - keep:
        is_predicted_BL = select_predicted(is_visible_BL, is_valid_BL, position_B, seed=seed, predict=predict)
    predicted_BM = raster_ids(is_predicted_BL, predict)
    patches_BKP = normalize_pixels(gather_patches(image_BCHW, visible_BK, patch), mean, std).to(dtype)
    return MaskedPatches(
        patches_BKP, visible_BK, predicted_BM, is_valid_BL.gather(1, predicted_BM), ~is_visible_BL
    )


def select_stratified(
    contour_BL: Float[Tensor, "B L"],
    is_valid_BL: Bool[Tensor, "B L"],
    position_B: Int64[Tensor, " B"],
    *,
    seed: int,
    keep: int,
    rate_inside: int,
    rate_outside: int,
) -> Bool[Tensor, "B L"]:
    """The visible patches of the stratified draw: exactly `keep` in each row."""
    is_inside_BL = is_valid_BL & (contour_BL >= 0.5)
    inside_B, valid_B = is_inside_BL.sum(1), is_valid_BL.sum(1)
    rounding_B = draws(seed, position_B, STREAM_ROUNDING, 1)[:, 0] >> 16
    kept_inside_B = stratum_size(
        inside_B,
        valid_B - inside_B,
        rounding_B,
        keep=keep,
        rate_inside=rate_inside,
        rate_outside=rate_outside,
    )
    group_BL = torch.where(is_valid_BL, 1 - is_inside_BL.long(), 2)
    key_BL = (group_BL << 30) | (draws(seed, position_B, STREAM_MASK, contour_BL.shape[1]) >> 2)
    # One order holds both regions: the first kept_inside of it, and as many as are missing behind the
    # last patch that lies inside.
    last_B2 = torch.stack([kept_inside_B, inside_B + keep - kept_inside_B], dim=1)
    is_first_BL, is_second_BL = are_smallest(key_BL, last_B2)
    return is_first_BL | (is_second_BL & ~is_inside_BL)


def stratum_size(
    inside_B: Int64[Tensor, " B"],
    outside_B: Int64[Tensor, " B"],
    rounding_B: Int64[Tensor, " B"],
    *,
    keep: int,
    rate_inside: int,
    rate_outside: int,
) -> Int64[Tensor, " B"]:
    """How many patches are kept inside, from the regions' sizes and a draw in [0, 2^16)."""
    kept_B = (inside_B + outside_B).clamp(max=keep)
    part_B = inside_B * rate_inside
    whole_B = (part_B + outside_B * rate_outside).clamp(min=1)
    floor_B = kept_B * part_B // whole_B
    remainder_B = kept_B * part_B - floor_B * whole_B
    rounded_B = floor_B + ((remainder_B << 16) > rounding_B * whole_B)
    return torch.minimum(torch.maximum(rounded_B, kept_B - outside_B), inside_B)


def select_weighted(
    contour_BL: Float[Tensor, "B L"],
    is_valid_BL: Bool[Tensor, "B L"],
    position_B: Int64[Tensor, " B"],
    *,
    seed: int,
    keep: int,
    rate_inside: int,
    rate_outside: int,
) -> Bool[Tensor, "B L"]:
    """The visible patches of the weighted draw: exactly `keep` in each row."""
    weight_BL, rest_B1, total_B1 = inclusion_weights(
        contour_BL, is_valid_BL, keep=keep, rate_inside=rate_inside, rate_outside=rate_outside
    )
    word_BL = draws(seed, position_B, STREAM_MASK, contour_BL.shape[1])
    # u = odd / 2^32 is never 0 or 1; (1 - pi) / pi = mean_weight / weight - 1.
    odd_BL = word_BL | 1
    mean_weight_B1 = total_B1.float() / rest_B1.clamp(min=1).float()
    # Rounding may put the mean weight just below the weight of a patch that is not quite sure.
    above_BL = odd_BL.float() * (mean_weight_B1 - weight_BL.float()).clamp(min=0)
    below_BL = (2**32 - odd_BL).float() * weight_BL.clamp(min=1).float()
    # The bits of floats that are not negative order as the floats do, below 2^31.
    bits_BL = (above_BL / below_BL).view(torch.int32).long()
    key_BL = torch.where(weight_BL * rest_B1 >= total_B1, 0, bits_BL)
    key_BL = torch.where(is_valid_BL, key_BL, (1 << 31) | (word_BL >> 1))
    (is_visible_BL,) = are_smallest(key_BL, torch.full_like(total_B1, keep))
    return is_visible_BL


def inclusion_weights(
    contour_BL: Float[Tensor, "B L"],
    is_valid_BL: Bool[Tensor, "B L"],
    *,
    keep: int,
    rate_inside: int,
    rate_outside: int,
) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, "B 1"], Int64[Tensor, "B 1"]]:
    """(weight, rest, total) such that min(1, weight * rest / total) is the inclusion probability.

    Padding has weight 0, other patches at least 1.
    """
    covered_BL = torch.floor(contour_BL * COVER_ONE + 0.5).long()
    weight_BL = rate_outside * (COVER_ONE - covered_BL) + rate_inside * covered_BL
    weight_BL = torch.where(is_valid_BL, weight_BL, 0)
    kept_B1 = is_valid_BL.sum(1, keepdim=True).clamp(max=keep)
    rest_B1, total_B1 = kept_B1, weight_BL.sum(1, keepdim=True)
    while True:
        # Taking the sure ones out raises the probabilities of the others, and more may become sure.
        is_sure_BL = is_valid_BL & (weight_BL * rest_B1 >= total_B1)
        next_B1 = kept_B1 - is_sure_BL.sum(1, keepdim=True)
        if torch.equal(next_B1, rest_B1):
            return weight_BL, rest_B1, total_B1
        rest_B1, total_B1 = next_B1, (weight_BL * ~is_sure_BL).sum(1, keepdim=True)


def select_predicted(
    is_visible_BL: Bool[Tensor, "B L"],
    is_valid_BL: Bool[Tensor, "B L"],
    position_B: Int64[Tensor, " B"],
    *,
    seed: int,
    predict: int,
) -> Bool[Tensor, "B L"]:
    """`predict` masked patches of each row, uniformly; padding only where nothing else is left."""
    if predict == 0:
        return torch.zeros_like(is_visible_BL)
    group_BL = torch.where(is_visible_BL, 3, 1 - is_valid_BL.long())
    key_BL = (group_BL << 30) | (draws(seed, position_B, STREAM_PREDICTION, is_visible_BL.shape[1]) >> 2)
    (is_predicted_BL,) = are_smallest(key_BL, torch.full_like(position_B, predict)[:, None])
    return is_predicted_BL


def are_smallest(key_BL: Int64[Tensor, "B L"], count_BN: Int64[Tensor, "B N"]) -> tuple[Tensor, ...]:
    """For each of the N counts, which are that many smallest keys of their row, the earlier among equals.

    Keys are in [0, 2^32), counts in [0, L].
    """
    # With its index below it a key is unique, and the k-th smallest is a threshold.
    unique_BL = (key_BL << 31) | torch.arange(key_BL.shape[1], device=key_BL.device)
    kth_BN = _sorted(unique_BL).gather(1, (count_BN - 1).clamp(min=0))
    kth_BN = torch.where(count_BN > 0, kth_BN, -1)
    return tuple(unique_BL <= kth_B[:, None] for kth_B in kth_BN.unbind(1))


def raster_ids(is_chosen_BL: Bool[Tensor, "B L"], count: int) -> Int64[Tensor, "B count"]:
    """The ids of the chosen patches in raster order; every row has `count` of them."""
    if is_chosen_BL.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(is_chosen_BL.numpy()))  # a fifth of nonzero's time
        first_B1 = torch.arange(len(is_chosen_BL))[:, None] * is_chosen_BL.shape[1]
        return flat.view(len(is_chosen_BL), count) - first_B1
    return is_chosen_BL.nonzero()[:, 1].view(len(is_chosen_BL), count)


def _sorted(value_BL: Tensor) -> Tensor:
    if value_BL.device.type == "cpu":
        # torch.sort also makes the permutation, and takes five times as long.
        return torch.from_numpy(np.sort(value_BL.numpy(), axis=1))
    return value_BL.sort(dim=1).values
