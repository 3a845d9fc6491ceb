"""Where a model looked: gradient times activation at the patches, before the last block.

Shape suffixes: B images, L patches, N = L + 1 tokens, D width, G patches along a side.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from xpt.models.classifier import Classifier


def heat_maps(
    model: Classifier,
    image_BCHW: UInt8[Tensor, "B 1 H W"],
    is_valid_BL: Bool[Tensor, "B L"],
    finding: int,
) -> Float[Tensor, "B G G"]:
    """How much each patch speaks for the finding, 0 to 1 (the image's largest), 0 where it speaks against.

    HiResCAM (arXiv 2011.08891): the product of the logit's gradient and the activation, summed over the
    width, taken at the input of the last block: Grad-CAM's average over patches would give each channel one
    weight for the whole film, and after the last block only pooling could tell patches apart.
    """
    model.eval()
    patches_BLP, ids_BL = model.patches(image_BCHW)
    encoder = model.encoder
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens_BND = inputs[0].detach().requires_grad_()
        kept.append(tokens_BND)
        return (tokens_BND, *inputs[1:])

    hook = encoder.blocks[-1].register_forward_pre_hook(keep)
    try:
        with torch.enable_grad():
            tokens_BND = encoder(patches_BLP, ids_BL)
            logit_B = model.classify(tokens_BND, is_valid_BL)[:, finding]
            (gradient_BND,) = torch.autograd.grad(logit_B.sum(), kept[0])
    finally:
        hook.remove()
    heat_BL = (gradient_BND * kept[0]).sum(2)[:, 1:].detach().float().clamp(min=0) * is_valid_BL
    heat_BL = heat_BL / heat_BL.amax(1, keepdim=True).clamp(min=1e-12)
    grid = round(heat_BL.shape[1] ** 0.5)
    return heat_BL.unflatten(1, (grid, grid))
