"""What frozen features know: nearest neighbours and logistic regression on cached features.

Shape suffixes: N films, Q films asked about, D width of the features, C findings, K neighbours.

Both take NaN in a target for an unknown label.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xpt.metrics import auroc

QUERIES_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class LogisticProbe:
    """One logistic regression per finding on standardised features."""

    mean_D: Float[Tensor, "D"]
    scale_D: Float[Tensor, "D"]
    weight_DC: Float[Tensor, "D C"]
    bias_C: Float[Tensor, "C"]

    def logits(self, features_QD: Float[Tensor, "Q D"]) -> Float[Tensor, "Q C"]:
        return ((features_QD.double() - self.mean_D) / self.scale_D) @ self.weight_DC + self.bias_C


def fit_logistic(
    features_ND: Float[Tensor, "N D"], target_NC: Float[Tensor, "N C"], *, l2: float = 1.0
) -> LogisticProbe:
    """Minimise the summed cross-entropy of the known labels + l2 / 2 * |weights|^2, in float64, by L-BFGS.

    That is scikit-learn's LogisticRegression(C=1 / l2) for each finding, on features of mean 0 and
    deviation 1. Targets are probabilities: 0, 1 or between. Raises ValueError for a finding that is not
    known both present and absent.
    """
    target_NC = target_NC.double()
    is_known_NC = ~target_NC.isnan()
    for finding in range(target_NC.shape[1]):
        known = target_NC[is_known_NC[:, finding], finding]
        if not ((known > 0).any() and (known < 1).any()):
            raise ValueError(
                f"probe: finding number {finding} has {len(known)} known labels, all alike; "
                "wanted films with and without it. Leave the finding out, or give more films."
            )
    x_ND = features_ND.double()
    mean_D = x_ND.mean(0)
    scale_D = x_ND.std(0, correction=0)
    scale_D = torch.where(scale_D > 0, scale_D, 1.0)  # a constant feature becomes 0, not NaN
    x_ND = (x_ND - mean_D) / scale_D
    weight_DC = x_ND.new_zeros(x_ND.shape[1], target_NC.shape[1], requires_grad=True)
    bias_C = x_ND.new_zeros(target_NC.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_DC, bias_C],
        max_iter=1000,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    given_NC = target_NC.nan_to_num(0.0)

    def loss() -> Tensor:
        optimizer.zero_grad()
        cost = F.binary_cross_entropy_with_logits(
            x_ND @ weight_DC + bias_C, given_NC, weight=is_known_NC.double(), reduction="sum"
        )
        cost = cost + 0.5 * l2 * weight_DC.square().sum()
        cost.backward()
        return cost

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    return LogisticProbe(mean_D=mean_D, scale_D=scale_D, weight_DC=weight_DC.detach(), bias_C=bias_C.detach())


def knn_scores(
    features_ND: Float[Tensor, "N D"],
    target_NC: Float[Tensor, "N C"],
    queries_QD: Float[Tensor, "Q D"],
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Float[Tensor, "Q C"]:
    """Share of each finding among a query's nearest films by cosine, weighted by exp(cosine / temperature).

    The weighted vote of DINO (arXiv 2104.14294, appendix). Unknown labels do not vote; where all the
    neighbours' are unknown, the score is the finding's share among all films.
    """
    known_NC = (~target_NC.isnan()).double()
    given_NC = target_NC.double().nan_to_num(0.0)
    prior_C = given_NC.sum(0) / known_NC.sum(0)
    keys_ND = F.normalize(features_ND.double(), dim=1)
    count = min(neighbours, len(keys_ND))
    scores = []
    for part_QD in queries_QD.double().split(QUERIES_AT_ONCE):
        cosine_QK, nearest_QK = (F.normalize(part_QD, dim=1) @ keys_ND.T).topk(count, dim=1)
        weight_QK1 = ((cosine_QK - cosine_QK[:, :1]) / temperature).exp()[..., None]
        votes_QC = (weight_QK1 * given_NC[nearest_QK]).sum(1)
        cast_QC = (weight_QK1 * known_NC[nearest_QK]).sum(1)
        scores.append(torch.where(cast_QC > 0, votes_QC / cast_QC.clamp(min=1e-300), prior_C))
    return torch.cat(scores)


def macro_auroc(target_NC: Float[Tensor, "N C"], score_NC: Float[Tensor, "N C"]) -> float:
    """Mean AUROC over the findings that the known labels define; NaN where they define none."""
    values = []
    for target_N, score_N in zip(target_NC.T.cpu().numpy(), score_NC.T.cpu().double().numpy(), strict=True):
        known_N = ~np.isnan(target_N)
        values.append(auroc(target_N[known_N] > 0.5, score_N[known_N]))
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
