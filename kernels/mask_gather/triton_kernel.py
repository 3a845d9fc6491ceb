# Triton gives the arguments of its functions their types, and compiles another language than Python.
# ruff: noqa: ANN001, ANN201
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
"""Masking and gathering in one Triton kernel, from the uint8 image to normalised visible patches.

The selection of an image is small: 6,400 keys. It reads 32 KB and its cost is latency. The gather is what
moves bytes. So several programs work on each image: each of them repeats the selection, which is cheaper
than a second launch or a grid-wide barrier, and then cuts out its share of the patches. One more program
per image writes the mask and draws the patches to predict, so that this does not lengthen the others.

Nothing is sorted. The k-th smallest key is found by bisection on the 32-bit keys: a step is one comparison
per key and one reduction, and most rows end after about log2(L) + 1 steps, when exactly k keys lie below
the middle. A bitonic sort of 8,192 keys would take 91 passes through shared memory. A prefix sum then gives
each visible patch its slot, which puts the ids into raster order.

The definition of what is selected, and why, is in `kernels.mask_gather.reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.mask_gather.masked_patches import MaskedPatches
from kernels.mask_gather.reference import COVER_ONE
from kernels.patches import grid_of, normalization
from kernels.philox import STREAM_MASK, STREAM_PREDICTION, STREAM_ROUNDING
from kernels.philox.triton_kernel import philox_draws, philox_words, seed_words

_COVER_ONE = tl.constexpr(COVER_ONE)
_STREAM_MASK = tl.constexpr(STREAM_MASK)
_STREAM_ROUNDING = tl.constexpr(STREAM_ROUNDING)
_STREAM_PREDICTION = tl.constexpr(STREAM_PREDICTION)


@triton.jit
def find_smallest(key, index, count, BLOCK_L: tl.constexpr):
    """(bound, first) such that the `count` smallest uint32 keys, the earlier among equals, are those with
    key < bound, and those with key = bound and index < first.

    Two scalars, where a mask would occupy a register per key until it is used.
    """
    low = tl.full((), 0, tl.uint32)
    bound = tl.full((), 0xFFFFFFFF, tl.uint32)
    while low < bound:
        middle = low + (bound - low) // 2
        below = tl.sum((key <= middle).to(tl.int32), 0)
        bound = tl.where(below >= count, middle, bound)
        low = tl.where(below == count, middle, tl.where(below > count, low, middle + 1))
    # Where the search ended early, or nothing but one key equals the bound, all equal ones belong.
    has_surplus = tl.sum((key <= bound).to(tl.int32), 0) > count
    first = tl.full((), BLOCK_L, tl.int32)
    low_index = tl.where(has_surplus, 0, first)
    while low_index < first:
        middle_index = (low_index + first) // 2
        below = tl.sum(((key < bound) | ((key == bound) & (index < middle_index))).to(tl.int32), 0)
        first = tl.where(below >= count, middle_index, first)
        low_index = tl.where(below >= count, low_index, middle_index + 1)
    return bound, first


@triton.jit
def are_within(key, index, bound, first):
    return (key < bound) | ((key == bound) & (index < first))


@triton.jit
def select_stratified(
    key, index, inside, outside, rounding, K, rate_inside, rate_outside, BLOCK_L: tl.constexpr
):
    kept = tl.minimum(inside + outside, K)
    part = inside * rate_inside
    whole = tl.maximum(part + outside * rate_outside, 1)
    kept_inside = kept * part // whole
    remainder = kept * part - kept_inside * whole
    kept_inside += ((remainder << 16) > rounding.to(tl.int64) * whole).to(tl.int64)
    kept_inside = tl.minimum(tl.maximum(kept_inside, kept - outside), inside)
    bound_1, first_1 = find_smallest(key, index, kept_inside, BLOCK_L)
    bound_2, first_2 = find_smallest(key, index, inside + K - kept_inside, BLOCK_L)
    is_outside = (key >> 30) > 0
    return are_within(key, index, bound_1, first_1) | (is_outside & are_within(key, index, bound_2, first_2))


@triton.jit
def weighted_keys(weight, word, valid, K):
    kept = tl.minimum(valid, K)
    rest = kept
    total = tl.sum(weight.to(tl.int64), 0)
    level = sure_level(total, rest)
    before = rest + 1
    while rest != before:
        before = rest
        is_sure = weight >= level
        rest = kept - tl.sum(is_sure.to(tl.int32), 0)
        total = tl.sum(tl.where(is_sure, 0, weight).to(tl.int64), 0)
        level = sure_level(total, rest)
    mean_weight = tl.div_rn(total.to(tl.float32), tl.maximum(rest, 1).to(tl.float32))
    odd = word | 1
    # For odd numbers flipping the upper 31 bits is 2^32 minus the number.
    above = odd.to(tl.float32) * tl.maximum(mean_weight - weight.to(tl.float32), 0.0)
    below = (odd ^ 0xFFFFFFFE).to(tl.float32) * tl.maximum(weight, 1).to(tl.float32)
    bits = tl.div_rn(above, below).to(tl.uint32, bitcast=True)
    key = tl.where(weight >= level, 0, bits)
    return tl.where(weight > 0, key, (word >> 1) | 0x80000000).to(tl.uint32)


@triton.jit
def sure_level(total, rest):
    """The least weight that is kept for sure: weight * rest >= total, and 1 where nothing is left."""
    return tl.maximum(tl.cdiv(total, tl.maximum(rest, 1)), 1)


@triton.jit(
    do_not_specialize=["seed_low", "seed_high", "K", "M", "rate_inside", "rate_outside", "grid_w"],
)
def mask_gather_kernel(
    image,
    contour,
    valid,
    position,
    patches,
    visible,
    predicted,
    scored,
    masked,
    seed_low,
    seed_high,
    L,
    K,
    M,
    rate_inside,
    rate_outside,
    scale,
    bias,
    height,
    width,
    grid_w,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Grid (B, 1 + S): program 0 of an image writes mask and predicted ids, the others share the gather."""
    b = tl.program_id(0).to(tl.int64)
    share = tl.program_id(1)
    index = tl.arange(0, BLOCK_L)
    is_patch = index < L
    cover = tl.load(contour + b * L + index, mask=is_patch, other=0.0)
    is_valid = tl.load(valid + b * L + index, mask=is_patch, other=0) != 0
    place = tl.load(position + b)
    word = philox_draws(seed_low, seed_high, place, _STREAM_MASK, BLOCK_L)
    # The lanes behind the last patch are like padding with the largest draw: they come last of all.
    word = tl.where(is_patch, word, 0xFFFFFFFF)
    valid_patches = tl.sum(is_valid.to(tl.int32), 0).to(tl.int64)
    if WEIGHTED:
        covered = tl.floor(cover * _COVER_ONE + 0.5).to(tl.int32)
        weight = rate_outside * (_COVER_ONE - covered) + rate_inside * covered
        key = weighted_keys(tl.where(is_valid, weight, 0), word, valid_patches, K)
        bound, first = find_smallest(key, index, K, BLOCK_L)
        is_visible = are_within(key, index, bound, first)
    else:
        is_inside = is_valid & (cover >= 0.5)
        inside = tl.sum(is_inside.to(tl.int32), 0).to(tl.int64)
        key = (tl.where(is_valid, tl.where(is_inside, 0, 1), 2).to(tl.uint32) << 30) | (word >> 2)
        block = (place & 0).to(tl.uint32)
        rounding, _, _, _ = philox_words(seed_low, seed_high, block, place, _STREAM_ROUNDING)
        is_visible = select_stratified(
            key,
            index,
            inside,
            valid_patches - inside,
            rounding >> 16,
            K,
            rate_inside,
            rate_outside,
            BLOCK_L,
        )

    if share == 0:
        tl.store(masked + b * L + index, ~is_visible, mask=is_patch)
        if M > 0:
            word = philox_draws(seed_low, seed_high, place, _STREAM_PREDICTION, BLOCK_L)
            # Read again what would occupy registers meanwhile.
            tl.debug_barrier()
            is_masked = tl.load(masked + b * L + index, mask=is_patch, other=0) != 0
            is_valid = tl.load(valid + b * L + index, mask=is_patch, other=0) != 0
            group = tl.where(is_masked, tl.where(is_valid, 0, 1), 3).to(tl.uint32)
            key = (group << 30) | (word >> 2)
            bound, first = find_smallest(key, index, M, BLOCK_L)
            is_predicted = are_within(key, index, bound, first)
            slot = tl.cumsum(is_predicted.to(tl.int32), 0) - 1
            # Widened at the last moment: what changes its layout then is 4 bytes wide, not a pointer.
            tl.store(predicted + b * M + slot.to(tl.int64), index.to(tl.int64), mask=is_predicted)
            tl.debug_barrier()
            for start in range(0, M, BLOCK_M):
                slot_M = start + tl.arange(0, BLOCK_M)
                id_M = tl.load(predicted + b * M + slot_M, mask=slot_M < M, other=0)
                is_valid_M = tl.load(valid + b * L + id_M, mask=slot_M < M, other=0) != 0
                tl.store(scored + b * M + slot_M, is_valid_M, mask=slot_M < M)
    else:
        slots = tl.cdiv(K, tl.num_programs(1) - 1)
        first = (share - 1) * slots
        last = tl.minimum(first + slots, K)
        # Slots before `first` wrap to large numbers, and one comparison tells what is this program's.
        slot = tl.where(is_visible, tl.cumsum(is_visible.to(tl.int32), 0) - 1 - first, -1)
        is_mine = slot.to(tl.uint32) < tl.maximum(last - first, 0).to(tl.uint32)
        tl.store(visible + b * K + first + slot.to(tl.int64), index.to(tl.int64), mask=is_mine)
        # Each program reads back what its own threads have just written.
        tl.debug_barrier()
        P: tl.constexpr = CHANNELS * PATCH * PATCH
        plane = height.to(tl.int64) * width
        for start in range(first, last, BLOCK_N):
            slot_N = start + tl.arange(0, BLOCK_N)
            is_mine_N = slot_N < last
            # Division of 64-bit integers is slow.
            id_N = tl.load(visible + b * K + slot_N, mask=is_mine_N, other=0).to(tl.int32)
            row_N, column_N = (id_N // grid_w).to(tl.int64), id_N % grid_w
            corner_N = (b * CHANNELS * height + row_N * PATCH) * width + column_N * PATCH
            for start_p in tl.static_range(0, P, BLOCK_P):
                p = start_p + tl.arange(0, BLOCK_P)
                inner_P = p // (PATCH * PATCH) * plane + (p // PATCH % PATCH) * width + p % PATCH
                is_stored = is_mine_N[:, None]
                if P % BLOCK_P != 0:
                    is_stored = is_stored & (p < P)[None, :]
                pixel = tl.load(image + corner_N[:, None] + inner_P[None, :], mask=is_stored, other=0)
                value = pixel.to(tl.float32) * scale + bias
                target = patches + (b * K + slot_N)[:, None] * P + p[None, :]
                tl.store(target, value.to(patches.dtype.element_ty), mask=is_stored)


def mask_and_gather(
    image_BCHW: Tensor,
    contour_BL: Tensor,
    is_valid_BL: Tensor,
    position_B: Tensor,
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
    """As `kernels.mask_gather.reference.mask_and_gather`."""
    images, channels = image_BCHW.shape[:2]
    device = image_BCHW.device
    out = MaskedPatches(
        torch.empty(images, keep, channels * patch * patch, dtype=dtype, device=device),
        torch.empty(images, keep, dtype=torch.int64, device=device),
        torch.empty(images, predict, dtype=torch.int64, device=device),
        torch.empty(images, predict, dtype=torch.bool, device=device),
        torch.empty_like(is_valid_BL, memory_format=torch.contiguous_format),
    )
    arguments, constants = launch_arguments(
        image_BCHW,
        contour_BL,
        is_valid_BL,
        position_B,
        out,
        seed=seed,
        patch=patch,
        rate_inside=rate_inside,
        rate_outside=rate_outside,
        weighted=weighted,
        mean=mean,
        std=std,
    )
    if images:  # a grid must not be empty
        with torch.cuda.device_of(image_BCHW):
            mask_gather_kernel[images, 1 + gather_shares(images, keep, device)](*arguments, **constants)
    return out


def gather_shares(images: int, keep: int, device: torch.device) -> int:
    """Programs that share the gather of an image: with the one that does not gather, as many as run at once,
    because a second wave would make the selection again."""
    if device.type != "cuda":
        return 1
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(processors // images - 1, triton.cdiv(keep, 32)))


def launch_arguments(
    image_BCHW: Tensor,
    contour_BL: Tensor,
    is_valid_BL: Tensor,
    position_B: Tensor,
    out: MaskedPatches,
    *,
    seed: int,
    patch: int,
    rate_inside: int,
    rate_outside: int,
    weighted: bool,
    mean: float,
    std: float,
) -> tuple[tuple[Tensor | int | float, ...], dict[str, int | bool]]:
    """The kernel's arguments, and its constants with the launch options."""
    channels, height, width = image_BCHW.shape[1:]
    _, grid_w = grid_of(image_BCHW, patch)
    length, values = contour_BL.shape[1], channels * patch * patch
    block_l = max(16, triton.next_power_of_2(length))
    # 16 keys for each thread: 128 registers, so that nothing spills up to 8,192 patches (1,024 threads are
    # the most, so more patches do spill), and one program fills a multiprocessor.
    warps = min(max(block_l // 512, 4), 32)
    block_p = 256 if values % 256 == 0 else min(triton.next_power_of_2(values), 1024)
    arguments = (
        image_BCHW.contiguous(),
        contour_BL.contiguous(),
        is_valid_BL.contiguous(),
        position_B.contiguous(),
        *out,
        *seed_words(seed),
        length,
        out.visible_BK.shape[1],
        out.predicted_BM.shape[1],
        rate_inside,
        rate_outside,
        *normalization(mean, std),
        height,
        width,
        grid_w,
    )
    constants = {
        "CHANNELS": channels,
        "PATCH": patch,
        "WEIGHTED": weighted,
        "BLOCK_L": block_l,
        "BLOCK_M": 1024,
        # 16 bytes of the image for each thread.
        "BLOCK_N": max(1, warps * 32 * 16 // block_p),
        "BLOCK_P": block_p,
        "num_warps": warps,
        # A fused multiply-add rounds once where the reference rounds twice.
        "enable_fp_fusion": False,
    }
    return arguments, constants
