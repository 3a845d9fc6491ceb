"""Where a model looked: against the weights of its own forward pass, with attention written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xpt.config import EncoderConfig
from xpt.evaluation.word_heat import word_heat
from xpt.models.report_decoder import PoolConnector, QueryConnector, ReportDecoder
from xpt.models.report_model import ReportModel

GRID, VIEWS, STUDIES, WIDTH, ENCODER_WIDTH = 4, 2, 3, 16, 24
CONNECTORS = {
    "pool": lambda: PoolConnector(grid=GRID, factor=2, encoder_width=ENCODER_WIDTH, width=WIDTH, views=VIEWS),
    "queries": lambda: QueryConnector(
        grid=GRID, queries=5, encoder_width=ENCODER_WIDTH, width=WIDTH, heads=2, views=VIEWS
    ),
}


@pytest.mark.parametrize("connector", CONNECTORS)
def test_looks_are_the_attention_of_the_forward_pass(connector: str, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    encoder = EncoderConfig(side=8 * GRID, patch=8, width=ENCODER_WIDTH, depth=1, heads=2)
    decoder = ReportDecoder(vocabulary=30, longest=12, width=WIDTH, depth=3, heads=2)
    model = ReportModel(encoder, CONNECTORS[connector](), decoder, drop_path=0.0, is_frozen=False).eval()
    for parameter in model.parameters():  # fresh weights look everywhere alike
        nn.init.normal_(parameter, std=0.3)
    films = STUDIES * VIEWS
    image_FCHW = torch.randint(0, 256, (films, 1, 8 * GRID, 8 * GRID), dtype=torch.uint8)
    is_valid_FL = torch.ones(films, GRID**2, dtype=torch.bool)
    is_valid_FL[0, :GRID] = False  # letterbox
    there_M = torch.tensor([0, 1, 2, 4, 5])  # the second study has one film
    ids_BT = torch.randint(3, 30, (STUDIES, 6))

    weights: list[Tensor] = []

    def written_out(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **_: Any
    ) -> Tensor:
        score = q @ k.mT / math.sqrt(q.shape[-1])
        if is_causal:
            score = score.masked_fill(torch.ones_like(score).triu(1) > 0, -torch.inf)
        if attn_mask is not None:
            score = score.masked_fill(~attn_mask, -torch.inf)
        share = score.softmax(-1)
        if attn_mask is not None:  # the connector's, then each block's to the memory
            weights.append(share.mean(1))
        return share @ v

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", written_out)
        model(image_FCHW, is_valid_FL, there_M, torch.arange(STUDIES), ids_BT, STUDIES)
    share_BTS = torch.stack(weights[-3:]).mean(0)
    if connector == "queries":
        wanted_BTVGG = (share_BTS @ weights[0]).unflatten(2, (VIEWS, GRID, GRID))
    else:
        square_BTVgg = share_BTS.unflatten(2, (VIEWS, GRID // 2, GRID // 2)) / 4
        wanted_BTVGG = nn.Upsample(scale_factor=2)(square_BTVgg.flatten(0, 1)).unflatten(0, (STUDIES, -1))

    found_BTVGG = word_heat(model, (image_FCHW, is_valid_FL, there_M, STUDIES), ids_BT)
    torch.testing.assert_close(found_BTVGG, wanted_BTVGG)
    torch.testing.assert_close(found_BTVGG.sum((2, 3, 4)), torch.ones(STUDIES, 6))
    assert not found_BTVGG[1, :, 1].any()  # a film that is not there is not looked at
    assert found_BTVGG.std() > 0.01
