"""The three answers, from made-up metrics."""

from typing import Any

import pytest

from xpt.monitoring.verdict import is_anything_wrong, is_it_fast, is_it_learning, wait_shares


def scored(*losses: float, mean: float = 0.2) -> list[dict[str, Any]]:
    return [{"images": i, "val/loss": loss, "val/patch_mean": mean} for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "state", "words"),
    [
        ([1.0], "unsure", "Too early"),
        ([1.0, 0.5, 0.15], "good", "it sees what is inside patches"),
        ([1.0, 0.5, 0.25], "unsure", "not yet better than that"),
        ([1.0, 0.1, 0.15], "bad", "No: it was 0.1000 at best."),
        ([0.15, 0.15], "bad", "No"),
    ],
)
def test_it_learns_where_validation_falls_below_knowing_each_patchs_mean(losses, state: str, words: str):
    verdict = is_it_learning(scored(*losses))
    assert verdict.state == state
    assert words in verdict.answer


def test_the_probe_is_told_with_its_interval_and_its_start():
    probes = [
        {
            "images": images,
            "probe/logistic_value": value,
            "probe/logistic_low": value - 0.1,
            "probe/logistic_high": value + 0.1,
        }
        for images, value in ((0, 0.6), (5, 0.8))
    ]
    answer = is_it_learning([*scored(1.0, 0.1), *probes]).answer
    assert "AUROC 0.800 (0.700 to 0.900), at first 0.600" in answer


def timed(speeds: list[float], waited: float = 0.0, **counts: int) -> list[dict[str, Any]]:
    """Intervals of 100 images; `waited` is a share of each one's time."""
    return [
        {
            "images": 100 * i,
            "images_per_second": speed,
            "data_wait_seconds": waited * 100 / speed,
            "mfu": 0.4,
            **counts,
        }
        for i, speed in enumerate(speeds, 1)
    ]


def test_shares_of_waiting_follow_from_the_length_of_intervals():
    assert wait_shares(timed([50.0, 20.0, 10.0], 0.25)) == [(200, 0.25), (300, 0.25)]


@pytest.mark.parametrize(
    ("rows", "state", "words"),
    [
        ([], "unsure", "Too early"),
        (timed([50.0] * 60, 0.05), "good", "50 images/s, 40% of the devices' peak (MFU), 5% of the time"),
        (timed([50.0] * 60, 0.2), "bad", "Raise --data.threads"),
        (timed([50.0] * 60 + [30.0] * 20), "bad", "It has become slow: 50 images/s is usual"),
    ],
)
def test_it_is_slow_where_it_waits_or_has_become_slow(rows, state: str, words: str):
    verdict = is_it_fast(rows)
    assert verdict.state == state
    assert words in verdict.answer


@pytest.mark.parametrize(
    ("counts", "state", "words"),
    [
        ({}, "good", "Nothing"),
        ({"replaced": 3}, "unsure", "3 damaged films replaced."),
        (
            {"norm_spikes": 1, "loss_spikes": 2},
            "unsure",
            "1 spikes of the gradient norm; 2 spikes of the loss",
        ),
        ({"skipped": 8, "rollbacks": 1}, "bad", "1 rollbacks to a checkpoint; 8 steps skipped"),
    ],
)
def test_what_is_wrong_is_counted(counts: dict[str, int], state: str, words: str):
    verdict = is_anything_wrong(timed([50.0], **counts))
    assert verdict.state == state
    assert words in verdict.answer
