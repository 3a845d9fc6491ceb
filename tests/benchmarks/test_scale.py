"""The benchmark of scale: its oracle finds what it is for, and its model gives what a hand calculates."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale_model import Cluster, modelled
from xpt.data.index import open_shards
from xpt.data.order import SampleOrder


@pytest.fixture
def options() -> scale.Options:
    return scale.Options(films=5_003, shards=70, ranks=16, images_per_rank=4)


def test_every_film_comes_once(tmp_path: Path, options: scale.Options):
    root = scale.write_tables(tmp_path, options.films, options.shards)
    assert scale.check_coverage(open_shards(root, "train", check_files=False), options) == 32
    assert scale.start_of_a_rank(root, options)["film_seconds"] > 0


def test_an_order_that_leaves_out_a_film_is_found(
    tmp_path: Path, options: scale.Options, monkeypatch: pytest.MonkeyPatch
):
    root, locate = scale.write_tables(tmp_path, options.films, options.shards), SampleOrder.locate
    monkeypatch.setattr(SampleOrder, "locate", lambda self, n: locate(self, np.maximum(n, 1)))
    with pytest.raises(AssertionError, match="1 films do not come"):
        scale.check_coverage(open_shards(root, "train", check_files=False), options)


def test_a_step_on_paper_is_that_of_a_hand_calculation():
    cluster = Cluster(peak_flops=1e15, share_of_peak=0.5, network_bandwidth=5e10, latency=0.0)
    on_16 = {
        stage: modelled(
            stage, 16, parameters=1e9, flops_per_image=5e12, batch=128, micro_batch=4, cluster=cluster
        )
        for stage in (1, 2, 3)
    }
    # 8 images of 5 TFLOP at 500 TFLOP/s; 2 GB of gradients and 2 GB of weights, two passes.
    assert on_16[1].compute_seconds == pytest.approx(0.08)
    seconds_of_a_gb = 15 / 16 / 50
    traffic = [on_16[stage].communication_seconds / seconds_of_a_gb for stage in (1, 2, 3)]
    assert traffic == pytest.approx([4, 6, 12])
    assert on_16[1].efficiency == pytest.approx((0.08 / (0.08 + 0.075), 1.0))
    # The first rank writes 2 GB of weights and its share of 12 GB; under ZeRO 3 its share of all 14.
    assert on_16[1].checkpoint_seconds == pytest.approx(2.75)
    assert on_16[1].checksum_seconds == pytest.approx(2.75 / 1.5)
    assert on_16[3].checkpoint_seconds == pytest.approx(0.875)
