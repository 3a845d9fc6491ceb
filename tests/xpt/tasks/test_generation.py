"""Beam search against all texts there are; sampling against its probabilities; cache against none."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from xpt.models.report_decoder import Memory, ReportDecoder
from xpt.tasks.generation import GenerationConfig, beam_search, sample
from xpt.text.tokenizer import EOS, LANGUAGE_TOKEN, SPECIAL

EN, ZH = LANGUAGE_TOKEN["en"], LANGUAGE_TOKEN["zh"]
STUDIES = 3


def decoder(vocabulary: int, longest: int = 40, sharpness: float = 4.0) -> ReportDecoder:
    """Random weights, sharp enough that texts differ in probability."""
    torch.manual_seed(0)
    model = ReportDecoder(vocabulary=vocabulary, longest=longest, width=16, depth=2, heads=2)
    torch.nn.init.normal_(model.embed.weight, std=sharpness / 4)
    return model.double().eval()


def memory(studies: int = STUDIES) -> Memory:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(studies, 5, 16, generator=generator, dtype=torch.float64)
    return Memory(tokens, torch.ones(studies, 5, dtype=torch.bool))


def languages(studies: int = STUDIES) -> torch.Tensor:
    return torch.tensor([EN, ZH] * studies)[:studies]


def log_probability(model: ReportDecoder, study: int, text: list[int]) -> float:
    """Of the text after its language's token, special tokens but EOS left out of the choice."""
    seen = Memory(*(x[study : study + 1] for x in memory()))
    logits = model(torch.tensor([[int(languages()[study]), *text[:-1]]]), seen)[0]
    logits[:, [i for i in range(SPECIAL) if i != EOS]] = -torch.inf
    return float(logits.log_softmax(1)[torch.arange(len(text)), torch.tensor(text)].sum())


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all_texts(penalty: float):
    model, longest = decoder(SPECIAL + 3), 4
    words = range(SPECIAL, SPECIAL + 3)
    texts = [[*w, EOS] for n in range(longest) for w in itertools.product(words, repeat=n)]
    texts += [list(w) for w in itertools.product(words, repeat=longest)]
    config = GenerationConfig(longest=longest, beams=3**longest, length_penalty=penalty)
    found = beam_search(model, memory(), languages(), config)
    for study in range(STUDIES):
        best = max(texts, key=lambda t: log_probability(model, study, t) / len(t) ** penalty)
        assert found[study] == [token for token in best if token != EOS]


@torch.no_grad()
def test_one_beam_takes_the_likeliest_token_each_time():
    model, config = decoder(30), GenerationConfig(longest=20, beams=1, shortest=19)
    found = beam_search(model, memory(), languages(), config)
    for study, text in enumerate(found):
        assert len(text) >= 19
        seen = Memory(*(x[study : study + 1] for x in memory()))
        logits = model(torch.tensor([[int(languages()[study]), *text[:18]]]), seen)[0]
        logits[:, :SPECIAL] = -torch.inf
        assert logits.argmax(1).tolist() == text[:19]


@pytest.mark.parametrize("changes", [{}, {"no_repeat": 2}, {"shortest": 10}, {"beams": 1}])
def test_the_cache_gives_the_identical_text(changes: dict):
    model, config = decoder(60), replace(GenerationConfig(longest=40), **changes)
    plain = replace(config, use_cache=False)
    assert beam_search(model, memory(), languages(), config) == beam_search(
        model, memory(), languages(), plain
    )
    number = [0, 1, 2]
    assert sample(model, memory(), languages(), config, number) == sample(
        model, memory(), languages(), plain, number
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_comes_twice(n: int):
    config = GenerationConfig(longest=30, shortest=25, no_repeat=n)
    free = replace(config, no_repeat=0)

    def most_repeated(texts: list[list[int]]) -> int:
        return max(max(Counter(zip(*(t[i:] for i in range(n)), strict=False)).values()) for t in texts)

    model = decoder(40, sharpness=8.0)
    drawn = sample(model, memory(), languages(), config, [0, 1, 2])
    assert most_repeated([*beam_search(model, memory(), languages(), config), *drawn]) == 1
    assert most_repeated(beam_search(model, memory(), languages(), free)) > 1


def test_no_report_is_shorter_or_longer_than_asked_for():
    model = decoder(30)
    for shortest, longest in ((0, 1), (5, 6), (0, 12), (11, 12)):
        config = GenerationConfig(shortest=shortest, longest=longest)
        texts = beam_search(model, memory(), languages(), config)
        texts += sample(model, memory(), languages(), config, [0, 1, 2])
        assert all(
            shortest <= len(text) <= longest and min(text, default=SPECIAL) >= SPECIAL for text in texts
        )


def test_a_text_does_not_depend_on_its_batch():
    model, config = decoder(60), GenerationConfig(longest=30)
    together = beam_search(model, memory(), languages(), config)
    drawn = sample(model, memory(), languages(), config, [7, 8, 9])
    for study in range(STUDIES):
        one = Memory(*(x[study : study + 1] for x in memory()))
        language_B = languages()[study : study + 1]
        assert beam_search(model, one, language_B, config) == [together[study]]
        assert sample(model, one, language_B, config, [7 + study]) == [drawn[study]]


@torch.no_grad()
def test_samples_come_as_often_as_their_probability_says():
    model, draws = decoder(SPECIAL + 4), 3000
    seen = Memory(*(x[:1].expand(draws, *x.shape[1:]) for x in memory()))
    language_B = torch.full((draws,), EN)
    config = GenerationConfig(longest=2, shortest=1, temperature=0.7)
    first = Counter(t[0] for t in sample(model, seen, language_B, config, list(range(draws))))
    logits = model(torch.tensor([[EN]]), Memory(*(x[:1] for x in memory())))[0, 0, SPECIAL:]
    share = (logits / 0.7).softmax(0)
    counted = torch.tensor([first[SPECIAL + i] / draws for i in range(4)], dtype=torch.float64)
    assert ((counted - share).abs() < 4 * (share * (1 - share) / draws).sqrt() + 1e-9).all()
    narrow = sample(model, seen, language_B, replace(config, top_p=1e-6), list(range(draws)))
    assert {t[0] for t in narrow} == {SPECIAL + int(share.argmax())}
    other = sample(model, seen, language_B, replace(config, seed=1), list(range(draws)))
    assert [t[0] for t in other] != [
        t[0] for t in sample(model, seen, language_B, config, list(range(draws)))
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shortest": 150}, "wanted 0 <= shortest < longest"),
        ({"beams": 0}, "got beams 0"),
        ({"temperature": 0.0}, "for the likeliest text use beam search"),
        ({"top_p": 1.5}, "top_p in"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**changes)
