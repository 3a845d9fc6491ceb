"""What a block of a transformer costs: its work, and what it keeps for the backward pass.

Numbers are of one image. A pre-norm block keeps its input, the first norm's output, queries, keys and values,
the attention's output, the sum after it, the second norm's output, and the MLP's hidden layer before and
after GELU: 8 + 2 r values per token in units of its width, r the MLP's ratio, and one per head for attention
that forms no score matrix. Norms and GELU recomputed, 6 + r.
"""

from typing import NamedTuple

from xpt.config import Config, Recompute


class BlockCost(NamedTuple):
    matmul: int
    """FLOPs of the forward pass in products with weights, two for each multiply-add."""
    attention: int
    """FLOPs of the forward pass in products of activations."""
    kept: int
    """Values kept for the backward pass."""
    lean: int
    """The same where norms and GELU are recomputed."""
    inputs: int
    """The same where the block is recomputed."""

    @property
    def forward(self) -> int:
        return self.matmul + self.attention

    def values(self, recompute: Recompute) -> int:
        return {"none": self.kept, "elementwise": self.lean, "blocks": self.inputs}[recompute]


def self_block(
    tokens: int, *, width: int, heads: int, mlp_ratio: float, asking: int | None = None
) -> BlockCost:
    """Of a block whose output is asked for at `asking` tokens; None: at all."""
    hidden = int(width * mlp_ratio)
    copied = 0 if asking is None else asking * width  # the queries of those that ask
    asking = tokens if asking is None else asking
    lean = 4 * tokens * width + copied + asking * (2 * width + hidden + heads)
    return BlockCost(
        matmul=2 * (3 * tokens * width**2 + asking * (width**2 + 2 * width * hidden)),
        attention=4 * tokens * asking * width,
        kept=lean + tokens * width + asking * (width + hidden),
        lean=lean,
        inputs=tokens * width,
    )


def cross_block(queries: int, keys: int, *, width: int, heads: int, mlp_ratio: float) -> BlockCost:
    hidden = int(width * mlp_ratio)
    lean = queries * (4 * width + hidden + heads) + 2 * keys * width
    return BlockCost(
        matmul=2 * (queries * (2 * width**2 + 2 * width * hidden) + 2 * keys * width**2),
        attention=4 * queries * keys * width,
        kept=lean + queries * (2 * width + hidden),
        lean=lean,
        inputs=queries * width,
    )


def encoder_blocks(config: Config) -> list[BlockCost]:
    model = config.model
    block = self_block(
        config.kept + 1, width=model.width, heads=model.heads, mlp_ratio=model.mlp_ratio
    )  # and the class token
    return [block] * model.depth


def decoder_blocks(config: Config) -> list[BlockCost]:
    """Of the last block of `self`, only the predicted tokens' output is asked for."""
    model = config.model
    sizes = {"width": model.decoder_width, "heads": model.decoder_heads}
    if model.decoder == "cross":
        block = cross_block(config.predicted, config.kept + 1, **sizes, mlp_ratio=model.mlp_ratio)
        return [block] * model.decoder_depth
    every, last = (
        self_block(model.tokens + 1, **sizes, mlp_ratio=model.mlp_ratio, asking=asking)
        for asking in (None, config.predicted)
    )
    return [every] * (model.decoder_depth - 1) + [last]
