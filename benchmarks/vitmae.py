"""Hugging Face's ViTMAE as the peer: the same shape, and our weights in it to prove equality."""

import re

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from xpt.config import Config, MaskConfig, ModelConfig
from xpt.models.mae import MAE, PIXEL_MEAN, PIXEL_STD

_NAMES = (
    (r"^encoder\.(cls_token)", r"vit.embeddings.\1"),
    (r"^encoder\.pos_embed", "vit.embeddings.position_embeddings"),
    (r"^encoder\.patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
    (r"^encoder\.norm", "vit.layernorm"),
    (r"^encoder\.blocks", "vit.layers"),
    (r"^decoder\.(embed|norm)", r"decoder.decoder_\1"),
    (r"^decoder\.head", "decoder.decoder_pred"),
    (r"^decoder\.blocks", "decoder.decoder_layers"),
    (r"\.norm1", ".layernorm_before"),
    (r"\.norm2", ".layernorm_after"),
    (r"\.attn\.proj", ".attention.o_proj"),
    (r"\.attn\.", ".attention."),
)
"""Our names as patterns, and ViTMAE's."""


def vitmae(config: Config) -> nn.Module:
    """ViTMAE with the widths, depths, heads and mask ratio of `config`, one channel, through sdpa."""
    model = config.model
    return ViTMAEForPreTraining._from_config(
        ViTMAEConfig(
            image_size=model.side,
            patch_size=model.patch,
            num_channels=1,
            hidden_size=model.width,
            num_hidden_layers=model.depth,
            num_attention_heads=model.heads,
            intermediate_size=int(model.width * model.mlp_ratio),
            decoder_hidden_size=model.decoder_width,
            decoder_num_hidden_layers=model.decoder_depth,
            decoder_num_attention_heads=model.decoder_heads,
            decoder_intermediate_size=int(model.decoder_width * model.mlp_ratio),
            mask_ratio=config.mask.ratio,
            norm_pix_loss=model.norm_targets,
            layer_norm_eps=1e-6,
        ),
        attn_implementation="sdpa",
    ).train()


def image_and_mask(config: Config, *, images: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """(image_BCHW, (contour_BL, is_valid_BL, position_B)): noise, one rate everywhere, no padding."""
    side, tokens = config.model.side, config.model.tokens
    image_BCHW = torch.randint(
        0, 256, (images, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    valid_BL = torch.ones(images, tokens, dtype=torch.bool)
    return image_BCHW, (torch.zeros(images, tokens), valid_BL, torch.arange(images))


def weights_of(ours: MAE) -> dict[str, Tensor]:
    """The state of `ours` under ViTMAE's names; views, so that gradients map in the same way."""
    state: dict[str, Tensor] = {}
    for name, value in ours.state_dict(keep_vars=True).items():
        state.update(_renamed(name, value))
    positions_LD = ours.decoder.positions_LD
    cls_1D = torch.zeros(1, positions_LD.shape[1], dtype=positions_LD.dtype)
    state["decoder.decoder_pos_embed"] = torch.cat([cls_1D, positions_LD])[None]
    return state


def gradients_of(ours: MAE) -> dict[str, Tensor]:
    """The gradients of `ours` under ViTMAE's names."""
    return {
        theirs: gradient
        for name, parameter in ours.named_parameters()
        if parameter.grad is not None
        for theirs, gradient in _renamed(name, parameter.grad).items()
    }


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """The entries of ViTMAE's state that hold `value`: three for our joint queries, keys and values."""
    for ours, theirs in _NAMES:
        name = re.sub(ours, theirs, name)
    if ".qkv." in name:
        return {
            name.replace(".qkv.", f".{part}_proj."): chunk
            for part, chunk in zip("qkv", value.chunk(3), strict=True)
        }
    return {name: value}


def largest_difference() -> float:
    """Largest relative error (root mean square over that of ViTMAE) of loss and gradients, on small models.

    Both have the same weights, image and mask, in fp32.
    """
    torch.manual_seed(0)
    model = ModelConfig(
        side=96, width=96, depth=3, heads=3, decoder_width=64, decoder_depth=2, decoder_heads=2
    )  # fmt: skip
    config = Config(mask=MaskConfig(strategy="random", ratio=0.75), model=model)
    ours, theirs = MAE(config), vitmae(config)
    theirs.load_state_dict(weights_of(ours))
    image_BCHW, rest = image_and_mask(config, images=2)
    out = ours(image_BCHW, *rest, 0)
    out.loss.backward()
    # ViTMAE keeps the patches with the least noise.
    noise_BL = 1 + torch.rand(2, model.tokens)
    noise_BL.scatter_(1, out.visible_BK, torch.rand(out.visible_BK.shape))
    wanted = theirs((image_BCHW.float() / 255 - PIXEL_MEAN) / PIXEL_STD, noise=noise_BL)
    wanted.loss.backward()
    found = gradients_of(ours) | {"loss": out.loss.detach()}
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    expected["loss"] = wanted.loss.detach()
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    # The bias of the keys shifts all scores of a query alike: its gradient is rounding in both.
    names = [name for name in expected if not name.endswith("k_proj.bias")]
    return max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in names)
