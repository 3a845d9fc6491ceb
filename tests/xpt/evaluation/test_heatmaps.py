"""Heat maps find what a model was made to look at."""

from typing import Any

import torch

from xpt.config import EncoderConfig
from xpt.evaluation.heatmaps import heat_maps
from xpt.models.classifier import Classifier, Pool

MODEL = EncoderConfig(side=48, patch=8, width=32, depth=2, heads=2)


def bright_patch_model(pool: Pool = "mean") -> Classifier:
    """Each token is its patch's mean brightness along one direction; the head sums that direction."""
    model = Classifier(MODEL, 2, pool=pool, drop_path=0.0, is_frozen=False)
    with torch.no_grad():
        blocks: Any = model.encoder.blocks
        for block in blocks:
            block.attn.proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
        # Something large beside the brightness, that the layer norm does not take away.
        model.encoder.pos_embed.zero_()
        model.encoder.pos_embed[..., 1] = 10
        weight = model.encoder.patch_embed.proj.weight
        weight.zero_()
        weight[0] = 1 / 64
        model.head.weight.zero_()
        model.head.weight[1, 0] = 1
    return model


def test_the_heat_is_where_the_evidence_is():
    image = torch.full((2, 1, 48, 48), 128, dtype=torch.uint8)
    image[0, :, 16:24, 32:40] = 255
    image[1, :, 40:48, 0:8] = 255
    image[1, :, 0:8, 0:8] = 0  # speaks against it
    valid = torch.ones(2, 36, dtype=torch.bool)
    heat = heat_maps(bright_patch_model(), image, valid, 1)
    assert heat.shape == (2, 6, 6)
    assert heat.amax((1, 2)).tolist() == [1, 1]
    assert divmod(int(heat[0].argmax()), 6) == (2, 4)
    assert divmod(int(heat[1].argmax()), 6) == (5, 0)
    valid[1, 30] = False  # that patch is letterbox now
    heat = heat_maps(bright_patch_model(), image, valid, 1)
    assert heat[1, 5, 0] == 0


def test_a_model_that_hears_nothing_has_no_heat_and_keeps_no_gradients():
    model = bright_patch_model()
    image = torch.full((1, 1, 48, 48), 200, dtype=torch.uint8)
    heat = heat_maps(model, image, torch.ones(1, 36, dtype=torch.bool), 0)
    assert heat.max() == 0
    assert all(p.grad is None for p in model.parameters())
    assert not model.encoder.blocks[-1]._forward_pre_hooks


def test_with_the_class_token_the_heat_goes_through_its_attention():
    """A last block whose values are the brightness: what the class token reads, it reads from the patches."""
    model = bright_patch_model("cls")
    with torch.no_grad():
        model.encoder.cls_token.zero_()
        last: Any = model.encoder.blocks[-1]
        attention = last.attn
        attention.qkv.weight.zero_()
        attention.qkv.weight[64, 0] = 1
        attention.proj.weight[0, 0] = 1
    image = torch.full((1, 1, 48, 48), 60, dtype=torch.uint8)
    image[0, :, 24:32, 8:16] = 255
    heat = heat_maps(model, image, torch.ones(1, 36, dtype=torch.bool), 1)
    assert divmod(int(heat[0].argmax()), 6) == (3, 1)
