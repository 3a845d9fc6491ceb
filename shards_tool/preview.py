"""A contact sheet of a data set, with the contours drawn in: the quickest way to see what went wrong."""

import io
from pathlib import Path

import cv2
import numpy as np

from shards_tool.files import write_whole
from shards_tool.letterbox import letterbox
from shards_tool.originals import Originals
from shards_tool.schema import CONTOUR_CHEST, CONTOUR_LUNG, INDEX, SPLITS, shard_name
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
) -> np.ndarray:
    """Films evenly spread over the data set, as a BGR picture; each beside its original where given.

    Raises:
        ValueError: no such data set, or it has no samples.
    """
    read_manifest(root)
    entries = []
    for name in SPLITS if split is None else (split,):
        index = np.load(root / name / INDEX)
        entries += [(name, entry) for entry in index]
    if not entries:
        raise ValueError(f"{root} has no samples to show")
    picked = [entries[i] for i in np.unique(np.linspace(0, len(entries) - 1, count).round().astype(int))]
    cells = [_cell(root, name, entry) for name, entry in picked]
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
) -> None:
    sheet = contact_sheet(root, count=count, columns=columns, split=split, before=before)
    done, code = cv2.imencode(".png", sheet)
    assert done
    write_whole(path, code.tobytes())


def _cell(root: Path, split: str, entry: np.void) -> np.ndarray:
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
    cv2.putText(cell, split, (6, CELL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
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
