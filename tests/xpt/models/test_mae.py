import dataclasses

import pytest
import torch

from kernels import gather_patches
from tests.xpt.models.conftest import tiny
from xpt.config import Config, MaskConfig
from xpt.models.mae import MAE, PIXEL_MEAN, PIXEL_STD


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("norm_targets", [False, True])
def test_loss_is_the_mean_error_over_scored_patches(films, kind, norm_targets):
    model = MAE(tiny(kind, norm_targets=norm_targets))
    out = model(*films, 0)
    target = gather_patches(films[0], out.predicted_BM, patch=8).double() / 255
    target = (target - PIXEL_MEAN) / PIXEL_STD
    if norm_targets:
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    error_BM = (out.pred_BMP.double() - target).square().mean(2)
    wanted_B = (error_BM * out.is_scored_BM).sum(1) / out.is_scored_BM.sum(1)
    torch.testing.assert_close(out.loss_B.double(), wanted_B, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.loss.double(), wanted_B.mean(), rtol=1e-5, atol=0)


def test_visible_and_predicted_patches_part_the_image(films):
    out = MAE(tiny("self"))(*films, 0)
    both = torch.cat([out.visible_BK, out.predicted_BM], 1).sort(1).values
    assert torch.equal(both, torch.arange(36).expand(3, -1))
    assert out.visible_BK.shape == (3, 9)


def test_letterbox_padding_is_neither_seen_nor_scored(films):
    out = MAE(tiny("self"))(*films, 0)
    valid = films[2]
    assert valid.gather(1, out.visible_BK).all()
    assert torch.equal(valid.gather(1, out.predicted_BM), out.is_scored_BM)
    assert not out.is_scored_BM[1].all()


def test_cross_decoder_predicts_its_share(films):
    config = tiny("cross")
    assert config.predicted == round(27 * 0.25)
    out = MAE(config)(*films, 0)
    assert out.pred_BMP.shape == (3, config.predicted, 64)
    every = MAE(config)(*films, 0, predicted=27)
    assert every.pred_BMP.shape == (3, 27, 64)
    assert torch.equal(every.visible_BK, out.visible_BK)


def test_masks_follow_the_film_not_its_place_in_the_batch(films):
    model = MAE(tiny("self"))
    out = model(*films, 0)
    swapped = model(*(t.flip(0) for t in films), 0)
    assert torch.equal(swapped.visible_BK.flip(0), out.visible_BK)
    torch.testing.assert_close(swapped.loss_B.flip(0), out.loss_B)
    assert not torch.equal(model(*films, 1).visible_BK, out.visible_BK)


def test_the_chest_is_masked_more_than_its_surroundings(films):
    config = dataclasses.replace(tiny(), mask=MaskConfig(ratio=0.5, keep_inside=0.1, keep_outside=0.3))
    image, contour, valid = (t[:1].repeat_interleave(300, 0) for t in films[:3])
    out = MAE(config)(image, contour, valid, torch.arange(300), 0)
    kept_inside = contour[0][out.visible_BK].mean()
    n_inside = contour[0].sum()
    wanted = 0.1 * n_inside / (0.1 * n_inside + 0.3 * (36 - n_inside))
    assert abs(kept_inside - wanted) < 0.02


def test_the_default_model_has_the_papers_shape():
    with torch.device("meta"):
        model = MAE(Config())
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert 302e6 < encoder < 304e6  # ViT-L with one input channel and no head
    assert len(model.encoder.blocks) == 24
    assert len(model.decoder.blocks) == 8


def test_a_tiny_model_learns_one_film_by_heart(films):
    torch.manual_seed(0)
    model = MAE(tiny("cross", norm_targets=False))
    ramp = torch.arange(48, dtype=torch.uint8) * 5
    image = ramp[None, None, None].expand(1, 1, 48, 48).contiguous()
    rest = [t[:1] for t in films[1:]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(image, *rest, 0).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
