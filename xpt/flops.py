"""How much work a training step is, and how well the device is used.

Counts are model FLOPs, as in the literature on utilisation (PaLM, arXiv 2204.02311, appendix B): two for
each multiply-add of matrix products and attention, the backward pass twice the forward; what activation
checkpointing computes again, norms, softmax and the optimizer do not count.

Shape suffixes in names of sizes: L patches of an image, K visible, M predicted, P values of a patch,
D encoder width, W decoder width.
"""

import time
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from xpt.config import Config
from xpt.models.costs import decoder_blocks, encoder_blocks
from xpt.models.mae import CHANNELS

SECTOR = 32
"""Bytes that a GPU's memory moves at least."""
TRAINING = 3
"""Forward and backward over the forward pass."""


class Gpu(NamedTuple):
    """What NVIDIA's data sheet says."""

    tflops: float
    """Dense, bf16 (V100: fp16)."""
    gigabytes: float
    """Of memory; the larger where there are two."""


GPUS = {
    "A100": Gpu(312.0, 80),
    "H100 PCIe": Gpu(756.0, 80),
    "H100": Gpu(989.4, 80),
    "H200": Gpu(989.4, 141),
    "GH200": Gpu(989.4, 96),
    "B100": Gpu(1750.0, 192),
    "B200": Gpu(2250.0, 180),
    "GB200": Gpu(2500.0, 186),
    "L40S": Gpu(362.1, 48),
    "A40": Gpu(149.7, 48),
    "A10": Gpu(125.0, 24),
    "RTX 4090": Gpu(165.2, 24),
    "RTX 3090": Gpu(71.2, 24),
    "V100": Gpu(125.0, 32),
}
"""By a part of the device's name."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of the forward pass of one image, by part."""

    embedding: int
    encoder_matmul: int
    encoder_attention: int
    decoder_matmul: int
    """Blocks, the embedding of the encoder's tokens, their mixtures where there are any, and the head."""
    decoder_attention: int

    @property
    def forward(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def training(self) -> int:
        """Forward and backward: the gradient by the image, which nobody needs, is not computed."""
        return TRAINING * self.forward - self.embedding


def work(config: Config) -> Work:
    """FLOPs of one image through the model of `config`."""
    model = config.model
    K, M = config.kept, config.predicted
    P, D, W = CHANNELS * model.patch**2, model.width, model.decoder_width
    mixtures = model.decoder_depth if model.feature_maps else 0
    memories = max(1, mixtures)
    encoder, decoder = encoder_blocks(config), decoder_blocks(config)
    return Work(
        embedding=2 * K * P * D,
        encoder_matmul=sum(block.matmul for block in encoder),
        encoder_attention=sum(block.attention for block in encoder),
        decoder_matmul=sum(block.matmul for block in decoder)
        + 2 * M * W * P
        + 2 * (K + 1) * D * (memories * W + mixtures * (model.depth + 1)),
        decoder_attention=sum(block.attention for block in decoder),
    )


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of the device's memory that the two kernels of the package must move for one image."""

    mask_gather: int
    patch_loss: int


def traffic(config: Config, itemsize: int) -> Traffic:
    """Each input once and each output once; `itemsize` of patches and predictions."""
    model = config.model
    P = CHANNELS * model.patch**2
    K, M, L = config.kept, config.predicted, model.tokens
    selection = L * (4 + 1 + 1)  # contour, valid, masked
    return Traffic(
        mask_gather=_pixels(config, K) + K * (P * itemsize + 8) + M * (8 + 1) + selection,
        patch_loss=_pixels(config, M) + M * (2 * P * itemsize + 8 + 4 + 4),
    )


def _pixels(config: Config, chosen: int) -> int:
    """Bytes read for `chosen` patches drawn at random: memory moves in sectors of 32.

    A row of a patch of 16 pixels is half a sector, which is read whole, once if the neighbour is chosen too.
    """
    patch, L = config.model.patch, config.model.tokens
    sharing = max(1, SECTOR // patch)
    groups = L / sharing * (1 - (1 - chosen / L) ** sharing)
    return round(groups * CHANNELS * patch * -(-patch // SECTOR) * SECTOR)


def known_gpu(name: str) -> str | None:
    """The longest name in the table that is part of `name`."""
    return max((part for part in GPUS if part in name), key=len, default=None)


def peak_flops(device: torch.device) -> float:
    """FLOP/s that `device` is sold for in bf16; of a CPU, or a device that the table lacks, measured."""
    known = known_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return GPUS[known].tflops * 1e12 if known else measured_flops(device)


def measured_flops(device: torch.device) -> float:
    """FLOP/s of a square matrix product, the best of a few: an estimate of the peak."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (768, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
    seconds = []
    for _ in range(7):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
