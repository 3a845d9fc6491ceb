"""Which blocks to recompute in the backward pass, so that activations keep to a memory target."""

from collections.abc import Sequence
from dataclasses import dataclass

from xpt.config import Config


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The blocks of one part of the model, for one image."""

    depth: int
    bytes: int
    """That one block keeps for the backward pass."""
    input_bytes: int
    """That remain of one that is recomputed."""
    flops: int
    """Of one block's forward pass."""


def blocks_of(config: Config) -> tuple[Blocks, Blocks]:
    """(encoder, decoder).

    A block keeps, per token and in units of its width: the inputs of two norms, of the queries, keys and
    values, the three of them and the attention's output, the inputs of the MLP's two layers and of its
    activation: 8 + 2 mlp_ratio. A cross block has its keys and values (2) on the encoder's tokens.
    """
    model = config.model
    itemsize = 2 if config.train.precision == "bf16" else 4
    visible, predicted = config.kept + 1, config.predicted
    ratio = 2 * int(model.width * model.mlp_ratio) / model.width
    wide, narrow = model.width, model.decoder_width
    encoder = Blocks(
        depth=model.depth,
        bytes=round(itemsize * visible * wide * (8 + ratio)),
        input_bytes=itemsize * visible * wide,
        flops=round(2 * visible * wide**2 * (4 + ratio) + 4 * visible**2 * wide),
    )
    if model.decoder == "self":
        tokens = model.tokens + 1
        decoder = Blocks(
            depth=model.decoder_depth,
            bytes=round(itemsize * tokens * narrow * (8 + ratio)),
            input_bytes=itemsize * tokens * narrow,
            flops=round(2 * tokens * narrow**2 * (4 + ratio) + 4 * tokens**2 * narrow),
        )
    else:
        decoder = Blocks(
            depth=model.decoder_depth,
            bytes=round(itemsize * narrow * (predicted * (6 + ratio) + 2 * visible)),
            input_bytes=itemsize * predicted * narrow,
            flops=round(
                2 * narrow**2 * (predicted * (2 + ratio) + 2 * visible) + 4 * predicted * visible * narrow
            ),
        )
    return encoder, decoder


def recomputed_blocks(config: Config) -> tuple[int, int]:
    """How many blocks of (encoder, decoder) to recompute for `model.activation_gb`, as cheaply as it goes.

    Blocks that free more bytes for each FLOP go first. While one is recomputed it is whole, so one more
    than the target has room for stays in memory at a time, and is counted.

    Raises:
        ValueError: where not even recomputing all blocks is enough.
    """
    parts = blocks_of(config)
    images = config.train.micro_batch
    target = config.model.activation_gb * 1e9 / images
    counts = [0, 0]
    order = sorted(
        (0, 1), key=lambda i: (parts[i].bytes - parts[i].input_bytes) / parts[i].flops, reverse=True
    )
    for i in order:
        while kept_bytes(parts, counts) > target and counts[i] < parts[i].depth:
            counts[i] += 1
    if (kept := kept_bytes(parts, counts)) > target:
        raise ValueError(
            f"model.activation_gb: got {config.model.activation_gb}, but {images} images need "
            f"{images * kept / 1e9:.2f} GB even where every block is recomputed. Set --train.micro_batch to "
            f"{max(1, int(target * images / kept))}, or raise --model.activation_gb."
        )
    return counts[0], counts[1]


def kept_bytes(parts: tuple[Blocks, Blocks], counts: Sequence[int]) -> int:
    """Bytes that one image holds when the backward pass begins to recompute the largest block."""
    held = sum(
        (part.depth - count) * part.bytes + count * part.input_bytes
        for part, count in zip(parts, counts, strict=True)
    )
    return held + max(part.bytes if count else 0 for part, count in zip(parts, counts, strict=True))
