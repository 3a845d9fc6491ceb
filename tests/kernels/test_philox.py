"""Philox4x32-10 against the known answers of Random123, and the layout of draws."""

import pytest
import torch

from kernels.philox import STREAM_MASK, STREAM_PREDICTION, draws, philox
from kernels.philox.reference import draws_in_torch

# Random123 1.14.0, tests/kat_vectors, lines "philox4x32 10".
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_gives_the_known_answers_of_random123(counter, key, words):
    seed = key[0] | key[1] << 32
    result = philox(seed, *(torch.tensor([word]) for word in counter))
    assert tuple(int(word) for word in result) == words


def test_element_i_is_word_i_mod_4_of_block_i_div_4():
    seed, position, stream, count = 77, 5 << 32 | 9, 3, 11
    result = draws(seed, torch.tensor([position]), stream, count)[0]
    for element in range(count):
        words = philox(seed, *(torch.tensor([word]) for word in (element // 4, 9, 5, stream)))
        assert int(result[element]) == int(words[element % 4])


@pytest.mark.parametrize("count", [1, 6, 64, 6400])
@pytest.mark.parametrize("seed", [0, 77, 2**63 - 1])
def test_the_way_of_the_cpu_draws_what_the_plain_one_does(seed: int, count: int):
    position = torch.tensor([0, 2**32 - 1, 2**32, 2**62 + 5])
    for stream in (STREAM_MASK, 7):
        wanted = draws_in_torch(seed, position, stream, count)
        assert torch.equal(draws(seed, position, stream, count), wanted)


def test_draws_of_an_image_do_not_depend_on_its_batch():
    position = torch.tensor([3, 2**40, 7, 2**62])
    together = draws(1, position, STREAM_MASK, 10)
    for row, alone in zip(together, position, strict=True):
        assert torch.equal(row, draws(1, alone[None], STREAM_MASK, 10)[0])


def test_more_draws_begin_with_the_fewer_ones():
    position = torch.tensor([4])
    assert torch.equal(draws(1, position, 0, 100)[:, :7], draws(1, position, 0, 7))


def test_streams_seeds_and_positions_are_apart():
    one = draws(1, torch.tensor([1]), STREAM_MASK, 64)
    others = [
        draws(1, torch.tensor([1]), STREAM_PREDICTION, 64),
        draws(2, torch.tensor([1]), STREAM_MASK, 64),
        draws(1 | 1 << 32, torch.tensor([1]), STREAM_MASK, 64),
        draws(1, torch.tensor([2]), STREAM_MASK, 64),
        draws(1, torch.tensor([1 | 1 << 32]), STREAM_MASK, 64),
    ]
    assert not any(bool((one == other).any()) for other in others)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed: got .* wanted 0 <= seed < 2\*\*64"):
        draws(seed, torch.tensor([0]), STREAM_MASK, 4)
