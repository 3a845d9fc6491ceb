"""Boxes around findings, brought from a table of the source onto the stored pictures.

Shards hold no boxes, and their keys say nothing about file names. Who has the sources and the key of
the pseudonyms can put the two together; the result names films by their keys alone.
"""

import csv
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from shards_tool.files import write_whole
from shards_tool.headers import SNIFF_BYTES, sniff
from shards_tool.picture import is_turned
from shards_tool.privacy import keyed_hash
from shards_tool.schema import KEY_LENGTH, SAMPLES
from shards_tool.verify import read_manifest

log = logging.getLogger(__name__)

BOX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("finding", pa.string()),
        *((edge, pa.float64()) for edge in ("top", "left", "bottom", "right")),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SourceBox:
    """In pixels of the source picture."""

    file: str
    finding: str
    top: float
    left: float
    bottom: float
    right: float


def read_boxes(table: Path) -> Iterator[SourceBox]:
    """Boxes of a table, told by its columns:

    - the phantoms' `truth.jsonl`
    - NIH's `BBox_List_2017.csv`: `Image Index`, `Finding Label`, and x, y, w, h in the four columns after
    - a table with `file` and `nih_bboxes`, a JSON list of [finding, x, y, w, h]
    - RSNA's `stage_2_train_labels.csv`: `patientId`, `x`, `y`, `width`, `height`, `Target`

    Raises:
        ValueError: no such file, or none of these.
    """
    if not table.is_file():
        raise ValueError(f"{table}: no such file; wanted a table of boxes")
    if table.suffix == ".jsonl":
        for line in table.read_text(encoding="utf-8").splitlines():
            film = json.loads(line)
            for found in film["findings"]:
                left, top, right, bottom = found["box"]
                yield SourceBox(
                    file=film["file"], finding=found["name"], top=top, left=left, bottom=bottom, right=right
                )
        return
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        place = {name: at for at, name in enumerate(header)}
        for row in rows:
            if {"Image Index", "Finding Label"} <= place.keys():
                first = place["Finding Label"] + 1  # NIH's header splits "Bbox [x" and "w" oddly
                yield _of_size(row[place["Image Index"]], row[place["Finding Label"]], row[first : first + 4])
            elif {"file", "nih_bboxes"} <= place.keys():
                for finding, *edges in json.loads(row[place["nih_bboxes"]] or "[]"):
                    yield _of_size(row[place["file"]], finding, edges)
            elif {"patientId", "x", "y", "width", "height"} <= place.keys():
                edges = [row[place[name]] for name in ("x", "y", "width", "height")]
                if all(edges):
                    yield _of_size(f"{row[place['patientId']]}.dcm", "Lung Opacity", edges)
            else:
                raise ValueError(f"{table}: no known table of boxes; its columns are {', '.join(header)}")


def _of_size(file: str, finding: str, edges: list) -> SourceBox:
    left, top, width, height = (float(edge) for edge in edges)
    # NIH's boxes call it Infiltrate where its labels say Infiltration.
    finding = {"Infiltrate": "Infiltration"}.get(finding, finding)
    return SourceBox(file=file, finding=finding, top=top, left=left, bottom=top + height, right=left + width)


def write_boxes(shards: Path, archive: Path, table: Path, key: bytes, out: Path) -> tuple[int, int]:
    """Write a Parquet table of key, finding, top, left, bottom, right in pixels of the stored pictures.

    Returns the numbers of boxes written and of boxes left out, for reasons that the log names.

    Raises:
        ValueError: no data set or archive, the table cannot be used, or no box is left.
    """
    read_manifest(shards)
    if not archive.is_dir():
        raise ValueError(f"--archive {archive}: no such folder; give the one that the shards were built from")
    columns = ["key", "box", "original_height", "original_width", "repairs"]
    samples = {row["key"]: row for row in pq.read_table(shards / SAMPLES, columns=columns).to_pylist()}
    boxes = list(read_boxes(table))
    placed = {
        file: path if isinstance(path, str) else _sample_of(path, samples, key)
        for file, path in _files_of({box.file for box in boxes}, archive).items()
    }
    rows, left_out = [], Counter[str]()
    for box in boxes:
        sample = placed[box.file]
        if isinstance(sample, str):
            left_out[sample] += 1
        else:
            rows.append(_on_stored(box, sample))
    if not rows:
        reasons = "".join(f", {count} of films that {reason}" for reason, count in left_out.items())
        raise ValueError(
            f"{table}: none of its {len(boxes)} boxes can be brought onto {shards}{reasons}. "
            "Give the archive and the key file that the shards were built with."
        )
    for reason, count in left_out.items():
        log.warning("left out %d boxes of films that %s", count, reason)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=BOX_SCHEMA), buffer)
    write_whole(out, buffer.getvalue())
    return len(rows), left_out.total()


def _files_of(named: set[str], archive: Path) -> dict[str, Path | str]:
    """The file at the place that a table names, else the only one of that bare name; or why there is none."""
    by_name: dict[str, list[Path]] = {}
    for path in archive.rglob("*"):
        if path.is_file():
            by_name.setdefault(path.name, []).append(path)
    uses = Counter(PurePosixPath(file).name for file in named)
    files: dict[str, Path | str] = {}
    for file in named:
        name = PurePosixPath(file).name
        namesakes = by_name.get(name, [])
        if (whole := archive / file).is_file():
            files[file] = whole
        elif len(namesakes) > 1 or (namesakes and uses[name] > 1):
            files[file] = f"are not at their place in {archive}, and share their bare name with others"
        else:
            files[file] = namesakes[0] if namesakes else f"are not in {archive}"
    return files


def _sample_of(path: Path, samples: dict[str, dict], key: bytes) -> dict | str:
    """The sample made of a file; or why boxes of the file cannot be brought onto it."""
    content = path.read_bytes()
    sample = samples.get(keyed_hash(key, "file", hashlib.sha256(content).hexdigest())[:KEY_LENGTH])
    if sample is None:
        return "are not in the data set"
    # What a table's numbers count then, the pixels before or after, it does not say.
    is_picture = sniff(content[:SNIFF_BYTES]) in ("png", "jpeg")
    if "pixel_aspect" in sample["repairs"] or (is_picture and is_turned(content)):
        return "were stretched to square pixels or turned by their EXIF orientation"
    return sample


def _on_stored(box: SourceBox, sample: dict) -> dict[str, object]:
    """The row of a box, in pixels of the stored picture."""
    top, left, bottom, right = sample["box"]
    down = (bottom - top) / sample["original_height"]
    across = (right - left) / sample["original_width"]
    return {
        "key": sample["key"],
        "finding": box.finding,
        "top": top + down * box.top,
        "left": left + across * box.left,
        "bottom": top + down * box.bottom,
        "right": left + across * box.right,
    }
