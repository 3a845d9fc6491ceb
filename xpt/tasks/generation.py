"""Reports from a decoder: batched beam search, and sampling.

Shape suffixes: B studies, K beams, R = B x K rows (a study's beams follow one another), N = 2 K candidates,
T tokens, C vocabulary, G n-grams.

Both are deterministic: the same weights, memory, settings and seed give the same text on the same device.
A study's sample does not depend on which others share its batch.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from xpt.models.language_model import LanguageModelDecoder
from xpt.models.report_decoder import Memory, ReportDecoder
from xpt.text.tokenizer import EOS, PAD, SPECIAL

Decoder = ReportDecoder | LanguageModelDecoder


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    longest: int = 150
    """Tokens, EOS included; a report that has not ended by then ends there."""
    shortest: int = 0
    """Tokens before EOS may come."""
    beams: int = 3
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / tokens ** this: 0 favours short reports, above 1 long ones."""
    no_repeat: int = 0
    """No n-gram of this many tokens occurs twice in a report; 0 lets them."""
    temperature: float = 1.0
    """Of sampling."""
    top_p: float = 1.0
    """Sampling takes the likeliest tokens that make up this share."""
    seed: int = 0
    use_cache: bool = True
    """Keep keys and values of earlier tokens; without, everything is computed anew for each token."""

    def __post_init__(self) -> None:
        if not 0 <= self.shortest < self.longest:
            raise ValueError(
                f"generation: got shortest {self.shortest} and longest {self.longest}, "
                "wanted 0 <= shortest < longest"
            )
        if self.beams < 1 or self.no_repeat < 0 or self.length_penalty < 0:
            raise ValueError(
                f"generation: got beams {self.beams}, no_repeat {self.no_repeat} and length_penalty "
                f"{self.length_penalty}, wanted at least 1, 0 and 0"
            )
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"generation: got temperature {self.temperature} and top_p {self.top_p}, "
                "wanted a temperature above 0 and top_p in (0, 1]; for the likeliest text use beam search"
            )


class _Pool(NamedTuple):
    """The K best ended reports of each study."""

    score_BK: Tensor
    ids_BKT: Tensor

    def add(self, score_BK: Tensor, ids_BKT: Tensor) -> "_Pool":
        score, ids = torch.cat([self.score_BK, score_BK], 1), torch.cat([self.ids_BKT, ids_BKT], 1)
        best = score.topk(self.score_BK.shape[1], dim=1)
        return _Pool(best.values, _take(ids, best.indices))


@torch.inference_mode()
def beam_search(
    decoder: Decoder, memory: Memory, language_B: Int64[Tensor, "B"], config: GenerationConfig
) -> list[list[int]]:
    """The best report of each study, from the token after the language's up to EOS (left out).

    Args:
        language_B: the language's token of each report.
    """
    studies, beams, device = len(language_B), config.beams, language_B.device
    pool = _Pool(
        torch.full((studies, beams), -torch.inf, device=device),
        torch.full((studies, beams, config.longest), PAD, device=device),
    )
    # All beams begin alike, so only the first of each study counts.
    score_BK = torch.full((studies, beams), -torch.inf, device=device)
    score_BK[:, 0] = 0
    ids_RT = language_B.repeat_interleave(beams)[:, None]
    first_B1 = beams * torch.arange(studies, device=device)[:, None]
    stepper = _Stepper(decoder, memory.repeat(beams), config.use_cache)
    for length in range(1, config.longest + 1):
        log_RC = _allowed(stepper.next_logits(ids_RT), ids_RT, config, length).log_softmax(1)
        total_BN = (score_BK[..., None] + log_RC.float().unflatten(0, (studies, beams))).flatten(1)
        # At most K of the best 2 K end here, so K go on.
        score_BN, place_BN = total_BN.topk(2 * beams, dim=1)
        beam_BN, token_BN = place_BN // log_RC.shape[1], place_BN % log_RC.shape[1]
        ids_BNT = torch.cat([ids_RT[first_B1 + beam_BN], token_BN[..., None]], 2)
        is_end_BN = token_BN == EOS
        divisor = length**config.length_penalty
        ended_BK = (score_BN / divisor).masked_fill(~is_end_BN, -torch.inf)[:, :beams]
        pool = pool.add(ended_BK, _padded(ids_BNT[:, :beams, 1:], config.longest))
        score_BK, going_BK = score_BN.masked_fill(is_end_BN, -torch.inf).topk(beams, dim=1)
        ids_BKT = _take(ids_BNT, going_BK)
        if length == config.longest:
            pool = pool.add(score_BK / divisor, _padded(ids_BKT[..., 1:], config.longest))
        # The best that a beam can still reach, since log-probabilities only fall.
        elif (pool.score_BK[:, -1] >= score_BK[:, 0] / config.longest**config.length_penalty).all():
            break
        ids_RT = ids_BKT.flatten(0, 1)
        stepper.keep((first_B1 + beam_BN.gather(1, going_BK)).flatten())
    return [_text(ids) for ids in pool.ids_BKT[:, 0].tolist()]


@torch.inference_mode()
def sample(
    decoder: Decoder,
    memory: Memory,
    language_B: Int64[Tensor, "B"],
    config: GenerationConfig,
    number_B: list[int],
) -> list[list[int]]:
    """One draw for each study.

    Args:
        number_B: tells the study's random numbers from the others', such as its place in the data set.
    """
    ids_BT, device = language_B[:, None], language_B.device
    generators = [torch.Generator().manual_seed(hash((config.seed, number))) for number in number_B]
    stepper = _Stepper(decoder, memory, config.use_cache)
    is_ended_B = torch.zeros_like(language_B, dtype=torch.bool)
    for length in range(1, config.longest + 1):
        logit_BC = _allowed(stepper.next_logits(ids_BT), ids_BT, config, length).float()
        share_BC = _nucleus((logit_BC / config.temperature).softmax(1), config.top_p)
        drawn_B = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        sum_BC = share_BC.double().cumsum(1)
        token_B1 = torch.searchsorted(sum_BC, drawn_B.to(device)[:, None] * sum_BC[:, -1:], right=True)
        token_B1 = token_B1.masked_fill(is_ended_B[:, None], PAD)
        ids_BT = torch.cat([ids_BT, token_B1], 1)
        is_ended_B |= token_B1[:, 0] == EOS
        if is_ended_B.all():
            break
    return [_text(ids) for ids in ids_BT[:, 1:].tolist()]


class _Stepper:
    """The logits after the last token, with kept keys and values or without."""

    def __init__(self, decoder: Decoder, memory: Memory, use_cache: bool) -> None:
        self.decoder, self.memory, self.use_cache = decoder, memory, use_cache
        self.cache: Any = None  # the decoder's own kind

    def next_logits(self, ids_RT: Tensor) -> Float[Tensor, "R C"]:
        if self.cache is None:
            logit_RTC, cache = self.decoder.start(ids_RT, self.memory)
            self.cache = cache if self.use_cache else None
        else:
            logit_RTC, self.cache = self.decoder.step(ids_RT[:, -1:], self.cache)
        return logit_RTC[:, -1]

    def keep(self, row_R: Tensor) -> None:
        if self.cache is not None:
            self.cache = self.cache.select(row_R)


def _allowed(logit_RC: Tensor, ids_RT: Tensor, config: GenerationConfig, length: int) -> Tensor:
    """Logits with what must not follow at -inf: special tokens, an early end, a repeated n-gram."""
    logit_RC = logit_RC.clone()
    is_no_text = [i for i in range(SPECIAL) if i != EOS]
    logit_RC[:, is_no_text] = -torch.inf
    if length <= config.shortest:
        logit_RC[:, EOS] = -torch.inf
    n = config.no_repeat
    if n and ids_RT.shape[1] > n:  # the first token is the language's
        gram_RGn = ids_RT[:, 1:].unfold(1, n, 1)
        is_same_RG = (gram_RGn[..., :-1] == ids_RT[:, None, ids_RT.shape[1] - n + 1 :]).all(2)
        banned_RC = torch.zeros_like(logit_RC).scatter_add(
            1, gram_RGn[..., -1], is_same_RG.to(logit_RC.dtype)
        )
        logit_RC = logit_RC.masked_fill(banned_RC > 0, -torch.inf)
    return logit_RC


def _nucleus(share_BC: Tensor, top_p: float) -> Tensor:
    """Shares of the fewest likeliest tokens that make up `top_p`; zero elsewhere."""
    if top_p == 1:
        return share_BC
    sorted_BC, order_BC = share_BC.sort(dim=1, descending=True, stable=True)
    sorted_BC = sorted_BC.masked_fill(sorted_BC.cumsum(1) - sorted_BC >= top_p, 0)
    return torch.zeros_like(share_BC).scatter(1, order_BC, sorted_BC)


def _take(ids_BNT: Tensor, index_BK: Tensor) -> Tensor:
    return ids_BNT.gather(1, index_BK[..., None].expand(-1, -1, ids_BNT.shape[2]))


def _padded(ids_BKT: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(ids_BKT, (0, length - ids_BKT.shape[2]), value=PAD)


def _text(ids: list[int]) -> list[int]:
    """Up to EOS or padding."""
    ends = [i for i, token in enumerate(ids) if token in (EOS, PAD)]
    return ids[: ends[0]] if ends else ids
