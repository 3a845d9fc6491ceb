"""Disease recognition: targets, model, loss and validation of a fine-tuning run.

Shape suffixes: B films, L patches, N films of a split, C findings or classes.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xpt.config import EncoderConfig
from xpt.data.batch import Batch
from xpt.data.index import ShardSet, filled_splits, open_shards, select_rows
from xpt.data.labels import (
    Kind,
    LabelMap,
    check_both,
    check_disjoint,
    check_names,
    chosen_patients,
    label_map,
    targets,
)
from xpt.data.samples import Samples, read_samples
from xpt.evaluation.predictions import Predictions
from xpt.finetune_config import FinetuneConfig, RecognitionConfig
from xpt.metrics import auroc, average_precision
from xpt.models.classifier import Classifier
from xpt.training.distributed import gather_objects

log = logging.getLogger("xpt")
SCORE = "val/auroc"


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Films of a split with their targets."""

    shards: ShardSet
    samples: Samples
    target_NC: Float[np.ndarray, "N C"]
    row_of: dict[str, int]
    """Place of each key in `target_NC`."""
    groups: None = None
    """Every film is an input by itself."""

    def batch_targets(self, batch: Batch) -> Float[Tensor, "B C"]:
        """Targets of a batch, float32, on its device; NaN where a label is not known."""
        rows = [self.row_of[key] for key in batch.keys]
        target_BC = torch.from_numpy(self.target_NC[rows]).float()
        return target_BC.to(batch.image_BCHW.device, non_blocking=True)


class Recognition:
    """The task of one run. Raises ValueError where the labels do not fit the configuration."""

    def __init__(self, config: FinetuneConfig, train_set: ShardSet, val_set: ShardSet) -> None:
        self.settings = settings = config.recognition
        self.model_config = config.model
        self.map = label_map(settings.label_map, settings.findings, settings.kind)
        train, val = read_samples(train_set), read_samples(val_set)
        check_disjoint({"train": train.patients, "val": val.patients})
        self.val = labelled(val_set, val, self.map, settings, is_training=False)
        whole = labelled(train_set, train, self.map, settings, is_training=True)
        is_known_N = ~np.isnan(whole.target_NC).all(1)
        is_used_N = is_known_N & chosen_patients(train.patients, settings.fraction, settings.fraction_seed)
        check_both(whole.target_NC[is_used_N], self.map, "train")
        # All of the split's keys stay known: they cost little, and a stand-in is one of the films used.
        self.train = Labelled(
            shards=select_rows(train_set, is_used_N),
            samples=train,
            target_NC=whole.target_NC,
            row_of=whole.row_of,
        )
        self.used_NC = whole.target_NC[is_used_N]
        self._weights_2C = self._weights()
        self.patients = len({p for p, used in zip(train.patients, is_used_N, strict=True) if used})
        films = config.train.eval_films  # the first ones, which the model is chosen by
        defined = _defined(self.val.target_NC[:films])
        undefined = [
            name for name, is_defined in zip(self.map.findings, defined, strict=True) if not is_defined
        ]
        if len(undefined) == len(self.map.findings):
            raise ValueError(
                "split val: no finding has both a positive and a negative film among its first "
                f"{films:,}, so no model can be chosen. Raise --train.eval_films, divide the patients anew "
                "(xpt-shards split), or give more films."
            )
        if undefined:
            log.warning(
                "in split val nobody or everybody has %s: undefined, left out of the mean",
                ", ".join(undefined),
            )

    score = SCORE

    @property
    def saved(self) -> dict[str, Any]:
        """What the outputs mean."""
        return {"findings": list(self.map.findings)}

    def line(self) -> str:
        """What is learned, for the log."""
        return (
            f"{self.settings.protocol}, {len(self.train.shards):,} films of {self.patients:,} patients; "
            f"{', '.join(self.map.findings)}"
        )

    def evaluated(self) -> list[Labelled]:
        """Validation, and the test split where the data set has one.

        Raises ValueError where a patient of it is in another split.
        """
        if "test" not in filled_splits(self.val.shards.root):
            return [self.val]
        test_set = open_shards(self.val.shards.root, "test")
        samples = read_samples(test_set)
        patients = {"train": self.train.samples.patients, "val": self.val.samples.patients}
        check_disjoint({**patients, "test": samples.patients})
        return [self.val, labelled(test_set, samples, self.map, self.settings, is_training=False)]

    def model(self) -> Classifier:
        return classifier_of(self.model_config, self.settings, self.map)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, "B"]]:
        """Mean over the films, and each film's own, detached."""
        target_BC = self.train.batch_targets(batch)
        image_BCHW, is_valid_BL = batch.image_BCHW, batch.is_valid_BL
        if self.settings.mixup:
            image_BCHW, is_valid_BL, target_BC = mixed(
                image_BCHW, is_valid_BL, target_BC, self.settings.mixup
            )
        logit_BC = model(image_BCHW, is_valid_BL).float()
        loss_B = film_losses(
            logit_BC,
            smoothed(target_BC, self.settings.label_smoothing, self.map.kind),
            self._weights_2C.to(logit_BC),
            self.map.kind,
        )
        return loss_B.mean(), loss_B.detach()

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean AUROC and average precision over the findings that validation defines, and the loss."""
        found = predict(model, batches, self.val, self.map)
        known = [found.known(c) for c in range(len(found.findings))]
        pairs = [(found.target_NC[k, c] > 0.5, found.logit_NC[k, c]) for c, k in enumerate(known)]
        areas = np.array([[auroc(y, s), average_precision(y, s)] for y, s in pairs])
        is_defined = ~np.isnan(areas[:, 0])
        loss_N = film_losses(
            torch.from_numpy(found.logit_NC),
            torch.from_numpy(found.target_NC),
            torch.ones(2, len(known), dtype=torch.float64),
            self.map.kind,
        )
        mean_auroc, mean_precision = areas[is_defined].mean(0)
        return {
            SCORE: float(mean_auroc),
            "val/average_precision": float(mean_precision),
            "val/loss": loss_N.mean().item(),
            **{
                f"val/auroc/{name}": float(area)
                for name, area in zip(found.findings, areas[:, 0], strict=True)
                if not np.isnan(area)
            },
        }

    def _weights(self) -> Float[Tensor, "2 C"]:
        """What an absent and a present finding weigh in the loss."""
        if self.settings.class_weights == "none":
            return torch.ones(2, len(self.map.findings))
        present_C = np.nansum(self.used_NC > 0.5, 0)
        absent_C = np.nansum(self.used_NC < 0.5, 0)
        if self.map.kind == "multi_class":
            share_C = len(self.used_NC) / (len(present_C) * present_C)
            return torch.tensor(np.stack([share_C, share_C]), dtype=torch.float32)
        known_C = present_C + absent_C
        return torch.tensor(
            np.stack([known_C / (2 * absent_C), known_C / (2 * present_C)]), dtype=torch.float32
        )


def classifier_of(model: EncoderConfig, settings: RecognitionConfig, mapped: LabelMap) -> Classifier:
    """With random weights."""
    return Classifier(
        model,
        len(mapped.findings),
        pool="attentive" if settings.protocol == "attentive" else settings.pool,
        drop_path=settings.drop_path,
        is_frozen=settings.is_frozen,
    )


def labelled(
    shards: ShardSet, samples: Samples, mapped: LabelMap, settings: RecognitionConfig, *, is_training: bool
) -> Labelled:
    """A split with its targets. Soft targets are for training; in evaluation such labels are unknown.

    Raises ValueError where the labels do not fit the map.
    """
    check_names(samples.labels, mapped, split=shards.split, ignore_others=settings.other_labels == "ignore")
    soft = settings.uncertain_target if is_training else np.nan
    uncertain = {"ignore": np.nan, "ones": 1.0, "zeros": 0.0, "soft": soft}[settings.uncertain]
    target_NC = targets(
        samples.labels, mapped, uncertain=uncertain, missing=settings.missing, keys=samples.keys
    )
    return Labelled(
        shards=shards,
        samples=samples,
        target_NC=target_NC,
        row_of={key: row for row, key in enumerate(samples.keys)},
    )


def predict(model: nn.Module, batches: Iterable[Batch], split: Labelled, mapped: LabelMap) -> Predictions:
    """Logits of all films of `batches` on all ranks, in the order of the split; no gradients.

    Every rank needs the same number of batches. What stands in for a damaged film is left out.
    """
    model.eval()
    logits, rows = [], []
    with torch.no_grad():
        for batch in batches:
            logits.append(model(batch.image_BCHW, batch.is_valid_BL).float())
            weights = batch.weight_B.tolist()
            rows.append([split.row_of[k] if w else -1 for k, w in zip(batch.keys, weights, strict=True)])
    model.train()
    logit_MC = torch.cat(logits).double().cpu().numpy()
    parts = gather_objects((np.concatenate(rows).astype(np.int64), logit_MC))
    row_M = np.concatenate([row for row, _ in parts])
    logit_MC = np.concatenate([logit for _, logit in parts])[row_M >= 0]
    row_N, first_N = np.unique(row_M[row_M >= 0], return_index=True)
    return Predictions(
        keys=[split.samples.keys[row] for row in row_N],
        patients=[split.samples.patients[row] for row in row_N],
        findings=mapped.findings,
        kind=mapped.kind,
        target_NC=split.target_NC[row_N],
        logit_NC=logit_MC[first_N],
    )


def film_losses(
    logit_BC: Float[Tensor, "B C"],
    target_BC: Float[Tensor, "B C"],
    weight_2C: Float[Tensor, "2 C"],
    kind: Kind,
) -> Float[Tensor, "B"]:
    """Each film's mean cross-entropy over its known findings, or that of its class; 0 where all is unknown.

    `weight_2C` is what an absent and a present finding weigh (for classes, the second row).
    """
    is_known_BC = ~target_BC.isnan()
    target_BC = target_BC.nan_to_num(0.0)
    if kind == "multi_class":
        return -(F.log_softmax(logit_BC, 1) * target_BC * weight_2C[1]).sum(1)
    absent_BC = (1 - target_BC) * F.softplus(logit_BC) * weight_2C[0]
    present_BC = target_BC * F.softplus(-logit_BC) * weight_2C[1]
    known_B = is_known_BC.sum(1).clamp(min=1)
    return ((absent_BC + present_BC) * is_known_BC).sum(1) / known_B


def smoothed(target_BC: Float[Tensor, "B C"], share: float, kind: Kind) -> Float[Tensor, "B C"]:
    """Targets of which `share` is spread evenly, over two outcomes or over the classes."""
    even = 0.5 if kind == "multi_label" else 1 / target_BC.shape[1]
    return (1 - share) * target_BC + share * even


def mixed(
    image_BCHW: Tensor, is_valid_BL: Tensor, target_BC: Tensor, concentration: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each film blended with the one at its mirrored place in the batch (mixup, arXiv 1710.09412).

    One weight for the batch, from Beta(concentration, concentration) of PyTorch's generator. Grey values
    stay whole numbers. A finding that is unknown in one film is unknown in the blend.
    """
    weight = float(torch.distributions.Beta(concentration, concentration).sample())
    blended = weight * image_BCHW.float() + (1 - weight) * image_BCHW.flip(0).float()
    return (
        blended.round().to(torch.uint8),
        is_valid_BL | is_valid_BL.flip(0),
        weight * target_BC + (1 - weight) * target_BC.flip(0),
    )


def _defined(target_NC: np.ndarray) -> np.ndarray:
    """[C] bool: the finding has a positive and a negative film."""
    return np.logical_and((target_NC > 0.5).any(0), (target_NC < 0.5).any(0))
