"""Probes against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from xpt.evaluation.probe import fit_logistic, knn_scores, macro_auroc


def films(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of width 12 (one constant) and two findings that hang on them; a fifth of labels unknown."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 12)) * np.geomspace(0.01, 100, 12)
    x[:, 5] = 7
    logit = np.stack([x[:, 0] * 100 + x[:, 11] / 100, x[:, 3] - 0.5], 1)
    y = (rng.random((count, 2)) < 1 / (1 + np.exp(-logit))).astype(float)
    y[rng.random((count, 2)) < 0.2] = np.nan
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize("l2", [0.1, 1.0, 10.0])
def test_logistic_regression_equals_scikit_learns(l2: float):
    x, y = films()
    probe = fit_logistic(x.float(), y, l2=l2)
    scaled = StandardScaler().fit(x.float().double().numpy()).transform(x.float().double().numpy())
    for finding in range(2):
        known = ~y[:, finding].isnan().numpy()
        theirs = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000).fit(
            scaled[known], y[known, finding].numpy()
        )
        logits = probe.logits(x.float())[:, finding].numpy()
        np.testing.assert_allclose(logits, theirs.decision_function(scaled), atol=1e-5)


def test_a_finding_that_all_films_share_is_refused():
    x, y = films()
    y[:, 1] = 1
    with pytest.raises(ValueError, match="finding number 1 has 300 known labels, all alike"):
        fit_logistic(x, y)


def test_neighbours_vote_by_cosine_and_unknown_labels_do_not():
    x, y = films(80)
    scores = knn_scores(x, y, x[:7], neighbours=5, temperature=0.2)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    for query in range(7):
        cosine = unit @ unit[query]
        nearest = np.argsort(-cosine)[:5]
        for finding in range(2):
            label = y[nearest, finding].numpy()
            known, weight = ~np.isnan(label), np.exp(cosine[nearest] / 0.2)
            wanted = (weight * np.nan_to_num(label)).sum() / (weight * known).sum()
            assert scores[query, finding].item() == pytest.approx(wanted)


def test_neighbours_without_labels_leave_the_prior():
    x = torch.tensor([[1.0, 0], [0.99, 0.1], [0, 1], [0.1, 1]])
    y = torch.tensor([[float("nan")], [float("nan")], [1.0], [0.0]])
    assert knn_scores(x, y, x[:1], neighbours=2).item() == 0.5
    assert knn_scores(x, y, x[2:3], neighbours=1).item() == 1.0
    assert knn_scores(x, y, x[:1], neighbours=50).shape == (1, 1)


def test_the_macro_mean_is_over_what_is_defined():
    y = torch.tensor([[1.0, 1], [0, 1], [1, 1], [0, float("nan")]])
    assert macro_auroc(y, torch.tensor([[0.9, 0], [0.1, 0], [0.5, 0], [0.5, 0]])) == 0.875
    assert np.isnan(macro_auroc(y[:, 1:], torch.zeros(4, 1)))
