"""A contact sheet of a data set, with the contours drawn in: the quickest way to see what went wrong."""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from shards_tool.files import write_whole
from shards_tool.letterbox import letterbox
from shards_tool.originals import Originals
from shards_tool.schema import CONTOUR_CHEST, CONTOUR_LUNG, INDEX, SAMPLES, SPLITS, shard_name
from shards_tool.verify import read_manifest

CELL = 320
_GAP = 4
_CHEST_BGR, _LUNG_BGR = (0, 200, 255), (255, 160, 0)


def contact_sheet(
    root: Path,
    *,
    count: int = 24,
    columns: int = 6,
    split: str | None = None,
    before: Originals | None = None,
    worst: bool = False,
    keys: Sequence[str] = (),
) -> np.ndarray:
    """Films evenly spread over the data set, as a BGR picture; each beside its original where given.

    Args:
        worst: the films with the least certain contours instead, each with its certainty.
        keys: these films instead.

    Raises:
        ValueError: no such data set, it has no samples, or it has no film of one of the `keys`.
    """
    read_manifest(root)
    entries = []
    for name in SPLITS if split is None else (split,):
        index = np.load(root / name / INDEX)
        entries += [(name, entry) for entry in index]
    if not entries:
        raise ValueError(f"{root} has no samples to show")
    if keys or worst:
        by_key = {entry["key"].decode(): (name, entry) for name, entry in entries}
        if missing := sorted(set(keys) - by_key.keys()):
            raise ValueError(f"{root} has no film {missing[0]}" + (f" in {split}" if split else ""))
        captions = {key: by_key[key][0] for key in keys} if keys else _least_certain(root, split, count)
        picked = [by_key[key] for key in captions]
    else:
        places = np.unique(np.linspace(0, len(entries) - 1, count).round().astype(int))
        picked = [entries[i] for i in places]
        captions = {entry["key"].decode(): name for name, entry in picked}
    cells = [_cell(root, name, entry, captions[entry["key"].decode()]) for name, entry in picked]
    if before is not None:
        originals = before.find({entry["key"].decode() for _, entry in picked})
        shown = [_original_cell(originals.get(entry["key"].decode())) for _, entry in picked]
        cells = [cell for pair in zip(shown, cells, strict=True) for cell in pair]
        columns = max(2, columns // 2 * 2)
    rows = -(-len(cells) // columns)
    pitch = CELL + _GAP
    sheet = np.full((rows * pitch + _GAP, columns * pitch + _GAP, 3), 40, dtype=np.uint8)
    for i, cell in enumerate(cells):
        top, left = _GAP + i // columns * pitch, _GAP + i % columns * pitch
        sheet[top : top + CELL, left : left + CELL] = cell
    return sheet


def write_contact_sheet(
    root: Path,
    path: Path,
    *,
    count: int = 24,
    columns: int = 6,
    split: str | None = None,
    before: Originals | None = None,
    worst: bool = False,
    keys: Sequence[str] = (),
) -> None:
    sheet = contact_sheet(
        root, count=count, columns=columns, split=split, before=before, worst=worst, keys=keys
    )
    done, code = cv2.imencode(".png", sheet)
    assert done
    write_whole(path, code.tobytes())


def _least_certain(root: Path, split: str | None, count: int) -> dict[str, str]:
    """What to write on the worst films, by key, the worst first.

    Raises:
        ValueError: no film has a certainty.
    """
    names = ["key", "split", "contour", "contour_certainty", "contour_reason"]
    rows = pq.read_table(root / SAMPLES, columns=names).to_pylist()
    rows = [row for row in rows if row["contour_certainty"] is not None and split in (None, row["split"])]
    if not rows:
        raise ValueError(f"no film in {root} has a certainty: its contours are not from the network")
    rows.sort(key=lambda row: (row["contour_certainty"], row["key"]))
    return {
        row["key"]: f"{row['contour_certainty']:.3f} {row['contour']} {row['contour_reason']}"
        for row in rows[:count]
    }


def _cell(root: Path, split: str, entry: np.void, caption: str) -> np.ndarray:
    with (root / split / shard_name(int(entry["shard"]))).open("rb") as file:
        image = _decode(file, entry["image_offset"], entry["image_size"])
        contour = _decode(file, entry["contour_offset"], entry["contour_size"])
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    cell = cv2.cvtColor(cv2.resize(image, (CELL, CELL), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    large = cv2.resize(contour, (CELL, CELL), interpolation=cv2.INTER_NEAREST_EXACT)
    for is_region, colour in ((large >= CONTOUR_CHEST, _CHEST_BGR), (large == CONTOUR_LUNG, _LUNG_BGR)):
        outlines, _ = cv2.findContours(is_region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(cell, outlines, -1, colour, 1, cv2.LINE_AA)
    cv2.putText(cell, caption, (6, CELL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return cell


def _original_cell(picture_HW: np.ndarray | None) -> np.ndarray:
    """The original, fitted into a cell."""
    cell = np.zeros((CELL, CELL, 3), dtype=np.uint8)
    if picture_HW is None:
        cv2.putText(
            cell, "not found", (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA
        )
        return cell
    small, _ = letterbox(picture_HW, CELL)
    cv2.putText(small, "source", (6, CELL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1, cv2.LINE_AA)
    return cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)


def _decode(file: io.BufferedReader, offset: int, size: int) -> np.ndarray:
    file.seek(int(offset))
    pixels = cv2.imdecode(np.frombuffer(file.read(int(size)), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{file.name} is damaged at byte {offset}; see xpt-shards verify")
    return pixels
