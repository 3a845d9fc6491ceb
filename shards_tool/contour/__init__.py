"""Where the chest is in a film: `contour_finder` gives the finder for a `--contour` value.

A finder is any callable of `ContourFinder`'s form (`region.py`, which also says what the chest region is).
A finder of its own kind needs a name in `contour_finder`, and nothing else here changes.
"""

from pathlib import Path

from shards_tool.contour.finder import NetworkFinder
from shards_tool.contour.fixed import find_nothing, find_rect
from shards_tool.contour.masks import MaskFolder
from shards_tool.contour.region import Contour, ContourFinder

__all__ = ["Contour", "ContourFinder", "MaskFolder", "contour_finder", "find_rect", "model_sha256"]


def contour_finder(spec: str) -> ContourFinder:
    """The finder for a `--contour` value: "network", "onnx:FILE", "masks:DIR", "rect" or "none".

    Raises:
        ValueError: unknown method, no such folder, or no such model.
    """
    method, _, argument = spec.partition(":")
    match method, bool(argument):
        case "network", False:
            return NetworkFinder()
        case "onnx", True:
            return NetworkFinder(Path(argument))
        case "masks", True:
            return MaskFolder(Path(argument))
        case "rect", False:
            return find_rect
        case "none", False:
            return find_nothing
    raise ValueError(
        f"--contour {spec!r} is not known; give network, rect, none, masks:DIR with a folder of mask PNGs, "
        "or onnx:FILE with a segmentation model"
    )


def model_sha256(finder: ContourFinder) -> str:
    """Which model a finder looks with: the hash of its file, or "" where it has none."""
    return finder.model_sha256 if isinstance(finder, NetworkFinder) else ""
