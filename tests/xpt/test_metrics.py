"""Metrics against scikit-learn, and the bootstrap against the coverage it promises."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from xpt import metrics

CASES = {
    "random": lambda rng: (rng.random(200) < 0.3, rng.normal(size=200)),
    "ties": lambda rng: (rng.random(200) < 0.3, rng.integers(0, 4, 200) / 4),
    "all equal": lambda rng: (rng.random(50) < 0.5, np.zeros(50)),
    "perfect": lambda rng: (np.arange(40) >= 25, np.arange(40) / 40),
    "reversed": lambda rng: (np.arange(40) >= 25, -np.arange(40) / 40),
    "one positive": lambda rng: (np.arange(60) == 17, rng.random(60)),
    "one negative": lambda rng: (np.arange(60) != 17, rng.random(60)),
    "two films": lambda rng: (np.array([True, False]), np.array([0.1, 0.2])),
}


@pytest.mark.parametrize("case", CASES)
def test_discrimination_equals_scikit_learns(case: str):
    positive, score = CASES[case](np.random.default_rng(3))
    score = score.astype(float)
    assert metrics.auroc(positive, score) == pytest.approx(oracle.roc_auc_score(positive, score), abs=1e-12)
    assert metrics.average_precision(positive, score) == pytest.approx(
        oracle.average_precision_score(positive, score), abs=1e-12
    )
    curve = metrics.roc_curve(positive, score)
    alarm, hit, threshold = oracle.roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(curve.sensitivity_T, hit, atol=1e-12)
    np.testing.assert_allclose(1 - curve.specificity_T, alarm, atol=1e-12)
    np.testing.assert_array_equal(curve.threshold_T, threshold)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30).filter(
        lambda films: {p for p, _, w in films if w} == {True, False}
    )
)
@settings(max_examples=60, deadline=None)
def test_weights_are_what_scikit_learn_calls_sample_weight(films: list[tuple[bool, int, int]]):
    positive, score, weight = (np.array(column) for column in zip(*films, strict=True))
    score = score.astype(float)
    ours = metrics.auroc_draws(positive, score, weight[None].astype(float))[0]
    assert ours == pytest.approx(oracle.roc_auc_score(positive, score, sample_weight=weight), abs=1e-12)
    ours = metrics.average_precision_draws(positive, score, weight[None].astype(float))[0]
    theirs = oracle.average_precision_score(positive, score, sample_weight=weight)
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("positive", [np.zeros(5, bool), np.ones(5, bool), np.zeros(0, bool)])
def test_what_the_films_do_not_define_is_nan(positive: np.ndarray):
    score = np.linspace(0, 1, len(positive))
    assert np.isnan(metrics.auroc(positive, score))
    assert np.isnan(metrics.average_precision(positive, score)) == (not positive.any())
    assert np.isnan(metrics.youden_threshold(positive, score))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sensitivity, specificity = metrics.sensitivity_specificity(positive, score, 0.5)
    assert np.isnan(sensitivity) == (not positive.any())
    assert np.isnan(specificity) == (not (~positive).any())
    found = metrics.interval(
        lambda w: metrics.auroc_draws(positive, score, w), ["a"] * len(positive), draws=9
    )
    assert np.isnan(found.value)
    assert found.defined == 0


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="1 of them not finite"):
        metrics.auroc(np.array([True, False]), np.array([np.nan, 1.0]))


def test_sensitivity_and_specificity_equal_the_confusion_matrix():
    rng = np.random.default_rng(0)
    positive, score = rng.random(300) < 0.4, rng.integers(0, 10, 300) / 10
    for threshold in (0.0, 0.3, 0.95):
        (tn, fp), (fn, tp) = oracle.confusion_matrix(positive, score >= threshold, labels=[False, True])
        assert metrics.sensitivity_specificity(positive, score, threshold) == pytest.approx(
            (tp / (tp + fn), tn / (tn + fp))
        )


def test_the_chosen_threshold_has_the_largest_youden_index():
    rng = np.random.default_rng(1)
    positive = rng.random(300) < 0.4
    score = positive + rng.normal(size=300)
    best = metrics.youden_threshold(positive, score)
    index = {t: sum(metrics.sensitivity_specificity(positive, score, t)) for t in score}
    assert index[best] == max(index.values())


def test_calibration_error_equals_its_definition():
    rng = np.random.default_rng(2)
    probability = np.r_[rng.random(200), 0.0, 1.0, 0.2]
    positive = rng.random(203) < probability
    edges = np.linspace(0, 1, 11)
    wanted = 0.0
    for low, high in itertools.pairwise(edges):
        held = (probability > low) & (probability <= high) | ((low == 0) & (probability == 0))
        if held.any():
            wanted += held.mean() * abs(probability[held].mean() - positive[held].mean())
    assert metrics.expected_calibration_error(positive, probability, bins=10) == pytest.approx(wanted)
    table = metrics.reliability(positive, probability, bins=10)
    assert table.count_bins.sum() == 203
    with pytest.raises(ValueError, match="wanted 0 to 1"):
        metrics.reliability(positive, probability * 3)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_minimises_the_likelihood_and_undoes_a_factor(classes: int):
    rng = np.random.default_rng(classes)
    logit = rng.normal(size=(4000, classes)) * 2
    drawn = np.array([rng.choice(classes, p=p) for p in metrics.softmax(logit)])
    found = metrics.fit_temperature(drawn, 3 * logit)

    def cost(temperature: float) -> float:
        return oracle.log_loss(drawn, metrics.softmax(3 * logit / temperature), labels=range(classes))

    best: Any = minimize_scalar(cost, bounds=(0.5, 10), method="bounded", options={"xatol": 1e-7})
    assert found == pytest.approx(best.x, rel=1e-4)
    assert found == pytest.approx(3, rel=0.1)


def test_separable_logits_get_the_bound_and_not_infinity():
    logit = np.array([[0.0, 5.0], [0.0, -5.0]])
    assert metrics.fit_temperature(np.array([1, 0]), logit) == pytest.approx(0.05)
    assert metrics.fit_temperature(np.array([0, 1]), logit) == pytest.approx(20)


def test_a_patients_films_are_drawn_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "MAX_CELLS", 50)  # in parts
    patients = ["a", "b", "a", "c", "c", "c"]
    rows = []

    def remember(weight_RN: np.ndarray) -> np.ndarray:
        rows.append(weight_RN)
        return weight_RN.sum(1)

    metrics.bootstrap(remember, patients, draws=400, seed=5)
    assert len(rows) > 1
    drawn = np.concatenate(rows)
    assert drawn.shape == (400, 6)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, 3:] == drawn[:, 3:4]).all()
    assert (drawn[:, [0, 1, 3]].sum(1) == 3).all()
    assert drawn[:, 0].mean() == pytest.approx(1, abs=0.15)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Scores N(0, 1) and N(1, 1): the AUROC is Phi(1 / sqrt 2). Patients have one to three films alike."""
    rng, truth, trials = np.random.default_rng(0), 0.7602499389065233, 600
    held = 0
    for trial in range(trials):
        films = rng.integers(1, 4, 120)
        is_ill = rng.random(120) < 0.4
        patients = np.repeat(np.arange(120), films).astype(str).tolist()
        score = np.repeat(is_ill + rng.normal(size=120), films)
        positive = np.repeat(is_ill, films)
        found = metrics.interval(
            lambda w, p=positive, s=score: metrics.auroc_draws(p, s, w), patients, draws=400, seed=trial
        )
        held += found.low <= truth <= found.high
    assert 0.93 <= held / trials <= 0.97


def test_a_paired_test_sees_what_two_intervals_cannot():
    rng = np.random.default_rng(7)
    positive = rng.random(300) < 0.5
    patients = [str(n // 2) for n in range(300)]
    shared = rng.normal(size=300)
    good = shared + 1.2 * positive
    worse = good + 0.5 * rng.normal(size=300)

    def of(score: np.ndarray) -> metrics.Statistic:
        return lambda w: metrics.auroc_draws(positive, score, w)

    better = metrics.paired_difference(of(good), of(worse), patients)
    assert better.interval.low > 0
    assert better.p_value < 0.05
    assert better.interval.value == pytest.approx(
        oracle.roc_auc_score(positive, good) - oracle.roc_auc_score(positive, worse)
    )
    assert metrics.interval(of(worse), patients).high > metrics.interval(of(good), patients).low
    same = metrics.paired_difference(of(good), of(good), patients)
    assert same.p_value == 1
    assert (same.interval.low, same.interval.high) == (0, 0)
