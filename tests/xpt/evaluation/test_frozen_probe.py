"""The probe of a run's features, against plain computations."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from xpt.data.samples import Samples
from xpt.evaluation.frozen_probe import L2, Question, answer, question_of
from xpt.evaluation.probe import fit_logistic, knn_scores


def samples(labels: list[dict[str, float]]) -> Samples:
    keys = [str(i) for i in range(len(labels))]
    labels = [{name: float(value) for name, value in film.items()} for film in labels]
    return Samples(keys=keys, patients=[f"p{i // 2}" for i in range(len(labels))], labels=labels)


def test_findings_are_asked_about_where_both_splits_have_enough_of_both_kinds():
    train = samples([{"A": i % 2, "B": 1, "C": i % 2, "D": float(i < 3) if i else -1} for i in range(8)])
    val = samples([{"A": i % 2, "B": i % 2, "C": float(i < 2)} for i in range(8)])
    question = question_of(train, val, films=6)
    assert question is not None
    assert question.findings == ("A",)
    assert question.target_NC.tolist() == [[0], [1], [0], [1], [0], [1]]
    assert question.patients == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert question_of(train, val, films=5) is None
    assert question_of(samples([{}] * 8), val, films=8) is None


@pytest.fixture
def question() -> Question:
    rng = np.random.default_rng(0)
    train, val = (rng.integers(0, 2, (60, 2)).astype(float) for _ in range(2))
    train[:7, 1] = val[5:9, 1] = np.nan
    return Question(
        findings=("A", "B"), target_NC=train, target_QC=val, patients=[f"p{i // 2}" for i in range(60)]
    )


def features(target: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(len(target)).normal(size=(len(target), 5))
    return np.concatenate([np.nan_to_num(target) + 0.7 * noise[:, :2], noise[:, 2:]], 1).astype(np.float16)


def test_the_answer_is_the_auroc_of_the_two_probes(question: Question):
    known, asked = features(question.target_NC), features(question.target_QC)
    found = answer(question, known, asked)
    x, y, target = (torch.from_numpy(v) for v in (known, asked, question.target_NC))
    scores = {
        "logistic": fit_logistic(x.float(), target, l2=L2).logits(y.float()),
        "knn": knn_scores(x.float(), target, y.float()),
    }
    for method, score in scores.items():
        wanted = []
        for c, name in enumerate(question.findings):
            there = ~np.isnan(question.target_QC[:, c])
            wanted.append(roc_auc_score(question.target_QC[there, c], score[there, c]))
            assert found["findings"][name][method]["value"] == pytest.approx(wanted[-1])
        mean = found["mean"][method]
        assert mean["value"] == pytest.approx(np.mean(wanted))
        assert mean["low"] < mean["value"] < mean["high"]


def test_films_without_features_are_left_out(question: Question):
    known, asked = features(question.target_NC), features(question.target_QC)
    known[3] = asked[4] = np.nan
    rest_N, rest_Q = np.arange(60) != 3, np.arange(60) != 4
    smaller = Question(
        findings=question.findings,
        target_NC=question.target_NC[rest_N],
        target_QC=question.target_QC[rest_Q],
        patients=[p for p, kept in zip(question.patients, rest_Q, strict=True) if kept],
    )
    assert answer(question, known, asked) == answer(smaller, known[rest_N], asked[rest_Q])
