import pytest

from xpt.config import EncoderConfig, TrainConfig, demo
from xpt.models.classifier import Classifier
from xpt.models.mae import MAE
from xpt.training.schedule import layer_groups, learning_rate, parameter_groups

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


def test_layer_decay_falls_from_the_head_to_the_embedding_and_leaves_no_parameter_out():
    model = Classifier(EncoderConfig(side=32, patch=8, width=16, depth=3, heads=2), 2, pool="attentive",
                       drop_path=0.0, is_frozen=False)  # fmt: skip
    groups = layer_groups(model, 0.05, layer_decay=0.5, depth=3)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    wanted = {"encoder.patch_embed.proj.weight": 0.5**4, "encoder.cls_token": 0.5**4,
              "encoder.blocks.0.mlp.fc1.bias": 0.5**3, "encoder.blocks.2.attn.qkv.weight": 0.5,
              "encoder.norm.weight": 1.0, "attentive.query_token": 1.0, "head.weight": 1.0}  # fmt: skip
    parameters = dict(model.named_parameters())
    assert {id(p) for p in parameters.values()} == set(scale)
    for name, factor in wanted.items():
        assert scale[id(parameters[name])] == factor, name
        is_matrix = name.endswith("weight") and "norm" not in name
        assert decay[id(parameters[name])] == (0.05 if is_matrix else 0.0), name
    model.encoder.requires_grad_(False)
    assert len(layer_groups(model, 0.05, layer_decay=0.5, depth=3)) == 2
