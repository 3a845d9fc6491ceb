"""Probes without training steps: features as validation shows the films, neighbours or logistic regression.

Shape suffixes: N films of a split, D width.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xpt.data.index import ShardSet
from xpt.evaluation.predictions import Predictions, write_predictions
from xpt.evaluation.probe import fit_logistic, knn_scores, macro_auroc
from xpt.finetune_config import FinetuneConfig
from xpt.models.classifier import Classifier
from xpt.tasks.recognition import Labelled, Recognition
from xpt.training.batches import whole_frames
from xpt.training.distributed import Rank

log = logging.getLogger("xpt")
SMALLEST = 1e-6
"""Votes are kept this far from 0 and 1, so that their logits are finite."""


def fit_frozen(model: Classifier, task: Recognition, config: FinetuneConfig, rank: Rank) -> int:
    """Fit the probe on the training films, and write what it says about validation (and test) films.

    Raises ValueError on more than one rank.
    """
    if rank.count > 1:
        raise ValueError(
            f"recognition.protocol {config.recognition.protocol}: got {rank.count} ranks, wanted one; start "
            "it with xpt-finetune."
        )
    key_row, features_ND = extract(model, task.train.shards, config, rank)
    target_NC = torch.from_numpy(task.train.target_NC[[task.train.row_of[key] for key in key_row]])
    for split in task.evaluated():
        keys, queries_QD = extract(model, split.shards, config, rank)
        if config.recognition.protocol == "knn":
            vote_QC = knn_scores(features_ND, target_NC, queries_QD, neighbours=config.recognition.neighbours)
            logit_QC = vote_QC.clamp(SMALLEST, 1 - SMALLEST).logit()
        else:
            logit_QC = fit_logistic(features_ND, target_NC, l2=config.recognition.l2).logits(queries_QD)
        found = predictions_of(keys, logit_QC, split, task)
        name = split.shards.split
        write_predictions(Path(config.run_dir) / f"predictions-{name}.parquet", found)
        log.info(
            "%s, %s: mean AUROC %.4f of %s films",
            config.recognition.protocol,
            name,
            macro_auroc(torch.from_numpy(found.target_NC), logit_QC),
            f"{len(keys):,}",
        )
    log.info("done; look at it with: xpt-evaluate %s", config.run_dir)
    return 0


def extract(
    model: Classifier, shards: ShardSet, config: FinetuneConfig, rank: Rank
) -> tuple[list[str], Tensor]:
    """Keys and pooled features, [N, D] float32, of all films of a split; whole frames, no gradients."""
    model.eval()
    keys, features = [], []
    with torch.no_grad(), whole_frames(shards, config, rank) as batches:
        for batch in batches:
            pooled_BD = model.pooled(model.tokens(batch.image_BCHW), batch.is_valid_BL).float().cpu()
            counts = batch.weight_B.cpu() > 0
            keys += [key for key, counted in zip(batch.keys, counts.tolist(), strict=True) if counted]
            features.append(pooled_BD[counts])
    return keys, torch.cat(features)


def predictions_of(keys: list[str], logit_QC: Tensor, split: Labelled, task: Recognition) -> Predictions:
    rows = np.array([split.row_of[key] for key in keys])
    return Predictions(
        keys=keys,
        patients=[split.samples.patients[row] for row in rows],
        findings=task.map.findings,
        kind=task.map.kind,
        target_NC=split.target_NC[rows],
        logit_NC=logit_QC.double().numpy(),
    )
