"""Test a model that writes reports: texts, numbers with intervals beside baselines, one page.

Shape suffixes: B studies, V films of a study, L patches, W encoder width, N studies of a split.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xpt.data.index import open_shards
from xpt.evaluation.report_page import ReportExample, Text, WordHeat, report_page
from xpt.evaluation.report_scores import (
    FREQUENT,
    MODEL,
    NEAREST,
    SHUFFLED,
    differences,
    most_frequent,
    r2gen_rows,
    rows_of,
    shuffled,
)
from xpt.evaluation.word_heat import word_heat
from xpt.files import without_nan, write_atomically
from xpt.models.classifier import mean_of_valid
from xpt.models.report_decoder import ReportDecoder
from xpt.tasks.best import TrainedWriter
from xpt.tasks.report import ReportWriting, Written, study_input
from xpt.tasks.studies import Studies
from xpt.text.findings import mentions
from xpt.text.normalise import Language
from xpt.text.r2gen import IU_XRAY, MIMIC_CXR
from xpt.training.batches import whole_frames
from xpt.training.distributed import Rank

log = logging.getLogger("xpt")
PROTOCOLS = {"r2gen": IU_XRAY, "r2gen_mimic": MIMIC_CXR}
WORDS_SHOWN = 3
"""Of each text on the page."""


def evaluate_reports(
    trained: TrainedWriter, rank: Rank, *, data: str, protocol: str, examples: int
) -> dict[str, Any]:
    """Everything, on this process alone; returns what it wrote as JSON.

    Args:
        data: folder of shards; "" for that of the run.
        protocol: a name in PROTOCOLS, or another for none of them.
    """
    config, run = trained.config, Path(trained.config.run_dir)
    root = Path(data or config.data.path)
    task = ReportWriting(config, open_shards(root, "train"), open_shards(root, "val"))
    *others, split = task.evaluated()
    with whole_frames(split.shards, config, rank, groups=split.groups) as batches:
        losses, written = task.write(trained.model, batches, split)
    trained.model.eval()
    train_NW, split_NW = features(trained, task.train, rank), features(trained, split, rank)
    scores: dict[str, Any] = {
        "split": split.shards.split,
        "studies": len(losses),
        "patients": len({split.patients[row] for found in written.values() for row in found.rows}),
        "section": config.report.section,
        "views": config.report.views,
        "chosen_by": task.score,
        "studies_seen": trained.images,
        "loss": sum(losses) / len(losses),
        "languages": {},
    }
    lines = []
    for language, found in written.items():
        by_name = {MODEL: found.candidates, **baselines(task.train, train_NW, found, split_NW, language)}
        texts = (found.references, by_name, found.patients)
        scores["languages"][language] = {
            "studies": len(found.rows),
            "rows": rows_of(*texts, language),
            "model_minus": differences(*texts, language),
        }
        if language == "en" and protocol in PROTOCOLS:
            every = [
                t[language] for part in (task.train, *others, split) for t in part.texts if language in t
            ]
            scores["languages"][language][protocol] = r2gen_rows(*texts, every, PROTOCOLS[protocol])
        for place, row in enumerate(found.rows):
            told = {name: candidates[place] for name, candidates in by_name.items()}
            line = {"study": split.names[row], "patient": split.patients[row], "language": language}
            lines.append(line | {"reference": found.references[place], **told})
    written_to = run / f"reports-{split.shards.split}.jsonl"
    write_atomically(written_to, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_atomically(run / "evaluation.json", json.dumps(without_nan(scores), indent=1) + "\n")
    shown = pictures(trained, split, written, examples, rank) if examples else []
    write_atomically(run / "evaluation.html", report_page(run.name, scores, shown))
    for language, content in scores["languages"].items():
        f1 = content["rows"][MODEL]["findings"]["micro"]["f1"]
        log.info(
            "%s, %s: finding F1 %.3f (95%%: %.3f to %.3f) of %s reports; look at %s",
            split.shards.split,
            language,
            f1["value"],
            f1["low"],
            f1["high"],
            f"{content['studies']:,}",
            run / "evaluation.html",
        )
    return scores


def baselines(
    train: Studies,
    train_MW: Float[Tensor, "M W"],
    found: Written,
    split_NW: Float[Tensor, "N W"],
    language: Language,
) -> dict[str, list[str]]:
    """What can be said without reading the image well, from the `features` of both splits."""
    rows = train.with_text(language)
    texts = [train.texts[row][language] for row in rows]
    return {
        FREQUENT: [most_frequent(texts)] * len(found.rows),
        NEAREST: [texts[place] for place in nearest(train_MW[rows], split_NW[found.rows])],
        SHUFFLED: shuffled(found.candidates, found.patients),
    }


@torch.no_grad()
def features(trained: TrainedWriter, split: Studies, rank: Rank) -> Float[Tensor, "N W"]:
    """Mean of the encoder's tokens over all patches of a study that show film, of length 1."""
    found_NW = torch.zeros(len(split), trained.config.model.width)
    with whole_frames(split.shards, trained.config, rank, groups=split.groups) as batches:
        for batch in batches:
            inputs = study_input(split, batch)
            tokens_BVLW, is_valid_BVL = trained.model.tokens(*inputs.films)
            mean_BW = mean_of_valid(tokens_BVLW.float().flatten(1, 2), is_valid_BVL.flatten(1, 2))
            found_NW[inputs.rows] = F.normalize(mean_BW, dim=1).cpu()
    return found_NW


def nearest(train_MW: Float[Tensor, "M W"], query_NW: Float[Tensor, "N W"]) -> list[int]:
    """For each query the place of the training study whose cosine is largest."""
    return [place for some in query_NW.split(256) for place in (some @ train_MW.T).argmax(1).tolist()]


@torch.no_grad()
def pictures(
    trained: TrainedWriter, split: Studies, written: dict[Language, Written], count: int, rank: Rank
) -> list[ReportExample]:
    """The first studies of the split: their first film, both texts, and where the model looked for words that
    name a finding (or, where a text names none, for the whole of it)."""
    examples = []
    with whole_frames(
        split.shards, trained.config, rank, batch=1, films=count, groups=split.groups
    ) as batches:
        for batch in batches:
            inputs = study_input(split, batch)
            (row,) = inputs.rows
            texts = []
            for language, found in written.items():
                if row in found.rows:
                    place = found.rows.index(row)
                    told = found.candidates[place]
                    shown = heats_of(trained, inputs.films, told, language)
                    texts.append(
                        Text(language=language, reference=found.references[place], told=told, heats=shown)
                    )
            image_HW = batch.image_BCHW[0, 0].cpu().numpy()
            examples.append(ReportExample(name=split.names[row], image_HW=image_HW, texts=texts))
    return examples


def heats_of(trained: TrainedWriter, films: Any, told: str, language: Language) -> list[WordHeat]:  # noqa: ANN401
    """Heat on the first film for the words of `told` that name findings."""
    if not isinstance(trained.model.decoder, ReportDecoder):
        return []
    tokenizer = trained.writer.tokenizer
    ids = tokenizer.encode(told, language)[: trained.config.report.longest]
    heat_TGG = word_heat(trained.model, films, torch.tensor([ids]).to(films[0].device))[0, :, 0].float().cpu()
    ends = [len(tokenizer.decode(ids[1:stop])) for stop in range(1, len(ids) + 1)]
    spans = mentions(told, language)[:WORDS_SHOWN] or [(0, len(told))]
    shown = []
    for start, end in spans:
        # The token at place t was written by looking from place t - 1.
        places = [t - 1 for t in range(1, len(ids)) if ends[t - 1] < end and ends[t] > start]
        if places:
            heat_GG = heat_TGG[places].mean(0)
            shown.append(WordHeat(start=start, end=end, heat_GG=(heat_GG / heat_GG.max()).numpy()))
    return shown
