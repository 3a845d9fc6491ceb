"""What a run will take: against real checkpoints, and against sums done by hand."""

import dataclasses
import json
from pathlib import Path

import pytest

from xpt.config import Config, TrainConfig, demo, vit_l_1280
from xpt.estimate import (
    Device,
    Storage,
    checkpoint_bytes,
    device_of,
    estimate,
    largest_micro_batch,
    measured_mfu,
    parameters_of,
    warnings_about,
)
from xpt.flops import work
from xpt.memory import pretraining_memory

H100 = device_of("H100", 0.0, 8)
ZERO_2 = {"stage": 2, "reduce_bucket_size": 50_000_000, "overlap_comm": True}
STORAGE = Storage(
    film_bytes=400e3,
    film_source="stated",
    read_bytes_per_second=1e9,
    write_bytes_per_second=1e9,
    hash_bytes_per_second=1e9,
    free_bytes=1e12,
)


def on_gpu(config: Config, **train) -> Config:
    settings: TrainConfig = dataclasses.replace(config.train, precision="bf16", **train)
    return dataclasses.replace(config, train=settings)


PAPER = on_gpu(vit_l_1280())


def asked(config: Config, zero=ZERO_2, device: Device = H100, storage: Storage = STORAGE, ranks: int = 8):
    """(estimate, warnings)"""
    found = estimate(config, zero, ranks, device, storage, rate=0.0, mfu=0.5, mfu_source="stated")
    return found, list(warnings_about(found, config, zero, ranks, device, storage))


def test_time_and_bandwidth_are_the_work_over_the_rate():
    config = PAPER
    found, _ = asked(config)
    rate = 0.5 * 8 * 989.4e12 / work(config).training
    assert found.images_per_second == pytest.approx(rate)
    assert found.days == pytest.approx(100e6 / rate / 86_400)
    assert found.bandwidth == pytest.approx(rate * 400e3)
    stated = estimate(config, ZERO_2, 8, H100, STORAGE, rate=100.0, mfu=0.5, mfu_source="")
    assert stated.days == pytest.approx(1e6 / 86_400)


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    config = PAPER
    largest = largest_micro_batch(config, parameters_of(config), ZERO_2, 8, H100)
    assert 128 % largest == 0

    def needed(images: int) -> int:
        settings = on_gpu(config, micro_batch=images)
        parameters = parameters_of(settings)
        return pretraining_memory(settings, parameters=parameters, zero=ZERO_2, ranks=8, on_gpu=True).total

    assert needed(largest) + 3e9 <= 80e9 < needed(2 * largest) + 3e9


@pytest.mark.parametrize(
    ("config", "changes", "wanted"),
    [
        (
            PAPER,
            {"device": dataclasses.replace(H100, bytes=8e9)},
            "Set --train.micro_batch 2.",
        ),
        (
            PAPER,
            {"device": dataclasses.replace(H100, bytes=5.2e9)},
            "Set --model.activation_checkpointing elementwise --train.micro_batch",
        ),
        (
            PAPER,
            {"device": dataclasses.replace(H100, bytes=3e9)},
            "No setting of this model fits",
        ),
        (PAPER, {}, "8 images per forward pass leave memory unused"),
        (PAPER, {"zero": {"stage": 3}}, "use ds_configs/zero2.json"),
        (
            PAPER,
            {"storage": dataclasses.replace(STORAGE, read_bytes_per_second=1e6)},
            "raise --data.readers",
        ),
        (PAPER, {"storage": dataclasses.replace(STORAGE, free_bytes=1e9)}, "are free where"),
        (
            PAPER,
            {"storage": dataclasses.replace(STORAGE, write_bytes_per_second=1e7)},
            "--signal=B:USR2@",
        ),
        (on_gpu(vit_l_1280(), checkpoint_images=1024), {}, "more than a tenth of the time"),
        (on_gpu(vit_l_1280(), images=10**10), {}, "use more ranks"),
    ],
)
def test_what_speaks_against_a_run_is_said_with_its_remedy(config: Config, changes: dict, wanted: str):
    assert any(wanted in warning for warning in asked(config, **changes)[1])


def test_nothing_is_said_against_a_run_that_fits():
    assert asked(on_gpu(vit_l_1280(), micro_batch=32))[1] == []


def test_each_rank_hashes_what_it_wrote():
    parameters = parameters_of(PAPER)
    for stage, hashed in ((2, 2 + 12 / 8), (3, 14 / 8)):
        found, _ = asked(PAPER, zero={"stage": stage})
        assert found.checkpoint_seconds == pytest.approx((14 + hashed) * parameters / 1e9)


def test_a_checkpoint_has_the_size_that_was_foretold(undisturbed: Path):
    folder = max((undisturbed / "checkpoints").glob("images-*"))
    found = sum(path.stat().st_size for path in folder.rglob("*.pt"))
    content = json.loads((undisturbed / "config.json").read_text())["config"]
    model = dataclasses.replace(demo().model, **content["model"])
    config = dataclasses.replace(
        demo(), model=model, train=dataclasses.replace(demo().train, precision="fp32")
    )
    # A tiny model: what torch.save writes around each tensor is not lost in it.
    assert checkpoint_bytes(config, parameters_of(config)) < found
    assert found < 1.3 * checkpoint_bytes(config, parameters_of(config)) + 100_000


def test_a_measured_rate_is_the_median_of_a_run(undisturbed: Path, tmp_path: Path):
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    values = sorted(row["mfu"] for row in rows if "mfu" in row)
    assert measured_mfu(undisturbed) == pytest.approx((values[5] + values[6]) / 2)
    with pytest.raises(ValueError, match=r"no metrics\.jsonl in it"):
        measured_mfu(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"images": 1, "val/loss": 1}\n')
    with pytest.raises(ValueError, match="have no `mfu`"):
        measured_mfu(tmp_path)


def test_an_unknown_device_is_refused_with_those_that_are_known():
    assert device_of("NVIDIA H100 PCIe", 0.0, 1).flops == 756e12
    assert device_of("A100", 40.0, 1).bytes == 40e9
    with pytest.raises(ValueError, match=r"--device TPU: not known\. There are: A100"):
        device_of("TPU", 0.0, 1)
