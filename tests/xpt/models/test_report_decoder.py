"""Connectors and the decoder: what reaches what, and the cache changes nothing."""

import pytest
import torch

from xpt.models.report_decoder import Memory, PoolConnector, QueryConnector, ReportDecoder

GRID, WIDTH, ENCODER_WIDTH = 8, 16, 12


@pytest.fixture(params=["pool", "query"])
def connector(request):
    torch.manual_seed(0)
    if request.param == "pool":
        return PoolConnector(grid=GRID, factor=4, encoder_width=ENCODER_WIDTH, width=WIDTH, views=2).double()
    return QueryConnector(
        grid=GRID, queries=5, encoder_width=ENCODER_WIDTH, width=WIDTH, heads=2, views=2
    ).double()


@pytest.fixture
def decoder() -> ReportDecoder:
    torch.manual_seed(0)
    return ReportDecoder(vocabulary=40, longest=20, width=WIDTH, depth=2, heads=2).double().eval()


def memory(studies: int = 3, tokens: int = 6) -> Memory:
    generator = torch.Generator().manual_seed(1)
    is_valid_BS = torch.ones(studies, tokens, dtype=torch.bool)
    is_valid_BS[1, 3:] = False
    return Memory(torch.randn(studies, tokens, WIDTH, generator=generator, dtype=torch.float64), is_valid_BS)


def tokens(studies: int, views: int):
    return torch.randn(studies, views, GRID**2, ENCODER_WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("views", [1, 2])
def test_a_film_of_64_patches_becomes_a_few_tokens(connector, views: int):
    found = connector(tokens(3, views), torch.ones(3, views, GRID**2, dtype=torch.bool))
    count = 4 * views if isinstance(connector, PoolConnector) else 5
    assert found.tokens_BSD.shape == (3, count, WIDTH) and found.is_valid_BS.all()


def test_padding_and_absent_views_do_not_count(connector):
    x_BVLW = tokens(2, 2)
    is_valid_BVL = torch.ones(2, 2, GRID**2, dtype=torch.bool)
    is_valid_BVL[:, 0, : 2 * GRID] = False  # two rows of letterbox
    is_valid_BVL[1, 1] = False  # the second study has one view
    one = connector(x_BVLW, is_valid_BVL)
    two = connector(x_BVLW.masked_fill(~is_valid_BVL[..., None], 7.0), is_valid_BVL)
    torch.testing.assert_close(one.tokens_BSD[one.is_valid_BS], two.tokens_BSD[two.is_valid_BS])
    if isinstance(connector, PoolConnector):
        assert one.is_valid_BS.tolist() == [[True] * 8, [True] * 4 + [False] * 4]


def test_pooling_is_the_mean_of_each_square():
    connector = PoolConnector(grid=GRID, factor=4, encoder_width=ENCODER_WIDTH, width=WIDTH, views=1).double()
    x_BVLW = tokens(1, 1)
    found = connector(x_BVLW, torch.ones(1, 1, GRID**2, dtype=torch.bool)).tokens_BSD[0, 1]  # upper right
    mean = x_BVLW[0, 0].unflatten(0, (GRID, GRID))[:4, 4:].mean((0, 1))
    wanted = connector.proj(mean) + connector.positions_SD[1] + connector.view_token[0, 0]
    torch.testing.assert_close(found, wanted)


def test_a_grid_that_cannot_be_pooled_is_refused():
    with pytest.raises(ValueError, match="a grid of 8 patches cannot be pooled by 3"):
        PoolConnector(grid=8, factor=3, encoder_width=4, width=16, views=1)


def test_no_token_sees_those_after_it(decoder):
    ids_BT = torch.randint(0, 40, (3, 12))
    other_BT = ids_BT.clone()
    other_BT[:, 7:] = (other_BT[:, 7:] + 1) % 40
    one, two = decoder(ids_BT, memory()), decoder(other_BT, memory())
    torch.testing.assert_close(one[:, :7], two[:, :7])
    assert not torch.allclose(one[:, 7], two[:, 7])


def test_the_image_is_read_and_its_padding_is_not(decoder):
    ids_BT, seen = torch.randint(0, 40, (3, 5)), memory()
    wanted = decoder(ids_BT, seen)
    hidden = seen.tokens_BSD.masked_fill(~seen.is_valid_BS[..., None], 9.0)
    torch.testing.assert_close(decoder(ids_BT, Memory(hidden, seen.is_valid_BS)), wanted)
    assert not torch.allclose(decoder(ids_BT, Memory(seen.tokens_BSD.flip(0), seen.is_valid_BS)), wanted)


def test_token_by_token_gives_the_logits_of_the_whole_text(decoder):
    ids_BT = torch.randint(0, 40, (3, 20))
    wanted = decoder(ids_BT, memory())
    logits, cache = decoder.start(ids_BT[:, :1], memory())
    found = [logits]
    for t in range(1, 20):
        logits, cache = decoder.step(ids_BT[:, t : t + 1], cache)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=1e-12, atol=1e-12)


def test_input_and_output_share_one_embedding_and_everything_learns(decoder):
    decoder(torch.randint(0, 40, (3, 20)), memory()).square().mean().backward()
    assert not [n for n, p in decoder.named_parameters() if p.grad is None]
    assert [n for n, p in decoder.named_parameters() if 40 in p.shape] == ["embed.weight"]


def test_a_text_that_is_too_long_is_refused(decoder):
    with pytest.raises(ValueError, match="got 21 tokens, wanted at most 20"):
        decoder(torch.zeros(3, 21, dtype=torch.long), memory())
