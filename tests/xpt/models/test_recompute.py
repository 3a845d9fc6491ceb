import dataclasses
import itertools
from collections import Counter

import pytest
import torch

from tests.xpt.models.conftest import tiny
from xpt.config import Config, MaskConfig, ModelConfig, TrainConfig
from xpt.models.costs import BlockCost, decoder_blocks, encoder_blocks
from xpt.models.mae import MAE
from xpt.models.recompute import recomputation


def with_target(config: Config, gigabytes: float) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, activation_gb=gigabytes))


def costs(config: Config) -> list[BlockCost]:
    return [*encoder_blocks(config), *decoder_blocks(config)]


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("recompute", ["none", "elementwise"])
def test_a_block_keeps_what_is_computed(films, kind, recompute):
    """Bytes that autograd saves inside a block, each storage once, weights left out."""
    config = tiny(kind, activation_checkpointing=recompute)
    model = MAE(config)
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    blocks = [*model.encoder.blocks, *model.decoder.blocks]
    kept: list[dict[int, int]] = [{} for _ in blocks]
    for block, into in zip(blocks, kept, strict=True):
        record(block, into, owned)
    model(*films, 0)
    for number, (storages, cost) in enumerate(zip(kept, costs(config), strict=True)):
        found = sum(storages.values()) / len(films[0])
        # Norms' statistics and attention's row sums are left out of the estimate; at these widths they show.
        assert 4 * cost.values(recompute) * 0.9 < found < 4 * cost.values(recompute) * 1.25, number


def test_only_what_is_cheap_is_computed_again(films):
    """Every block twice its norms and its GELU, and no matrix product a second time."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counts: list[Counter[str]] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[-1][func.__name__.partition(".")[0]] += 1
            return func(*args, **(kwargs or {}))

    for recompute in ("none", "elementwise"):
        model = MAE(tiny("self", activation_checkpointing=recompute))
        blocks = len(model.encoder.blocks) + len(model.decoder.blocks)
        counts.append(Counter())
        with Count():
            model(*films, 0).loss.backward()
    more = counts[1] - counts[0]
    assert more["gelu"] == blocks
    assert more["native_layer_norm"] == 2 * blocks
    assert not {name for name in more if name.endswith("mm")}


def record(block: torch.nn.Module, into: dict[int, int], owned: set[int]) -> None:
    inner = block.forward

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            into[storage.data_ptr()] = storage.nbytes()
        return tensor

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return inner(*inputs)

    block.forward = forward


def test_the_target_decides_how_many_blocks_are_recomputed():
    config = Config(train=TrainConfig(micro_batch=4, precision="bf16"))
    most = sum(cost.kept for cost in costs(config)) * 2 * 4 / 1e9
    choices = [recomputation(with_target(config, most * share)) for share in (1.01, 0.7, 0.5, 0.4, 0.25)]
    assert set(choices[0]) == {"none"}
    assert set(choices[1]) == {"elementwise"}
    counts = [chosen.count("blocks") for chosen in choices[1:]]
    assert all(a < b for a, b in itertools.pairwise(counts)), counts


def test_a_target_that_cannot_be_met_names_a_micro_batch_that_can():
    config = with_target(Config(train=TrainConfig(micro_batch=64)), 4.0)
    with pytest.raises(
        ValueError, match=r"every block is recomputed. Set --train.micro_batch to \d+"
    ) as error:
        recomputation(config)
    fitting = int(str(error.value).split("micro_batch to ")[1].split(",")[0])
    recomputation(dataclasses.replace(config, train=TrainConfig(micro_batch=fitting)))


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_recomputing_some_blocks_changes_neither_loss_nor_gradients(films, kind):
    config = tiny(kind, depth=8)
    some = 4 * sum(cost.kept for cost in costs(config)) * 0.55 * config.train.micro_batch / 1e9
    results = []
    for target in (0.0, some):
        torch.manual_seed(0)
        model = MAE(with_target(config, target)).train()
        choices = {block.recompute for block in (*model.encoder.blocks, *model.decoder.blocks)}
        assert choices == ({"elementwise", "blocks"} if target else {"none"})
        loss = model(*films, 0).loss
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_nothing_as_large_as_all_tokens_exists_at_90_percent_with_cross():
    """One block each of the paper's width at 1280 pixels: no operation makes a tensor of 6,400 x 1,024."""
    from torch.utils._python_dispatch import TorchDispatchMode

    model = ModelConfig(depth=1, decoder_depth=1, decoder="cross")
    config = Config(mask=MaskConfig(ratio=0.9), model=model)
    mae = MAE(config)
    ours = {t.untyped_storage().data_ptr() for t in [*mae.parameters(), *mae.buffers()]}
    largest: list[tuple[int, str]] = [(0, "")]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in ours:
                    largest[0] = max(largest[0], (tensor.numel(), str(func)))
            return out

    image = torch.zeros(1, 1, 1280, 1280, dtype=torch.uint8)
    valid = torch.ones(1, 6400, dtype=torch.bool)
    with Watch():
        mae(image, torch.zeros(1, 6400), valid, torch.zeros(1, dtype=torch.int64), 0).loss.backward()
    assert 640 * 1024 < largest[0][0] < 6400 * 1024, largest
