"""From the patches of a study to the next token of its report.

Shape suffixes: B studies, V views of a study, L patches of a view, S memory tokens of a study, T text
tokens, H heads, E width of a head, W encoder width, D decoder width, C vocabulary.

A connector turns the encoder's V x 6,400 tokens into a few hundred. The decoder is a pre-norm
Transformer with learned positions and tied embeddings; the first text token names the language.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from xpt.models.encoder import initialize
from xpt.models.positions import sincos_2d


class Memory(NamedTuple):
    """What the decoder looks at."""

    tokens_BSD: Float[Tensor, "B S D"]
    is_valid_BS: Bool[Tensor, "B S"]

    def repeat(self, times: int) -> "Memory":
        """Each study `times` times in a row, for its beams."""
        return Memory(*(x.repeat_interleave(times, 0) for x in self))

    def of(self, studies: list[int] | Int64[Tensor, "R"]) -> "Memory":
        """What is remembered of these."""
        return Memory(*(x[studies] for x in self))


class PoolConnector(nn.Module):
    """Means over squares of patches, padding left out; S = V x (grid / factor) squared."""

    positions_SD: Tensor

    def __init__(self, *, grid: int, factor: int, encoder_width: int, width: int, views: int) -> None:
        super().__init__()
        if grid % factor:
            raise ValueError(
                f"connector: a grid of {grid} patches cannot be pooled by {factor}; take a divisor"
            )
        self.grid, self.factor = grid, factor
        self.proj = nn.Linear(encoder_width, width)
        self.view_token = nn.Parameter(torch.empty(views, 1, width))
        self.register_buffer("positions_SD", sincos_2d(grid // factor, width), persistent=False)
        initialize(self)

    def forward(self, tokens_BVLW: Float[Tensor, "B V L W"], is_valid_BVL: Bool[Tensor, "B V L"]) -> Memory:
        weight_BVL1 = is_valid_BVL[..., None].to(tokens_BVLW.dtype)
        share_BVS1 = self._squares(weight_BVL1)
        mean_BVSW = self._squares(tokens_BVLW * weight_BVL1) / share_BVS1.clamp(min=1e-6)
        x_BVSD = (
            self.proj(mean_BVSW)
            + self.positions_SD.to(mean_BVSW.dtype)
            + self.view_token[: tokens_BVLW.shape[1]]
        )
        return Memory(x_BVSD.flatten(1, 2), (share_BVS1 > 0).flatten(1))

    def _squares(self, x_BVLW: Tensor) -> Tensor:
        x = x_BVLW.unflatten(
            2, (self.grid // self.factor, self.factor, self.grid // self.factor, self.factor)
        )
        return x.mean((3, 5)).flatten(2, 3)


class QueryConnector(nn.Module):
    """Learned queries attend to all patches of all views; S = queries, whatever V."""

    positions_LD: Tensor

    def __init__(
        self, *, grid: int, queries: int, encoder_width: int, width: int, heads: int, views: int
    ) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.proj = nn.Linear(encoder_width, width)
        self.norm = nn.LayerNorm(width)
        self.query_token = nn.Parameter(torch.empty(1, queries, width))
        self.view_token = nn.Parameter(torch.empty(views, 1, width))
        self.register_buffer("positions_LD", sincos_2d(grid, width), persistent=False)
        initialize(self)

    def forward(self, tokens_BVLW: Float[Tensor, "B V L W"], is_valid_BVL: Bool[Tensor, "B V L"]) -> Memory:
        positions_LD = self.positions_LD.to(tokens_BVLW.dtype)
        x_BVLD = self.proj(tokens_BVLW) + positions_LD + self.view_token[: tokens_BVLW.shape[1]]
        keys = self.attn.keys(self.norm(x_BVLD.flatten(1, 2)))
        query_BSD = self.query_token.expand(len(tokens_BVLW), -1, -1)
        mask = is_valid_BVL.flatten(1)[:, None, None]
        out_BSD = query_BSD + self.attn(query_BSD, keys, mask)
        return Memory(out_BSD, torch.ones(out_BSD.shape[:2], dtype=torch.bool, device=out_BSD.device))


class Keys(NamedTuple):
    """Keys and values of one attention, [B, H, N, E] each."""

    k: Tensor
    v: Tensor


class Attention(nn.Module):
    """Queries and keys made apart, so that keys can be kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        assert width % heads == 0
        self.heads = heads
        self.q, self.kv, self.proj = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def keys(self, x_BND: Tensor) -> Keys:
        return Keys(*self.kv(x_BND).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4))

    def forward(
        self, x_BTD: Tensor, keys: Keys, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        q_BHTE = self.q(x_BTD).unflatten(2, (self.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q_BHTE, keys.k, keys.v, attn_mask=mask, is_causal=causal)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn, self.cross = Attention(width, heads), Attention(width, heads)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, memory: Keys, mask: Tensor, past: Keys | None = None
    ) -> tuple[Tensor, Keys]:
        """With the keys of the tokens before, x is one new token; without, a text from its start."""
        y_BTD = self.norm1(x_BTD)
        keys = self.attn.keys(y_BTD)
        if past is not None:
            keys = Keys(torch.cat([past.k, keys.k], 2), torch.cat([past.v, keys.v], 2))
        x_BTD = x_BTD + self.drop(self.attn(y_BTD, keys, causal=past is None))
        x_BTD = x_BTD + self.drop(self.cross(self.norm2(x_BTD), memory, mask))
        return x_BTD + self.drop(self.mlp(self.norm3(x_BTD))), keys


class Cache(NamedTuple):
    """What the decoder keeps between tokens, one entry per block."""

    text: list[Keys]
    memory: list[Keys]
    mask: Tensor

    def select(self, rows: Int64[Tensor, "B"]) -> "Cache":
        """The rows that beams continue. Beams stay within their study, whose memory they share."""
        return self._replace(text=[Keys(keys.k[rows], keys.v[rows]) for keys in self.text])


class ReportDecoder(nn.Module):
    """Logits of the next token."""

    def __init__(
        self,
        *,
        vocabulary: int,
        longest: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.longest, self.width = longest, width
        self.embed = nn.Embedding(vocabulary, width)
        self.position_token = nn.Parameter(torch.empty(longest, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, dropout) for _ in range(depth))
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        initialize(self)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids_BT: Int64[Tensor, "B T"], memory: Memory) -> Float[Tensor, "B T C"]:
        """After each token of texts that begin with their language's token; for training."""
        return self.start(ids_BT, memory)[0]

    def start(self, ids_BT: Int64[Tensor, "B T"], memory: Memory) -> tuple[Float[Tensor, "B T C"], Cache]:
        keys = [block.cross.keys(memory.tokens_BSD) for block in cast("list[Block]", list(self.blocks))]
        mask = memory.is_valid_BS[:, None, None]
        return self._run(ids_BT, Cache([], keys, mask))

    def step(self, ids_B1: Int64[Tensor, "B 1"], cache: Cache) -> tuple[Float[Tensor, "B 1 C"], Cache]:
        """After one more token."""
        return self._run(ids_B1, cache)

    def _run(self, ids_BT: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        before = cache.text[0].k.shape[2] if cache.text else 0
        after = before + ids_BT.shape[1]
        if after > self.longest:
            raise ValueError(f"report decoder: got {after} tokens, wanted at most {self.longest}")
        x_BTD = self.drop(self.embed(ids_BT) + self.position_token[before:after])
        text = []
        for i, block in enumerate(self.blocks):
            x_BTD, keys = block(x_BTD, cache.memory[i], cache.mask, cache.text[i] if cache.text else None)
            text.append(keys)
        return F.linear(self.norm(x_BTD), self.embed.weight), cache._replace(text=text)
