import pytest
import torch

from xpt import interval
from xpt.interval import Interval, NonFiniteError

REST = {"wait_seconds": 0.5, "replaced": 3, "asked_to_stop": False, "checkpoint_due": True}


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interval, "all_reduce", lambda values: values)
    monkeypatch.setattr(interval, "gather_objects", lambda value: [value])


def close(part: Interval, norm: float = 2.0) -> interval.Report:
    return part.close(grad_norm=torch.tensor(norm), world_size=1, **REST)


def test_report_is_the_mean_over_images_and_starts_afresh():
    part = Interval()
    part.add(0, ["a", "b"], torch.tensor([1.0, 2.0]))
    part.add(0, ["c", "d"], torch.tensor([3.0, 6.0]))
    report = close(part)
    assert (report.loss, report.grad_norm, report.replaced) == (3.0, 2.0, 3)
    assert (report.asked_to_stop, report.checkpoint_due) == (False, True)
    part.add(1, ["e", "f"], torch.tensor([5.0, 5.0]))
    assert close(part).loss == 5.0


def test_non_finite_losses_are_named_by_their_first_step():
    part = Interval()
    part.add(6, ["a", "b"], torch.tensor([1.0, 1.0]))
    part.add(7, ["c", "d"], torch.tensor([1.0, torch.inf]))
    part.add(8, ["e", "f"], torch.tensor([torch.nan, torch.nan]))
    with pytest.raises(NonFiniteError, match="step 7, in films d"):
        close(part)


def test_a_non_finite_gradient_is_named_by_the_last_step():
    part = Interval()
    part.add(7, ["a", "b"], torch.tensor([1.0, 1.0]))
    with pytest.raises(NonFiniteError, match="step 7, in the gradient"):
        close(part, norm=float("inf"))
