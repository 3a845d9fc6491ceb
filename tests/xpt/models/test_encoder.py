import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from kernels import patchify
from tests.xpt.models.conftest import tiny
from xpt.models.encoder import Encoder
from xpt.models.mae import MAE
from xpt.models.positions import sincos_2d


def encoder() -> Encoder:
    torch.manual_seed(0)
    return MAE(tiny()).encoder


def test_all_patches_visible_gives_timms_features_from_its_own_state_dict():
    ours = encoder()
    timms = VisionTransformer(
        img_size=48, patch_size=8, in_chans=1, num_classes=0, embed_dim=32, depth=2, num_heads=2
    )
    timms.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(2, 1, 48, 48)
    ids = torch.arange(36).expand(2, -1)
    torch.testing.assert_close(
        ours(patchify(image, 8), ids), timms.forward_features(image), rtol=1e-4, atol=1e-5
    )


def test_a_visible_patch_keeps_the_position_of_its_id():
    model = encoder()
    patches, ids = torch.randn(1, 4, 64), torch.tensor([[3, 8, 20, 35]])
    shuffled = torch.tensor([2, 0, 3, 1])
    out = model(patches, ids)
    again = model(patches[:, shuffled], ids[:, shuffled])
    torch.testing.assert_close(again[:, 1:], out[:, 1 + shuffled], rtol=1e-4, atol=1e-5)
    elsewhere = model(patches, ids - 1)
    assert not torch.allclose(elsewhere[:, 1:], out[:, 1:], atol=1e-3)


def test_positions_are_those_of_the_released_mae():
    # Its function, restated: sin and cos of column and row at geometric wavelengths, columns first.
    table = sincos_2d(5, 8)
    row, column = 3, 4
    omega = torch.tensor([1.0, 0.01])
    wanted = torch.cat(
        [(column * omega).sin(), (column * omega).cos(), (row * omega).sin(), (row * omega).cos()]
    )
    torch.testing.assert_close(table[row * 5 + column], wanted)


def test_positions_are_not_trained():
    names = [name for name, _ in encoder().named_parameters()]
    assert "pos_embed" not in names
    assert "pos_embed" in encoder().state_dict()


@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize("what", ["elementwise", "blocks"])
def test_activation_checkpointing_changes_neither_loss_nor_gradients(films, decoder, what):
    results = []
    for recompute in ("none", what):
        torch.manual_seed(0)
        model = MAE(tiny(decoder, activation_checkpointing=recompute)).train()
        loss = model(*films, 0).loss
        loss.backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    assert results[0][0] == results[1][0]
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=0, atol=0, msg=name)


def test_matrices_start_xavier_uniform_and_the_class_token_small():
    model = encoder()
    weight = model.patch_embed.proj.weight
    bound = (6 / (64 + 32)) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound
    assert model.state_dict()["blocks.0.attn.qkv.bias"].abs().max() == 0
    assert 0.005 < model.cls_token.std() < 0.05
