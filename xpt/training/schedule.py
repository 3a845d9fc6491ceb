"""Learning rate and weight-decay groups: pure functions of the configuration."""

import math
from typing import Any

from torch import nn

from xpt.config import TrainConfig


def learning_rate(images: int, train: TrainConfig) -> float:
    """Rate of the step that starts after `images` images: linear warm-up, then a half cosine.

    Scaled linearly with the batch per 256 images (Goyal et al., arXiv 1706.02677, as in MAE).
    """
    scale = train.global_batch / 256
    end = train.steps * train.global_batch
    warmup = min(train.warmup_images, end)
    if images < warmup:
        # The first step already moves: its rate is that of its last image.
        return train.base_lr * scale * min(1.0, (images + train.global_batch) / warmup)
    progress = (images - warmup) / max(1, end - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return scale * (train.min_lr + (train.base_lr - train.min_lr) * cosine)


def layer_groups(
    model: nn.Module, weight_decay: float, *, layer_decay: float, depth: int
) -> list[dict[str, Any]]:
    """AdamW groups whose learning rate falls by `layer_decay` per block from the head down (BEiT, MAE).

    `lr_scale` is the factor: 1 for what is above the `depth` blocks of `encoder`, layer_decay ^ (depth + 1)
    for its embedding. Parameters that need no gradient are left out.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, is_decayed = _layer(name, depth), _is_matrix(name, parameter)
        empty = {
            "params": [],
            "weight_decay": weight_decay if is_decayed else 0.0,
            "lr_scale": layer_decay ** (depth + 1 - layer),
            "name": f"layer {layer} {'matrices' if is_decayed else 'vectors'}",
        }
        groups.setdefault((layer, is_decayed), empty)["params"].append(parameter)
    return list(groups.values())


def _layer(name: str, depth: int) -> int:
    """0 for the embedding, 1 to `depth` for the blocks, depth + 1 for what follows."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if name.startswith(("encoder.patch_embed.", "encoder.cls_token")) else depth + 1


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: decay on matrices, none on biases, norms and tokens.

    To be made before DeepSpeed partitions the parameters: ZeRO 3 leaves them without a shape.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (decayed if _is_matrix(name, parameter) else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "name": "matrices"},
        {"params": plain, "weight_decay": 0.0, "name": "vectors"},
    ]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not name.endswith("token")
