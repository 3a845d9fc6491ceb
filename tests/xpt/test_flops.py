import dataclasses
import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.xpt.models.conftest import tiny
from xpt.config import Config, MaskConfig, ModelConfig
from xpt.flops import GPUS, measured_flops, peak_flops, traffic, work
from xpt.models.mae import MAE

FULL = Config(model=ModelConfig(depth=2, decoder_depth=2))
CASES = {
    "self": tiny("self"),
    "cross": tiny("cross"),
    "cross with feature maps": tiny("cross", feature_maps=True),
    "few predicted": tiny("cross", predicted_share=0.5),
    "full width and tokens, self": FULL,
    "full width and tokens, cross": Config(
        mask=MaskConfig(ratio=0.75), model=dataclasses.replace(FULL.model, decoder="cross")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_work_is_what_torch_counts(name):
    """torch.utils.flop_counter sees every product of the forward pass; attention is two of them."""
    config = CASES[name]
    counted = _counted(config)
    parts = work(config)
    assert parts.forward == sum(counted.values())
    assert parts.encoder_attention + parts.decoder_attention == counted["attention"]


def _counted(config) -> dict[str, int]:
    """By kind, on the `meta` device, where nothing is computed."""
    model, settings = config.model, config
    with torch.device("meta"):
        mae = MAE(config)
        patches = torch.empty(1, settings.kept, model.patch**2)
        visible = torch.empty(1, settings.kept, dtype=torch.int64)
        predicted = torch.empty(1, settings.predicted, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        if mae.mixtures is None:
            tokens = mae.encoder(patches, visible)
        else:
            tokens = mae.mixtures(list(mae.encoder.feature_maps(patches, visible)))
        mae.decoder(tokens, visible, predicted)
    by_name = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    attention = by_name["aten.bmm"]
    return {"attention": attention, "products": sum(by_name.values()) - attention}


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_training_is_what_torch_counts_forward_and_backward(films, kind):
    config = tiny(kind)
    model = MAE(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*films, 0).loss.backward()
    assert counter.get_total_flops() == len(films[0]) * work(config).training


def test_the_papers_model_costs_what_the_design_computed():
    """TFLOP per image: 75% masked 6.65, 90% 4.27; cross 0.61 and 0.37 of that. Of `self`, the last block of
    the decoder's eight works at the masked tokens alone: 0.09 and 0.03 less than the design has."""

    def tera(ratio: float, decoder: str) -> float:
        model = dataclasses.replace(ModelConfig(), decoder=decoder)
        return work(Config(mask=MaskConfig(ratio=ratio), model=model)).training / 1e12

    assert tera(0.75, "self") == pytest.approx(6.65 - 0.09, rel=0.005)
    assert tera(0.90, "self") == pytest.approx(4.27 - 0.03, rel=0.005)
    assert tera(0.75, "cross") / tera(0.75, "self") == pytest.approx(0.61, abs=0.02)
    assert tera(0.90, "cross") / tera(0.90, "self") == pytest.approx(0.37, abs=0.02)


def test_traffic_is_the_floor_of_the_design():
    """Batch 32, 75% masked, bf16: 16.6 us at 3.0 TB/s."""
    config = Config(mask=MaskConfig(ratio=0.75), model=ModelConfig(decoder="cross"))
    assert 32 * traffic(config, itemsize=2).mask_gather / 3.0e12 == pytest.approx(16.6e-6, rel=0.05)


def test_a_device_that_is_not_in_the_table_is_measured(monkeypatch: pytest.MonkeyPatch):
    # Two measurements differ with the machine's load, so the clock goes half a second at each look.
    clock = itertools.count(0, 0.5)
    monkeypatch.setattr("xpt.flops.time.perf_counter", lambda: next(clock))
    assert measured_flops(torch.device("cpu")) == 2 * 768**3 / 0.5
    assert peak_flops(torch.device("cpu")) == measured_flops(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA GH200 480GB", 989.4)],
)
def test_the_longest_name_in_the_table_counts(monkeypatch, name, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == wanted * 1e12
    assert wanted in {gpu.tflops for gpu in GPUS.values()}
