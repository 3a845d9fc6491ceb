"""How well the rule labeller reads reports, and whether the metrics are pycocoevalcap's own.

python -m benchmarks.reports [--open-i ../shared/cxr/iu_reports_text.json] [--json FILE]
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.report_wordings import ASSERTED, DENIED
from shards_tool.phantom.findings import FINDINGS as DRAWN
from shards_tool.phantom.findings import LABELS, draw_findings
from shards_tool.phantom.report import write_report
from xpt.text.findings import FINDINGS, asserted_findings
from xpt.text.normalise import LANGUAGES, Language

MESH = {
    "Nodule": ("Nodule", "Opacity/*/round", "Density/*/round"),
    "Pleural Effusion": ("Pleural Effusion", "Costophrenic Angle/*/blunted", "Hydropneumothorax"),
    "Consolidation": ("Consolidation", "Airspace Disease", "Infiltrate", "Pneumonia"),
    "Cardiomegaly": ("Cardiomegaly", "Cardiac Shadow/*/enlarged"),
    "Pneumothorax": ("Pneumothorax", "Hydropneumothorax"),
    "Atelectasis": ("Pulmonary Atelectasis",),
    "Edema": ("Pulmonary Edema", "Pulmonary Congestion"),
    "Emphysema": ("Emphysema", "Pulmonary Emphysema", "Bullous Emphysema"),
    "Fracture": ("Fractures, Bone",),
}
"""Tags of Open-i that mean a finding: a heading, or a heading with a qualifier anywhere behind it."""


@dataclass(frozen=True, kw_only=True)
class Study:
    number: int
    text: str
    """Findings and impression."""
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of found and wanted findings, in reports or sentences."""

    finding: str
    positives: int
    precision: float
    recall: float
    f1: float


def main(
    open_i: Path = Path("../shared/cxr/iu_reports_text.json"),
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Print the labeller's agreement with what is known.

    Args:
        open_i: JSON of Open-i's reports: a list of objects with uid, findings, impression and mesh.
        json_file: where to write the numbers too.
    """
    found: dict[str, list[Agreement]] = {}
    for language in LANGUAGES:
        found[f"phantoms, {language}"] = phantom_agreement(language)
        found[f"unseen wordings, {language}"] = wordings_agreement(language)
    studies = read_open_i(open_i)
    found["Open-i against MeSH, en"] = mesh_agreement(studies)
    found["Open-i, odd numbers only"] = mesh_agreement([s for s in studies if s.number % 2])
    console = Console()
    for name, rows in found.items():
        table = Table("finding", "positives", "precision", "recall", "F1", title=name)
        for row in rows:
            rates = (f"{x:.3f}" for x in (row.precision, row.recall, row.f1))
            table.add_row(row.finding, str(row.positives), *rates)
        console.print(table)
    if json_file is not None:
        plain = {name: [asdict(row) for row in rows] for name, rows in found.items()}
        json_file.write_text(json.dumps(plain, indent=1))


def phantom_agreement(language: Language, reports: int = 1200) -> list[Agreement]:
    """On phantoms' reports, whose findings are drawn first."""
    found, wanted = [], []
    for seed in range(reports):
        drawn = draw_findings(LABELS[seed % len(LABELS)], np.random.default_rng(seed))
        found.append(asserted_findings(write_report(drawn, seed, language), language))
        wanted.append(frozenset(f.name for f in drawn))
    return agreement(found, wanted, DRAWN)


def wordings_agreement(language: Language) -> list[Agreement]:
    """On sentences in other words; those that name gas and fluid assert both."""
    found, wanted = [], []
    for name in DRAWN:
        for sentence in ASSERTED[language][name]:
            both = "ydropneumothorax" in sentence or "液气胸" in sentence
            found.append(asserted_findings(sentence, language))
            wanted.append(frozenset({name, "Pleural Effusion"} if both else {name}))
        for sentence in DENIED[language][name]:
            found.append(asserted_findings(sentence, language))
            wanted.append(frozenset())
    return agreement(found, wanted, DRAWN)


def read_open_i(path: Path) -> list[Study]:
    """Studies with a text."""
    studies = [
        Study(number=int(r["uid"]), text=f"{r['findings']} {r['impression']}".strip(), tags=tuple(r["mesh"]))
        for r in json.loads(path.read_text(encoding="utf-8"))
    ]
    return [study for study in studies if study.text]


def mesh_agreement(studies: list[Study]) -> list[Agreement]:
    found = [asserted_findings(study.text, "en") for study in studies]
    wanted = [
        frozenset(name for name in FINDINGS if any(_means(tag, name) for tag in study.tags))
        for study in studies
    ]
    return agreement(found, wanted, FINDINGS)


def _means(tag: str, finding: str) -> bool:
    heading, *qualifiers = tag.split("/")
    for wanted in MESH[finding]:
        name, _, qualifier = wanted.partition("/*/")
        if heading == name and (not qualifier or qualifier in qualifiers):
            return True
    return False


def agreement(
    found: list[frozenset[str]], wanted: list[frozenset[str]], names: tuple[str, ...]
) -> list[Agreement]:
    """One row for each name, and the micro average."""
    rows = []
    for name in (*names, "micro"):
        counted = names if name == "micro" else (name,)
        hits = sum(len(f & w & set(counted)) for f, w in zip(found, wanted, strict=True))
        called = sum(len(f & set(counted)) for f in found)
        positives = sum(len(w & set(counted)) for w in wanted)
        rows.append(
            Agreement(
                finding=name,
                positives=positives,
                precision=hits / called if called else np.nan,
                recall=hits / positives if positives else np.nan,
                f1=2 * hits / (called + positives) if called + positives else np.nan,
            )
        )
    return rows


if __name__ == "__main__":
    tyro.cli(main)
