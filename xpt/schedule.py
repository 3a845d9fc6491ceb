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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: decay on matrices, none on biases, norms and tokens.

    To be made before DeepSpeed partitions the parameters: ZeRO 3 leaves them without a shape.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and not name.endswith("token")
        (decayed if is_matrix else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "name": "matrices"},
        {"params": plain, "weight_decay": 0.0, "name": "vectors"},
    ]
