"""What is in a data set, counted: for the console, and as one HTML page without anything from elsewhere."""

import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from shards_tool.files import write_whole
from shards_tool.schema import (
    CONTOUR_CHEST,
    CONTOUR_LUNG,
    CONTOUR_SCALE,
    INDEX,
    QUARANTINE,
    SAMPLES,
    SPLITS,
    shard_name,
)
from shards_tool.verify import read_manifest

MAX_ROWS = 30
"""Rows of a table; the rest is summed up in one more."""
COVERAGE_SAMPLES = 500
"""Contours that are looked at in each split, evenly spread."""
_SIDE_STEP, _AGE_STEP = 500, 10


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of counts, and what it is of."""

    title: str
    note: str = ""
    counts: dict[str, int] = field(default_factory=dict)


def stats_of(root: Path) -> list[Section]:
    """All counts of a data set; memory does not grow with it.

    Raises:
        ValueError: no data set.
        OSError, pyarrow.ArrowException: its tables are damaged.
    """
    manifest = read_manifest(root)
    counts = dict(manifest["counts"])
    inputs = counts.pop("inputs")
    patients = {split: manifest["splits"][split]["patients"] for split in SPLITS}
    return [
        Section(title="Input files", note=f"{inputs} in all", counts=counts),
        Section(
            title="Samples by split", counts={split: manifest["splits"][split]["samples"] for split in SPLITS}
        ),
        Section(title="Patients by split", counts=patients),
        *_sample_sections(root),
        *_coverage_sections(root),
        *_left_out_sections(root),
    ]


def _sample_sections(root: Path) -> Iterator[Section]:
    names = {
        "Longest side of the source, pixels": "side",
        "Bits stored": "bits",
        "Photometric interpretation": "photometric",
        "View": "view",
        "Age, years": "age",
        "Sex": "sex",
        "Window": "window",
        "Contour": "contour",
        "Orientation": "orientation",
        "Header repairs": "repairs",
        "Writing in the picture": "burned_in",
        "Report languages": "reports",
        "Duplicate groups": "group",
    }
    found: dict[str, Counter[str]] = {name: Counter() for name in names.values()}
    labels: dict[str, Counter[str]] = {}
    order: dict[str, float] = {}
    total = 0
    for batch in pq.ParquetFile(root / SAMPLES).iter_batches(batch_size=4096):
        for row in batch.to_pylist():
            total += 1
            side = max(row["original_height"], row["original_width"]) // _SIDE_STEP * _SIDE_STEP
            found["side"][_ranged(side, _SIDE_STEP, order)] += 1
            found["bits"][str(row["bits_stored"])] += 1
            for name in ("photometric", "view", "sex", "window", "contour", "orientation"):
                found[name][row[name] or "unknown"] += 1
            age = row["age"]
            found["age"][
                "unknown" if age is None else _ranged(age // _AGE_STEP * _AGE_STEP, _AGE_STEP, order)
            ] += 1
            found["repairs"].update(row["repairs"])
            found["burned_in"]["yes" if row["burned_in"] else "no"] += 1
            found["reports"].update(language for language, _ in row["reports"])
            found["group"]["in a group" if row["duplicate_group"] else "alone"] += 1
            for label, value in row["labels"]:
                kinds = {1.0: "present", 0.0: "absent", -1.0: "uncertain"}
                labels.setdefault(label, Counter())[kinds[value]] += 1
    for title, name in names.items():
        counts = found[name]
        in_order = sorted(counts, key=lambda text: (order.get(text, np.inf), -counts[text], text))
        yield Section(title=title, counts={text: counts[text] for text in in_order})
    for kind in ("present", "absent", "uncertain"):
        counted = {label: kinds[kind] for label, kinds in sorted(labels.items()) if kinds[kind]}
        yield Section(title=f"Labels {kind}", note=f"of {total} samples", counts=counted)


def _ranged(low: int, step: int, order: dict[str, float]) -> str:
    text = f"{low}-{low + step - 1}"
    order[text] = low
    return text


def _coverage_sections(root: Path) -> Iterator[Section]:
    """How much of the film, without padding, the contours cover."""
    chest, lung = Counter[int](), Counter[int]()
    looked_at = 0
    for split in SPLITS:
        index = np.load(root / split / INDEX, mmap_mode="r")
        if not len(index):
            continue
        for i in np.unique(np.linspace(0, len(index) - 1, COVERAGE_SAMPLES).round().astype(int)).tolist():
            contour_HW = _contour(root, split, index[i])
            top, left, bottom, right = (int(edge) for edge in index[i]["box"])
            rows = slice(top // CONTOUR_SCALE, -(-bottom // CONTOUR_SCALE))
            columns = slice(left // CONTOUR_SCALE, -(-right // CONTOUR_SCALE))
            content = contour_HW[rows, columns]
            chest[min(9, int(10 * (content >= CONTOUR_CHEST).mean()))] += 1
            lung[min(9, int(10 * (content == CONTOUR_LUNG).mean()))] += 1
            looked_at += 1
    for title, tenths in (("Chest's share of the film", chest), ("Lungs' share of the film", lung)):
        counts = {f"{10 * tenth}-{10 * tenth + 9 + tenth // 9}%": tenths[tenth] for tenth in sorted(tenths)}
        yield Section(title=title, note=f"{looked_at} contours looked at", counts=counts)


def _contour(root: Path, split: str, entry: np.void) -> npt.NDArray[np.uint8]:
    path = root / split / shard_name(int(entry["shard"]))
    with path.open("rb") as file:
        file.seek(int(entry["contour_offset"]))
        code = file.read(int(entry["contour_size"]))
    contour_HW = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_GRAYSCALE) if code else None
    if contour_HW is None:
        raise ValueError(f"{path} is damaged; see xpt-shards verify")
    return contour_HW.astype(np.uint8, copy=False)


def _left_out_sections(root: Path) -> Iterator[Section]:
    reasons: dict[str, Counter[str]] = {}
    for batch in pq.ParquetFile(root / QUARANTINE).iter_batches(columns=["outcome", "reason"]):
        outcomes, texts = (batch.column(name).to_pylist() for name in ("outcome", "reason"))
        for outcome, reason in zip(outcomes, texts, strict=True):
            # Keys and sizes differ from file to file; what is left of the text is the kind of reason.
            kind = "".join("#" if word[:1].isdigit() else word + " " for word in _words(reason))
            reasons.setdefault(outcome, Counter())[kind.replace("#", "... ").strip()[:120]] += 1
    for outcome in sorted(reasons):
        yield Section(title=f"Left out: {outcome}", counts=dict(reasons[outcome].most_common()))


def _words(reason: str) -> list[str]:
    """The words of a reason, with hexadecimal keys as numbers."""
    is_key = [len(word) == 16 and all(c in "0123456789abcdef" for c in word) for word in reason.split()]
    return ["0" if key else word for word, key in zip(reason.split(), is_key, strict=True)]


def shortened(section: Section) -> dict[str, int]:
    """The first rows, and the sum of the rest."""
    rows = list(section.counts.items())
    rest = sum(count for _, count in rows[MAX_ROWS:])
    return dict(rows[:MAX_ROWS]) | ({f"{len(rows) - MAX_ROWS} others": rest} if rest else {})


def write_page(root: Path, sections: list[Section], out: Path) -> Path:
    """One HTML page; into a folder it goes as `stats.html`."""
    path = out / "stats.html" if out.is_dir() or not out.suffix else out
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _page(root.resolve().name, sections).encode())
    return path


def _page(name: str, sections: list[Section]) -> str:
    tables = "".join(_table(section) for section in sections if section.counts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}: statistics</title><style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }}
main {{ columns: 26em auto; column-gap: 2em }}
section {{ break-inside: avoid; margin-bottom: 1.5em }}
h2 {{ font-size: 15px; margin: 0 0 .3em }} small {{ color: #777; font-weight: normal }}
table {{ width: 100%; border-collapse: collapse }} td {{ padding: 1px 4px; vertical-align: top }}
td:nth-child(2) {{ text-align: right; width: 6em }} td:nth-child(3) {{ width: 35% }}
i {{ display: block; height: .8em; margin-top: .25em; background: #4a7ebb }}
</style></head><body><h1>{html.escape(name)}</h1><main>
{tables}</main></body></html>
"""


def _table(section: Section) -> str:
    most = max(section.counts.values()) or 1
    rows = "".join(
        f"<tr><td>{html.escape(text)}</td><td>{count}</td>"
        f'<td><i style="width:{100 * count / most:.1f}%"></i></td></tr>\n'
        for text, count in shortened(section).items()
    )
    note = f" <small>{html.escape(section.note)}</small>" if section.note else ""
    return f"<section><h2>{html.escape(section.title)}{note}</h2><table>\n{rows}</table></section>\n"
