"""Boxes around findings, brought from a table of the source onto the stored pictures.

Shards hold no boxes, and their keys say nothing about file names. Who has the sources and the key of
the pseudonyms can put the two together; the result names films by their keys alone.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from shards_tool.files import write_whole
from shards_tool.privacy import keyed_hash
from shards_tool.schema import KEY_LENGTH, SAMPLES

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

    Returns the numbers of boxes written and of boxes whose film is not in the data set.

    Raises:
        ValueError: the table cannot be used, or none of its films is in the data set.
    """
    samples = pq.read_table(
        shards / SAMPLES, columns=["key", "box", "original_height", "original_width"]
    ).to_pylist()
    by_key = {sample["key"]: sample for sample in samples}
    keys: dict[Path, str] = {}
    names = {path.name: path for path in archive.rglob("*") if path.is_file()}
    rows, missing = [], 0
    for box in read_boxes(table):
        whole = archive / box.file
        path = whole if whole.is_file() else names.get(PurePosixPath(box.file).name)
        if path is not None and path not in keys:
            keys[path] = keyed_hash(key, "file", hashlib.sha256(path.read_bytes()).hexdigest())[:KEY_LENGTH]
        sample = by_key.get(keys[path]) if path is not None else None
        if sample is None:
            missing += 1
            continue
        top, left, bottom, right = sample["box"]
        down = (bottom - top) / sample["original_height"]
        across = (right - left) / sample["original_width"]
        rows.append(
            {
                "key": sample["key"],
                "finding": box.finding,
                "top": top + down * box.top,
                "left": left + across * box.left,
                "bottom": top + down * box.bottom,
                "right": left + across * box.right,
            }
        )
    if not rows:
        raise ValueError(
            f"{table}: none of the films of its {missing} boxes is in {shards}. Give the archive and the key "
            "file that the shards were built with."
        )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=BOX_SCHEMA), buffer)
    write_whole(out, buffer.getvalue())
    return len(rows), missing
