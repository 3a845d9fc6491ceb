"""Where a model looked: gradient times activation at the patches.

Shape suffixes: B images, L patches, N = L + 1 tokens, D width, G patches along a side.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from xpt.models.classifier import Classifier


def heat_maps(
    model: Classifier,
    image_BCHW: UInt8[Tensor, "B 1 H W"],
    is_valid_BL: Bool[Tensor, "B L"],
    finding: int,
) -> Float[Tensor, "B G G"]:
    """How much each patch speaks for the finding, 0 to 1 (the image's largest), 0 where it speaks against.

    HiResCAM (arXiv 2011.08891): the product of the logit's gradient and the activation, summed over the
    width. Activations are those after a layer norm: before it, the product is zero for any patch whose
    token acts through the norm alone, because a norm does not see its input's length. With a pool over
    patches it is the norm before the pool, with the class token that before the last block's attention,
    the last place where the patches can still reach it.
    """
    model.eval()
    patches_BLP, ids_BL = model.patches(image_BCHW)
    encoder: Any = model.encoder
    norm = encoder.blocks[-1].norm1 if model.pool == "cls" else encoder.norm
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    hook = norm.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logit_BC = model.classify(encoder(patches_BLP, ids_BL), is_valid_BL)
            (gradient_BND,) = torch.autograd.grad(logit_BC[:, finding].sum(), kept[0])
    finally:
        hook.remove()
    heat_BL = (gradient_BND * kept[0]).sum(2)[:, 1:].detach().float().clamp(min=0) * is_valid_BL
    heat_BL = heat_BL / heat_BL.amax(1, keepdim=True).clamp(min=1e-12)
    grid = round(heat_BL.shape[1] ** 0.5)
    return heat_BL.unflatten(1, (grid, grid))
