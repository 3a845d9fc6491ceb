import math

import pytest
import torch

from xpt.training import interval
from xpt.training.interval import Interval, NonFiniteError

REST = {"wait_seconds": 0.5, "replaced": 3, "checkpoint_due": True}


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interval, "all_reduce", lambda values: values)
    monkeypatch.setattr(interval, "gather_objects", lambda value: [value])


def filled(*steps: tuple[int, dict[str, float], float]) -> Interval:
    """From (step, losses by film, gradient norm)."""
    part = Interval(torch.device("cpu"))
    for step, losses, norm in steps:
        part.add_losses(step, list(losses), torch.tensor(list(losses.values())))
        part.add_norm(step, torch.tensor(norm))
    return part


def test_report_is_the_mean_over_images_and_starts_afresh():
    part = filled((0, {"a": 1.0, "b": 2.0}, 9.0), (1, {"c": 3.0, "d": 6.0}, 2.0))
    report = part.close(world_size=1, **REST)
    assert (report.loss, report.grad_norm, report.replaced) == (3.0, 2.0, 3)
    assert report.checkpoint_due
    part.add_losses(2, ["e", "f"], torch.tensor([5.0, 5.0]))
    part.add_norm(2, torch.tensor(1.0))
    assert part.close(world_size=1, **REST).loss == 5.0


def test_non_finite_losses_are_named_by_their_first_step():
    part = filled(
        (6, {"a": 1.0, "b": 1.0}, 1.0),
        (7, {"c": 1.0, "d": torch.inf}, torch.inf),
        (8, {"e": torch.nan, "f": torch.nan}, torch.inf),
    )
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 7, in films d\\."):
        part.close(world_size=1, **REST)


def test_a_non_finite_gradient_is_named_with_its_own_films_not_those_of_the_steps_after_it():
    part = filled(
        (6, {"a": 1.0, "b": 1.0}, 1.0),
        (7, {"c": 1.0, "d": 1.0}, torch.inf),
        (8, {"e": torch.nan, "f": torch.nan}, torch.inf),
    )
    with pytest.raises(NonFiniteError, match="the gradient is not finite at step 7, in films c, d\\."):
        part.close(world_size=1, **REST)


def test_a_step_that_is_set_aside_leaves_the_mean_and_names_its_films():
    part = filled((0, {"a": 1.0, "b": 3.0}, 9.0), (1, {"c": 1.0, "d": torch.nan}, torch.inf))
    assert part.set_aside(1) == ("loss", ["d"])
    report = part.close(world_size=1, **REST)
    assert (report.loss, report.grad_norm) == (2.0, 9.0)
    part = filled((2, {"f": 1.0, "e": 1.0}, torch.inf))
    assert part.set_aside(2) == ("gradient", ["e", "f"])
    assert math.isnan(part.close(world_size=1, **REST).loss)
