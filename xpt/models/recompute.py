"""What to recompute in the backward pass, so that activations keep to a memory target."""

from collections.abc import Sequence

from xpt.config import Config, Recompute
from xpt.models.costs import BlockCost, decoder_blocks, encoder_blocks


def recomputation(config: Config) -> list[Recompute]:
    """What each block recomputes, those of the encoder first, as cheaply as `model.activation_gb` allows.

    Where not everything can be kept, all blocks recompute their norms and GELUs, and those that free the most
    for each FLOP everything, as few as possible. While such a block is recomputed it is whole, so one of
    them is counted twice. Without a target, all do as `model.activation_checkpointing` says.

    Raises:
        ValueError: where not even recomputing all blocks is enough.
    """
    blocks = [*encoder_blocks(config), *decoder_blocks(config)]
    if not config.model.activation_gb:
        return [config.model.activation_checkpointing] * len(blocks)
    images = config.train.micro_batch
    per_image = (2 if config.train.precision == "bf16" else 4) * images
    target = config.model.activation_gb * 1e9 / per_image
    choices: list[Recompute] = ["none"] * len(blocks)
    if kept_values(blocks, choices) <= target:
        return choices
    choices = ["elementwise"] * len(blocks)
    gain = [(block.lean - block.inputs) / block.forward for block in blocks]
    for block in sorted(range(len(blocks)), key=lambda block: -gain[block]):
        if kept_values(blocks, choices) <= target:
            break
        choices[block] = "blocks"
    if (least := kept_values(blocks, choices)) > target:
        raise ValueError(
            f"model.activation_gb: got {config.model.activation_gb}, but {images} images need "
            f"{per_image * least / 1e9:.2f} GB even where every block is recomputed. Set --train.micro_batch "
            f"to {max(1, int(images * target / least))}, or raise --model.activation_gb."
        )
    return choices


def kept_values(blocks: Sequence[BlockCost], choices: Sequence[Recompute]) -> int:
    """Values that one image holds when the backward pass begins to recompute the largest block."""
    pairs = list(zip(blocks, choices, strict=True))
    held = sum(block.values(choice) for block, choice in pairs)
    return held + max((block.kept for block, choice in pairs if choice == "blocks"), default=0)
