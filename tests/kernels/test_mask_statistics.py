"""The draws have the distributions they claim. Seeds are fixed, so a pass or a failure is for good.

Bounds are five standard errors of the statistic unless another figure is given.
"""

from itertools import combinations
from math import comb, sqrt
from types import SimpleNamespace

import pytest
import torch

from kernels.mask_gather.reference import (
    RATE_ONE,
    inclusion_weights,
    select_predicted,
    select_stratified,
    select_weighted,
)

DRAWS, CHUNK = 20_000, 250
GRID, KEEP = 80, 640
INSIDE, OUTSIDE = round(0.05 * RATE_ONE), round(0.15 * RATE_ONE)


def chunks(length, *, images=DRAWS):
    for start in range(0, images, CHUNK):
        yield torch.arange(start, start + CHUNK), torch.ones(CHUNK, length, dtype=torch.bool)


def subset_counts(is_chosen, size):
    """How often each subset of `size` elements was chosen."""
    length = is_chosen.shape[1]
    code = (is_chosen.long() << torch.arange(length)).sum(1)
    subsets = [sum(1 << i for i in subset) for subset in combinations(range(length), size)]
    counts = torch.bincount(code, minlength=1 << length)[subsets]
    assert int(counts.sum()) == len(is_chosen)
    return counts.double()


def assert_uniform(counts):
    expected = counts.sum() / len(counts)
    chi_square, freedom = float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1
    assert abs(chi_square - freedom) < 5 * sqrt(2 * freedom)


@pytest.mark.parametrize("select", [select_stratified, select_weighted])
def test_at_one_rate_all_56_subsets_are_equally_likely(select):
    is_visible = torch.cat(
        [
            select(
                torch.zeros(CHUNK, 8), valid, position, seed=1, keep=3, rate_inside=1, rate_outside=OUTSIDE
            )
            for position, valid in chunks(8)
        ]
    )
    counts = subset_counts(is_visible, 3)
    assert len(counts) == comb(8, 3) == 56
    assert_uniform(counts)


def test_all_subsets_of_the_masked_patches_are_equally_likely_to_be_predicted():
    is_visible = torch.tensor([False, True, False, False, True, False, False, False]).expand(CHUNK, -1)
    is_predicted = torch.cat(
        [select_predicted(is_visible, valid, position, seed=1, predict=3) for position, valid in chunks(8)]
    )
    assert not bool(is_predicted[:, is_visible[0]].any())
    assert_uniform(subset_counts(is_predicted[:, ~is_visible[0]], 3))


def chest_contour():
    """An ellipse, about 40% of the grid."""
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return ((((y - 42) / 32) ** 2 + ((x - 40) / 26) ** 2) < 1).float().flatten()


@pytest.fixture(scope="module")
def stratified():
    """Sums over 20,000 masks of 6,400 patches."""
    contour = chest_contour()
    is_inside = contour >= 0.5
    inside, length = int(is_inside.sum()), GRID * GRID
    expected_inside = KEEP * inside * INSIDE / (inside * INSIDE + (length - inside) * OUTSIDE)
    pi = torch.where(is_inside, expected_inside / inside, (KEEP - expected_inside) / (length - inside))
    deviation = (pi * (1 - pi)).sqrt()
    counts = torch.zeros(length)
    lagged = {1: 0.0, GRID: 0.0}
    successive = 0.0
    kept, kept_inside = [], []
    last = None
    for position, valid in chunks(length):
        is_visible = select_stratified(
            contour.expand(CHUNK, -1),
            valid,
            position,
            seed=2,
            keep=KEEP,
            rate_inside=INSIDE,
            rate_outside=OUTSIDE,
        )
        counts += is_visible.sum(0)
        kept.append(is_visible.sum(1))
        kept_inside.append(is_visible[:, is_inside].sum(1))
        score = (is_visible.float() - pi) / deviation
        for lag in lagged:
            lagged[lag] += float((score[:, lag:] * score[:, :-lag]).sum())
        successive += float((score[1:] * score[:-1]).sum())
        if last is not None:
            successive += float((score[0] * last).sum())
        last = score[-1]
    return SimpleNamespace(
        pi=pi,
        is_inside=is_inside,
        expected_inside=expected_inside,
        counts=counts,
        kept=torch.cat(kept),
        kept_inside=torch.cat(kept_inside),
        lagged=lagged,
        successive=successive,
    )


def test_every_mask_keeps_exactly_k(stratified):
    assert bool((stratified.kept == KEEP).all())


def test_the_number_kept_inside_is_the_share_rounded_at_random(stratified):
    below = int(stratified.expected_inside)
    assert set(stratified.kept_inside.unique().tolist()) == {below, below + 1}
    fraction = stratified.expected_inside - below
    assert 0.05 < fraction < 0.95
    rounded_up = float((stratified.kept_inside - below).double().mean())
    assert abs(rounded_up - fraction) < 5 * sqrt(fraction * (1 - fraction) / DRAWS)


def test_every_patch_is_kept_as_often_as_its_region_says(stratified):
    pi = stratified.pi
    z = (stratified.counts - DRAWS * pi) / (DRAWS * pi * (1 - pi)).sqrt()
    assert 0.97 < float(z.square().mean().sqrt()) < 1.03
    assert float(z.abs().max()) < 5


@pytest.mark.parametrize("lag", [1, GRID])
def test_neighbours_are_not_correlated(stratified, lag):
    """Beyond the -1 / (n - 1) of drawing without replacement from a region of n."""
    is_inside = stratified.is_inside
    inside, length = int(is_inside.sum()), len(is_inside)
    same = is_inside[lag:] == is_inside[:-lag]
    size = torch.where(is_inside, inside, length - inside)[lag:].double()
    expected = float(torch.where(same, -1 / (size - 1), 0.0).sum()) / (length - lag)
    pairs = DRAWS * (length - lag)
    assert abs(stratified.lagged[lag] / pairs - expected) < 5 / sqrt(pairs)


def test_masks_of_successive_images_are_not_correlated(stratified):
    pairs = (DRAWS - 1) * GRID * GRID
    assert abs(stratified.successive / pairs) < 5 / sqrt(pairs)


def test_weighted_inclusion_is_in_proportion_to_the_rate():
    length, keep = 1600, 160
    ramp = torch.linspace(-0.5, 1.5, length).clamp(0, 1)
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    contour = ramp[order]
    counts = torch.zeros(length)
    for position, valid in chunks(length):
        is_visible = select_weighted(
            contour.expand(CHUNK, -1),
            valid,
            position,
            seed=3,
            keep=keep,
            rate_inside=INSIDE,
            rate_outside=OUTSIDE,
        )
        assert bool((is_visible.sum(1) == keep).all())
        counts += is_visible.sum(0)
    rate = OUTSIDE + (INSIDE - OUTSIDE) * contour
    pi = keep * rate / rate.sum()
    z = (counts - DRAWS * pi) / (DRAWS * pi * (1 - pi)).sqrt()
    # 1,600 patches: the standard error of the rms is 1 / sqrt(2 * 1600) = 0.018.
    assert 0.91 < float(z.square().mean().sqrt()) < 1.09
    assert float(z.abs().max()) < 5
    for region in (contour == 0, contour == 1, (contour > 0) & (contour < 1)):
        assert abs(float(counts[region].sum() / (DRAWS * pi[region].sum())) - 1) < 0.005


def test_weighted_inclusion_stays_near_pi_where_sets_are_tiny():
    """6 patches with rates 1 to 6, 3 of them kept: pi from 1/7 to 6/7, the hardest case for these keys."""
    contour = torch.arange(6) / 5
    counts = torch.zeros(6)
    for position, valid in chunks(6):
        is_visible = select_weighted(
            contour.expand(CHUNK, -1), valid, position, seed=4, keep=3, rate_inside=60000, rate_outside=10000
        )
        counts += is_visible.sum(0)
    weight, rest, total = inclusion_weights(
        contour[None], torch.ones(1, 6, dtype=torch.bool), keep=3, rate_inside=60000, rate_outside=10000
    )
    pi = (weight * rest / total)[0]
    torch.testing.assert_close(pi, torch.arange(1, 7) / 7, atol=1e-4, rtol=0)
    # Pareto sampling is exact only in the limit; keys E / w are off by 0.12 here.
    torch.testing.assert_close(counts / DRAWS, pi, atol=0.02, rtol=0)
