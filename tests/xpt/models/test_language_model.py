"""A Hugging Face language model as the decoder of reports: tiny, with random weights."""

from pathlib import Path

import pytest
import torch

from xpt.models.language_model import LanguageModelDecoder
from xpt.models.report_decoder import Memory
from xpt.tasks.generation import GenerationConfig, beam_search
from xpt.text.tokenizer import LANGUAGE_TOKEN, SPECIAL

transformers = pytest.importorskip("transformers")
WORDS = 23


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learned positions, and rotary ones."""
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = transformers.GPT2Config(vocab_size=WORDS, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    else:
        config = transformers.LlamaConfig(
            vocab_size=WORDS,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    path = tmp_path_factory.mktemp(request.param)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def decoder(folder: Path) -> LanguageModelDecoder:
    torch.manual_seed(1)
    model = LanguageModelDecoder(folder, special=SPECIAL).double().eval()
    torch.nn.init.normal_(model.special_head.weight, std=0.3)
    return model


def memory(studies: int = 3) -> Memory:
    """The last study's last two tokens show no film."""
    tokens = torch.randn(studies, 6, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    is_valid = torch.ones(studies, 6, dtype=torch.bool)
    is_valid[-1, -2:] = False
    return Memory(tokens, is_valid)


def texts(studies: int = 3, length: int = 9) -> torch.Tensor:
    ids = torch.randint(0, SPECIAL + WORDS, (studies, length), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = LANGUAGE_TOKEN["en"]
    return ids


@torch.no_grad()
def test_its_logits_are_those_of_the_language_model_itself(folder: Path):
    """After the memory and no special token but the first, against a call of the model by hand."""
    model, seen = decoder(folder), memory(2)
    ids = texts(2).clamp(min=SPECIAL)
    ids[:, 0] = LANGUAGE_TOKEN["zh"]
    got = model(ids, Memory(seen.tokens_BSD, torch.ones_like(seen.is_valid_BS)))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    first = model.special.weight[ids[:, :1]]
    words = plain.get_input_embeddings()(ids[:, 1:] - SPECIAL)
    want = plain(inputs_embeds=torch.cat([seen.tokens_BSD, first, words], 1)).logits[:, 6:]
    assert got.shape == (2, 9, SPECIAL + WORDS)
    torch.testing.assert_close(got[..., SPECIAL:], want)


@torch.no_grad()
def test_a_token_at_a_time_is_the_whole_text_at_once(folder: Path):
    model, ids = decoder(folder), texts()
    whole = model(ids, memory())
    logits, cache = model.start(ids[:, :1], memory())
    for place in range(1, ids.shape[1]):
        torch.testing.assert_close(logits[:, -1], whole[:, place - 1])
        logits, cache = model.step(ids[:, place : place + 1], cache)
    torch.testing.assert_close(logits[:, -1], whole[:, -1])


@torch.no_grad()
def test_what_shows_no_film_is_not_looked_at(folder: Path):
    model, seen = decoder(folder), memory()
    other = seen.tokens_BSD.clone()
    other[~seen.is_valid_BS] = 100
    torch.testing.assert_close(model(texts(), seen), model(texts(), Memory(other, seen.is_valid_BS)))


@torch.no_grad()
def test_beams_are_the_same_with_kept_keys_and_without(folder: Path):
    model = decoder(folder)
    language = torch.tensor([LANGUAGE_TOKEN["en"], LANGUAGE_TOKEN["zh"], LANGUAGE_TOKEN["en"]])
    kept, anew = (
        beam_search(model, memory(), language, GenerationConfig(longest=12, beams=3, use_cache=use))
        for use in (True, False)
    )
    assert kept == anew and any(kept)


def test_every_weight_learns(folder: Path):
    model, seen = decoder(folder), memory()
    tokens = seen.tokens_BSD.requires_grad_()
    ids = texts()
    loss = torch.nn.functional.cross_entropy(model(ids, seen)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    assert tokens.grad is not None and tokens.grad[seen.is_valid_BS].abs().min() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        LanguageModelDecoder(tmp_path, special=SPECIAL)
