import pytest
import torch

from tests.xpt.models.conftest import tiny
from xpt.models.decoder import CrossDecoder, SelfDecoder
from xpt.models.mae import MAE


def decoder(kind) -> SelfDecoder | CrossDecoder:
    torch.manual_seed(0)
    model = MAE(tiny(kind)).decoder.double()
    torch.nn.init.normal_(model.mask_token)
    return model


def test_self_decoder_is_maes_with_its_restore_permutation():
    """Against the algorithm of the MAE paper: append mask tokens, undo the shuffle, predict all."""
    model = decoder("self")
    torch.manual_seed(1)
    visible = torch.rand(2, 36).argsort(1)[:, :9].sort(1).values
    masked = torch.stack([torch.tensor([i for i in range(36) if i not in v]) for v in visible.tolist()])
    tokens = torch.randn(2, 10, 32, dtype=torch.float64)

    restore = torch.cat([visible, masked], 1).argsort(1)
    x = model.embed(tokens)
    full = torch.cat([x[:, 1:], model.mask_token.expand(2, 27, -1)], 1)
    full = full.gather(1, restore[..., None].expand(-1, -1, 16)) + model.positions_LD
    x = torch.cat([x[:, :1], full], 1)
    for block in model.blocks:
        x = block(x)
    wanted = model.head(model.norm(x))[:, 1:].gather(1, masked[..., None].expand(-1, -1, 64))

    torch.testing.assert_close(model(tokens, visible, masked), wanted)


def test_cross_decoder_predicts_each_patch_on_its_own():
    model = decoder("cross")
    tokens = torch.randn(1, 10, 32, dtype=torch.float64)
    visible = torch.arange(9)[None]
    some, more = torch.tensor([[12, 30]]), torch.tensor([[12, 13, 20, 30]])
    torch.testing.assert_close(model(tokens, visible, more)[:, [0, 3]], model(tokens, visible, some))


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_every_parameter_gets_a_gradient(films, kind):
    model = MAE(tiny(kind))
    model(*films, 0).loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias that adds the same to all keys cancels in the softmax; its gradient is rounding.
    assert not missing


def test_each_block_attends_to_its_mixture_of_the_encoders_maps(films):
    """With weights that pick the last map and unit norms, mixtures are the encoder's normalised output."""
    torch.manual_seed(0)
    plain, mixed = MAE(tiny("cross")), MAE(tiny("cross", feature_maps=True))
    mixed.load_state_dict(plain.state_dict(), strict=False)
    assert mixed.mixtures is not None
    with torch.no_grad():
        mixed.mixtures.weight.zero_()[:, -1] = 1
    torch.testing.assert_close(mixed(*films, 0).pred_BMP, plain(*films, 0).pred_BMP)
    with torch.no_grad():
        mixed.mixtures.weight[1, 0] = 5
    assert not torch.allclose(mixed(*films, 0).pred_BMP, plain(*films, 0).pred_BMP, atol=1e-3)


def test_mixtures_are_learned(films):
    model = MAE(tiny("cross", feature_maps=True))
    model(*films, 0).loss.backward()
    assert model.mixtures is not None and model.mixtures.weight.grad is not None
    assert (model.mixtures.weight.grad.abs() > 0).all()
    assert model.mixtures.weight.shape == (2, 3)
