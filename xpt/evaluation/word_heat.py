"""Where a model looked while it wrote.

Shape suffixes: B studies, V films of a study, T tokens, S memory tokens, H heads, E width of a head,
G patches along a side, N keys.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xpt.models.report_decoder import Attention, Block, Keys, Memory, PoolConnector, ReportDecoder
from xpt.models.report_model import ReportModel


@torch.no_grad()
def word_heat(
    model: ReportModel,
    films: tuple[Tensor, Tensor, Tensor, int],
    ids_BT: Int64[Tensor, "B T"],
) -> Float[Tensor, "B T V G G"]:
    """How the attention that each token was written with is shared out over the patches; adds up to 1.

    The mean over the decoder's blocks and heads of its attention to the memory, carried back through the
    connector: a square's share is spread evenly over its patches, a query's as the query attended.

    Args:
        films: as `ReportModel.remember` takes them.
        ids_BT: from the language's token on; entry T is about the token that follows it.

    Raises:
        ValueError: for a language model as the decoder, whose attention is not taken apart.
    """
    decoder, connector = model.decoder, model.connector
    if not isinstance(decoder, ReportDecoder):
        raise ValueError("where a language model looked is not known")
    tokens_BVLW, is_valid_BVL = model.tokens(*films)
    views, grid = tokens_BVLW.shape[1], round(tokens_BVLW.shape[2] ** 0.5)
    connecting = [connector.attn] if not isinstance(connector, PoolConnector) else []
    with _Listening(connecting) as heard:  # pyright: ignore[reportArgumentType]
        memory: Memory = connector(tokens_BVLW, is_valid_BVL)
    by_query = heard.shares()
    crosses = [block.cross for block in decoder.blocks if isinstance(block, Block)]
    with _Listening(crosses) as heard:
        decoder(ids_BT, memory)
    share_BTS = torch.stack(heard.shares()).mean(0)
    if by_query:
        return (share_BTS @ by_query[0]).unflatten(2, (views, grid, grid))
    assert isinstance(connector, PoolConnector)
    side = grid // connector.factor
    share_BTVgg = share_BTS.unflatten(2, (views, side, side)) / connector.factor**2
    return share_BTVgg.repeat_interleave(connector.factor, 3).repeat_interleave(connector.factor, 4)


class _Listening:
    """Keeps what some attentions are called with; sdpa does not give its weights away."""

    def __init__(self, attentions: list[Attention]) -> None:
        self._attentions = attentions
        self._calls: list[tuple[Attention, Tensor, Keys, Tensor]] = []

    def __enter__(self) -> "_Listening":
        self._hooks = [module.register_forward_pre_hook(self._keep) for module in self._attentions]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, Keys, Tensor]) -> None:
        assert isinstance(module, Attention)
        self._calls.append((module, *inputs))

    def shares(self) -> list[Float[Tensor, "B T N"]]:
        """The mean over heads, of each call."""
        found = []
        for module, x_BTD, keys, mask in self._calls:
            q_BHTE = module.q(x_BTD).unflatten(2, (module.heads, -1)).transpose(1, 2)
            score_BHTN = q_BHTE.float() @ keys.k.float().mT * q_BHTE.shape[3] ** -0.5
            found.append(F.softmax(score_BHTN.masked_fill(~mask, -torch.inf), 3).mean(1))
        return found
