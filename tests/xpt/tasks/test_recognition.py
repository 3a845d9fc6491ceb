"""Losses against PyTorch's own, and what mixing and smoothing do."""

import pytest
import torch
import torch.nn.functional as F

from xpt.tasks.recognition import film_losses, mixed, smoothed

NAN = float("nan")


def test_the_multi_label_loss_is_the_mean_over_what_is_known():
    torch.manual_seed(0)
    logit, target = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3)
    target[1, 2] = target[2, 0] = NAN
    target[3] = NAN
    weight = torch.tensor([[1.0, 2.0, 0.5], [3.0, 1.0, 1.0]])
    loss = film_losses(logit, target, weight, "multi_label")
    for film in range(4):
        known = ~target[film].isnan()
        if not known.any():
            assert loss[film] == 0
            continue
        t, z = target[film, known], logit[film, known]
        one = torch.sigmoid(z)
        wanted = -(weight[1, known] * t * one.log() + weight[0, known] * (1 - t) * (1 - one).log()).mean()
        assert loss[film].item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.sum().backward()
    assert logit.grad is not None
    assert torch.isfinite(logit.grad).all()
    assert (logit.grad[3] == 0).all()


def test_the_loss_of_extreme_logits_is_finite():
    logit = torch.tensor([[200.0, -200.0]], requires_grad=True)
    film_losses(logit, torch.tensor([[0.0, 1.0]]), torch.ones(2, 2), "multi_label").sum().backward()
    assert logit.grad is not None
    assert logit.grad.tolist() == [[0.5, -0.5]]


def test_the_multi_class_loss_is_the_cross_entropy_of_pytorch():
    torch.manual_seed(0)
    logit, classes = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    weight_C = torch.tensor([1.0, 2.0, 3.0, 0.5])
    target = smoothed(F.one_hot(classes, 4).float(), 0.0, "multi_class")
    ours = film_losses(logit, target, torch.stack([weight_C, weight_C]), "multi_class")
    theirs = F.cross_entropy(logit, classes, weight=weight_C, reduction="none")
    torch.testing.assert_close(ours, theirs)
    target = smoothed(F.one_hot(classes, 4).float(), 0.1, "multi_class")
    ours = film_losses(logit, target, torch.ones(2, 4), "multi_class")
    torch.testing.assert_close(ours, F.cross_entropy(logit, classes, label_smoothing=0.1, reduction="none"))
    assert film_losses(logit[:1], torch.full((1, 4), NAN), torch.ones(2, 4), "multi_class").item() == 0


def test_smoothing_keeps_unknown_labels_unknown():
    found = smoothed(torch.tensor([[1.0, 0.0, NAN]]), 0.2, "multi_label")
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.1, NAN]]), equal_nan=True)


def test_mixing_blends_films_and_targets_with_one_weight():
    torch.manual_seed(1)
    image = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    valid = torch.tensor([[True, False], [True, True], [False, True], [True, False]])
    target = torch.tensor([[1.0, 0], [0, NAN], [1, 1], [0, 1]])
    blended, is_valid, given = mixed(image, valid, target, 0.4)
    weight = given[0, 0].item()
    assert 0 < weight < 1
    torch.testing.assert_close(given[3, 1].item(), weight)
    assert given[1, 1].isnan()
    assert given[2, 1].isnan()
    wanted = weight * image.float() + (1 - weight) * image.flip(0).float()
    assert (blended.float() - wanted).abs().max() <= 0.5 + 1e-3
    assert is_valid.tolist() == [[True, False], [True, True], [True, True], [True, False]]
