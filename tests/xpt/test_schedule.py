import pytest

from xpt.config import TrainConfig, demo
from xpt.models.mae import MAE
from xpt.schedule import learning_rate, parameter_groups

TRAIN = TrainConfig(images=10_000, batch=100, base_lr=2.56e-3, min_lr=2.56e-4, warmup_images=1_000)


def test_warm_up_is_linear_and_reaches_the_scaled_peak():
    peak = 2.56e-3 * 100 / 256
    rates = [learning_rate(i, TRAIN) for i in range(0, 1_001, 100)]
    assert rates[0] == pytest.approx(peak / 10)
    assert rates[4] == pytest.approx(peak / 2)
    assert rates[9] == rates[10] == pytest.approx(peak)


def test_cosine_passes_its_middle_and_ends_at_the_minimum():
    peak, low = 1e-3, 1e-4
    assert learning_rate(5_500, TRAIN) == pytest.approx((peak + low) / 2)
    assert learning_rate(10_000, TRAIN) == pytest.approx(low)
    rates = [learning_rate(i, TRAIN) for i in range(1_000, 10_001, 100)]
    assert rates == sorted(rates, reverse=True)


def test_weight_decay_is_on_matrices_only_and_no_parameter_is_left_out():
    model = MAE(demo())
    matrices, vectors = parameter_groups(model, 0.05)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    plain = {names[id(p)] for p in vectors["params"]}
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.norm.weight"} <= plain
    assert all(name.endswith(("bias", "token")) or "norm" in name for name in plain)
    assert {id(p) for p in matrices["params"] + vectors["params"]} == set(names)
