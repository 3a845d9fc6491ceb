"""The estimate against what autograd really keeps, and against the sums of the ZeRO paper."""

import pytest
import torch
from torch import nn

from xpt.config import EncoderConfig
from xpt.memory import encoder_activations, training_memory
from xpt.models.classifier import Classifier

MODEL = EncoderConfig(side=96, patch=8, width=64, depth=4, heads=4)
IMAGES, TOKENS = 4, 145


def kept_bytes(model: nn.Module, *inputs: torch.Tensor) -> int:
    """Bytes that the backward pass of `model` holds on to, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = model(*inputs)
    del output
    return sum(kept.values())


def test_activations_are_within_a_tenth_of_what_autograd_keeps():
    model = Classifier(MODEL, 2, pool="mean", drop_path=0.0, is_frozen=False)
    image = torch.randint(0, 256, (IMAGES, 1, 96, 96), dtype=torch.uint8)
    found = kept_bytes(model, image, torch.ones(IMAGES, TOKENS - 1, dtype=torch.bool))
    wanted = encoder_activations(MODEL, tokens=TOKENS, images=IMAGES, bytes_per_value=4, recomputes=False)
    assert wanted == pytest.approx(found, rel=0.1)


def test_zero_divides_what_its_stage_names():
    def of(stage: int, ranks: int, precision: str = "bf16", **zero):
        return training_memory(
            MODEL, tokens=TOKENS, parameters=8000, trained=8000, micro_batch=1, precision=precision,
            zero={"stage": stage, **zero}, ranks=ranks,
        )  # fmt: skip

    one = of(1, 1)
    assert (one.weights, one.gradients, one.optimizer) == (2 * 8000, 6 * 8000, 12 * 8000)
    assert (of(1, 4).weights, of(1, 4).optimizer) == (2 * 8000, 12 * 2000)
    assert of(2, 4).gradients == 6 * 2000
    assert of(3, 4).weights == 2 * 2000
    assert of(1, 1, "fp32").weights == 4 * 8000
    assert of(2, 1, offload_optimizer={"device": "cpu"}).optimizer == 0
    assert of(2, 1, offload_optimizer={"device": "none"}).optimizer == 12 * 8000


def test_checkpointing_and_frozen_encoders_keep_less():
    whole = encoder_activations(MODEL, tokens=10, images=1, bytes_per_value=2, recomputes=False)
    less = encoder_activations(MODEL, tokens=10, images=1, bytes_per_value=2, recomputes=True)
    assert whole / 3 < less + whole * 0.2 < whole
    frozen = training_memory(
        MODEL, tokens=10, parameters=100, trained=1, micro_batch=1, precision="fp32", zero={"stage": 1},
        ranks=1, is_frozen=True,
    )  # fmt: skip
    assert frozen.activations == 0
    assert "memory per rank, estimated: 0.00 GB" in frozen.line()
