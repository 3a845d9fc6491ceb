"""The classifier against timm's own model, and what may and may not reach its logits."""

from typing import Any

import pytest
import timm
import torch

from xpt.config import EncoderConfig
from xpt.models.classifier import Classifier
from xpt.models.init import load_encoder, read_weights
from xpt.models.mae import PIXEL_MEAN, PIXEL_STD

SMALL = EncoderConfig(side=48, patch=8, width=32, depth=2, heads=2)
POOLS = ("mean", "grid", "cls", "attentive")


def classifier(pool: Any = "mean", **changes) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(SMALL, 3, pool=pool, drop_path=0.0, is_frozen=changes.get("is_frozen", False))
    torch.nn.init.normal_(model.head.weight)  # it starts near zero
    return model


def test_tokens_equal_timms_forward_features(films):
    image, _, _, _ = films
    model = classifier().eval()
    timms: Any = timm.create_model(
        "vit_base_patch16_224", img_size=48, patch_size=8, in_chans=1, embed_dim=32, depth=2, num_heads=2,
        num_classes=0,
    )  # fmt: skip
    timms.load_state_dict(model.encoder.state_dict())
    wanted = timms.eval().forward_features((image.float() / 255 - PIXEL_MEAN) / PIXEL_STD)
    torch.testing.assert_close(model.tokens(image), wanted, rtol=1e-4, atol=1e-5)


def test_the_mean_is_over_patches_that_show_film(films):
    image, _, valid, _ = films
    model = classifier().eval()
    tokens = model.tokens(image)
    pooled = model.pooled(tokens, valid)
    for film in range(3):
        torch.testing.assert_close(pooled[film], tokens[film, 1:][valid[film]].mean(0))


def test_the_cells_of_a_grid_lie_side_by_side(films):
    model = Classifier(EncoderConfig(side=112, patch=8, width=32, depth=1, heads=2), 3, pool="grid",
                       drop_path=0.0, is_frozen=False)  # fmt: skip
    tokens, valid = torch.randn(2, 197, 32), torch.ones(2, 196, dtype=torch.bool)
    valid[1, :14] = False  # letterbox above: the first row of each cell counts as zeros
    cells = model.pooled(tokens, valid).unflatten(1, (32, 7, 7))
    patches = tokens[:, 1:].unflatten(1, (14, 14))
    torch.testing.assert_close(cells[0, :, 3, 5], patches[0, 6:8, 10:12].mean((0, 1)))
    torch.testing.assert_close(cells[1, :, 0, 2], patches[1, 1, 4:6].sum(0) / 4)


def test_attention_gives_padding_no_weight(films):
    image, _, valid, _ = films
    model = classifier("attentive").eval()
    tokens = model.tokens(image).detach()
    poisoned = tokens.clone()
    poisoned[:, 1:][~valid] = 1e4
    torch.testing.assert_close(model.pooled(tokens, valid), model.pooled(poisoned, valid))
    with torch.no_grad():
        model.attentive.query_token.zero_()
    wanted = model.attentive.proj(
        torch.stack(
            [model.attentive.kv(t[1:][v])[:, 32:].mean(0) for t, v in zip(tokens, valid, strict=True)]
        )
    )
    torch.testing.assert_close(model.pooled(tokens, valid), wanted)


@pytest.mark.parametrize("pool", POOLS)
def test_every_weight_gets_a_gradient_and_a_frozen_encoder_none(films, pool: str):
    image, _, valid, _ = films
    for frozen in (False, True):
        model = classifier(pool, is_frozen=frozen)
        model(image, valid).square().sum().backward()
        for name, parameter in model.named_parameters():
            of_encoder = name.startswith("encoder.")
            # The class token's own output is used by `cls` only, but its keys and values always are.
            assert (parameter.grad is None) == (frozen and of_encoder), name


def test_weights_load_completely_or_not_at_all(tmp_path):
    theirs = classifier()
    ours = Classifier(SMALL, 5, pool="cls", drop_path=0.1, is_frozen=False)
    whole = {f"encoder.{k}": v for k, v in theirs.encoder.state_dict().items()} | {"decoder.x": torch.ones(1)}
    torch.save({"model": whole}, tmp_path / "mae.pt")
    load_encoder(ours.encoder, read_weights(tmp_path / "mae.pt"), "mae.pt")
    for name, value in theirs.encoder.state_dict().items():
        torch.testing.assert_close(ours.encoder.state_dict()[name], value, rtol=0, atol=0)

    weights = dict(theirs.encoder.state_dict())
    weights["stranger"] = weights.pop("norm.bias")
    weights["norm.weight"] = torch.ones(7)
    before = {k: v.clone() for k, v in ours.encoder.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"missing: norm.bias; unexpected: stranger; of another shape: norm.weight \(7,\) instead of",
    ):
        load_encoder(ours.encoder, weights, "file")
    torch.testing.assert_close(ours.encoder.state_dict(), before, rtol=0, atol=0)


def test_positions_of_another_size_are_interpolated():
    theirs = classifier().encoder
    larger = EncoderConfig(side=96, patch=8, width=32, depth=2, heads=2)
    ours = Classifier(larger, 3, pool="mean", drop_path=0.0, is_frozen=False).encoder
    load_encoder(ours, theirs.state_dict(), "file")
    found, small = ours.pos_embed[0, 1:].reshape(12, 12, 32), theirs.pos_embed[0, 1:].reshape(6, 6, 32)
    middle = found[2:10, 2:10].reshape(4, 2, 4, 2, 32).mean((1, 3))  # two fine cells to a coarse one
    torch.testing.assert_close(middle, small[1:5, 1:5], rtol=0, atol=0.06)


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match="no file of weights"):
        read_weights(tmp_path / "x.pt")
    torch.save({"step": 3}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match="got no state dict"):
        read_weights(tmp_path / "y.pt")
