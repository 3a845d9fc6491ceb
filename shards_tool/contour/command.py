"""`xpt-shards contour`: masks of any films, and a line about each."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from shards_tool.contour import Contour, ContourFinder, contour_finder
from shards_tool.contour.fixed import mean_shape
from shards_tool.files import write_whole
from shards_tool.film import FilmRules
from shards_tool.letterbox import full_mask
from shards_tool.originals import as_it_is
from shards_tool.progress import progress_bar
from shards_tool.reading import read_film
from shards_tool.scan import plain
from shards_tool.schema import CONTOUR_CHEST, CONTOUR_LUNG

LINES = "contours.jsonl"
_RULES = FilmRules(views="chest", frames="first")
"""A lateral film gets a fallback with that reason here, where `build` would leave it out."""


@dataclass(frozen=True, kw_only=True)
class ContourSummary:
    files: int
    methods: dict[str, int]
    """Films by the way their contour was found; "" counts files without a picture in them."""


def write_contours(sources: Sequence[Path], out: Path, spec: str) -> ContourSummary:
    """Write `STEM.png` for each film, of its size, and `contours.jsonl` when all are done.

    Args:
        sources: files, and folders of which every file is taken.
        spec: as for `--contour`.

    Raises:
        ValueError: no such file, two films of one stem, an unknown method.
    """
    paths = _files(sources)
    finder = contour_finder(spec)
    out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    lines, methods = [], dict[str, int]()
    with progress_bar("contours", total=len(paths)) as bar:
        for path in paths:
            contour = _contour_of(path, finder)
            if contour.mask_hw.size:
                done, code = cv2.imencode(".png", contour.mask_hw)
                assert done
                write_whole(out / f"{path.stem}.png", code.tobytes())
            lines.append(json.dumps(_line(path, contour), ensure_ascii=False))
            methods[contour.method] = methods.get(contour.method, 0) + 1
            bar.advance()
    write_whole(out / LINES, "".join(line + "\n" for line in lines).encode())
    return ContourSummary(files=len(paths), methods=dict(sorted(methods.items())))


def _files(sources: Sequence[Path]) -> list[Path]:
    paths = [path for source in sources for path in _below(source)]
    first: dict[str, Path] = {}
    for path in paths:
        other = first.setdefault(path.stem, path)
        if other != path:
            raise ValueError(
                f"{other} and {path} would both be written to {path.stem}.png; do them separately"
            )
    return list(first.values())


def _below(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from (path for path in sorted(source.rglob("*")) if path.is_file())
    elif source.exists():
        yield source
    else:
        raise ValueError(f"{source}: no such file or folder")


def _contour_of(path: Path, finder: ContourFinder) -> Contour:
    content = path.read_bytes()
    try:
        film = read_film(content, _RULES)
        contour = finder(film.pixels_HW, PurePosixPath(path.as_posix()))
        return replace(contour, mask_hw=full_mask(contour.mask_hw, *film.pixels_HW.shape))
    except Exception as error:  # decoders raise nearly anything on damaged input
        reason = plain(error)
    try:
        shape = as_it_is(content).shape
    except Exception:
        return Contour(mask_hw=np.zeros((0, 0), np.uint8), method="", certainty=0.0, reason=reason)
    return Contour(mask_hw=mean_shape(*shape[:2]), method="mean", certainty=0.0, reason=reason)


def _line(path: Path, contour: Contour) -> dict[str, object]:
    height, width = contour.mask_hw.shape
    return {
        "file": str(path),
        "method": contour.method,
        "certainty": contour.certainty,
        "reason": contour.reason,
        "areas": {
            "lung": int(np.count_nonzero(contour.mask_hw == CONTOUR_LUNG)),
            "chest": int(np.count_nonzero(contour.mask_hw >= CONTOUR_CHEST)),
        },
        "orientation": contour.orientation,
        "height": height,
        "width": width,
    }
