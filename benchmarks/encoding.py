"""What the stored picture loses: PSNR of JPEG at several qualities against the 16-bit lossless PNG.

python -m benchmarks.encoding [FOLDER ...] [--phantoms 12] [--json FILE]
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from shards_tool.film import FilmRules, Grey
from shards_tool.letterbox import letterbox
from shards_tool.pack import as_8_bits, as_16_bits, encode_jpeg, encode_png16
from shards_tool.phantom import write_archive
from shards_tool.reading import read_film
from shards_tool.schema import IMAGE_SIDE

QUALITIES = (80, 90, 95, 98, 100)
_SUFFIXES = {".dcm", ".png", ".jpg", ".jpeg"}


@dataclass(frozen=True, kw_only=True)
class Loss:
    name: str
    films: int
    """Of the group."""
    median_db: float
    least_db: float
    kilobytes: float
    """Median size of the file."""


def main(
    folders: tyro.conf.Positional[tuple[Path, ...]] = (),
    /,
    phantoms: int = 12,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Print the loss for phantoms and for the films of folders (each folder a group).

    Args:
        folders: of DICOM, PNG or JPEG files.
        phantoms: patients of a phantom archive; 0 for none.
        json_file: where to write the numbers too.
    """
    groups: dict[str, list[Path]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        if phantoms:
            write_archive(Path(temporary), patients=phantoms, seed=1)
            groups[f"phantoms ({phantoms} patients)"] = sorted(Path(temporary).rglob("*.dcm"))
        for folder in folders:
            groups[str(folder)] = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        found = {name: losses(paths) for name, paths in groups.items()}
    console = Console()
    console.print("oracle: every 16-bit PNG decodes to the pixels that it was made of", highlight=False)
    for name, rows in found.items():
        table = Table("encoding", "films", "PSNR dB, median", "least", "kB, median", title=name)
        for row in rows:
            numbers = f"{row.median_db:.1f}", f"{row.least_db:.1f}", f"{row.kilobytes:.0f}"
            table.add_row(row.name, str(row.films), *numbers)
        console.print(table)
    if json_file is not None:
        plain = {name: [vars(row) for row in rows] for name, rows in found.items()}
        json_file.write_text(json.dumps(plain, indent=1))


def losses(paths: list[Path]) -> list[Loss]:
    """One row for each encoding, lossless first.

    Raises:
        AssertionError: the lossless encoding is not.
    """
    errors: dict[str, list[float]] = {}
    sizes: dict[str, list[float]] = {}

    def note(name: str, db: float, size: int) -> None:
        errors.setdefault(name, []).append(db)
        sizes.setdefault(name, []).append(size / 1000)

    for path in paths:
        film = read_film(path.read_bytes(), FilmRules(views="all"))
        canvas_HW, box = letterbox(as_16_bits(film.pixels_HW), IMAGE_SIDE)
        inside = slice(box.top, box.bottom), slice(box.left, box.right)
        code = encode_png16(canvas_HW)
        assert (_decoded(code) == canvas_HW).all(), f"{path}: 16-bit PNG is not lossless"
        note("PNG, 16 bits", np.inf, len(code))
        eight_HW = as_8_bits(canvas_HW)
        note("8 bits, no JPEG", psnr(canvas_HW[inside], eight_HW[inside]), 0)
        for quality in QUALITIES:
            code = encode_jpeg(eight_HW, quality)
            note(f"JPEG, quality {quality}", psnr(canvas_HW[inside], _decoded(code)[inside]), len(code))
    return [
        Loss(
            name=name,
            films=len(paths),
            median_db=float(np.median(db)),
            least_db=float(np.min(db)),
            kilobytes=float(np.median(sizes[name])),
        )
        for name, db in errors.items()
    ]


def psnr(reference_HW: Grey, stored_HW: Grey) -> float:
    """Of an 8-bit picture against its 16-bit original, in dB of the full range."""
    error = reference_HW.astype(np.float64) / 65535 - stored_HW.astype(np.float64) / 255
    return float(-10 * np.log10(np.mean(error**2)))


def _decoded(code: bytes) -> Grey:
    pixels = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


if __name__ == "__main__":
    cv2.setNumThreads(1)
    tyro.cli(main)
