"""The bytes of any film to the one form: decoded, and looked at."""

import dataclasses

import numpy as np

from shards_tool.dicom import read_dicom
from shards_tool.film import ExcludedError, Film, FilmRules, check_content
from shards_tool.headers import SNIFF_BYTES, sniff
from shards_tool.picture import read_picture
from shards_tool.posture import ORIENTATIONS, looks_inverted, looks_lateral, orientation_of, thumbnail


def read_film(content: bytes, rules: FilmRules, *, view: str = "") -> Film:
    """Read the bytes of a DICOM, PNG or JPEG file.

    Args:
        view: what header and tables say, as in `SampleRecord.view`.

    Raises:
        ExcludedError: the rules leave it out.
        ValueError: not a film.
        Exception: of many kinds, from the decoders, for a damaged file.
    """
    if sniff(content[:SNIFF_BYTES]) in ("png", "jpeg"):
        film = read_picture(content)
    else:
        film = read_dicom(content, rules)
    check_content(film.pixels_HW)
    return _judged(film, rules, view)


def _judged(film: Film, rules: FilmRules, view: str) -> Film:
    """With its polarity and orientation settled: by a clear look, else by what the source says."""
    small = thumbnail(film.pixels_HW)
    if rules.views != "all" and looks_inverted(small):
        film = dataclasses.replace(
            film, pixels_HW=np.invert(film.pixels_HW), repairs=tuple(sorted({*film.repairs, "polarity"}))
        )
        small = np.invert(small)
    orientation = orientation_of(small) or film.orientation
    if rules.sideways == "exclude" and orientation not in ("", "upright"):
        raise ExcludedError(f"does not stand upright ({orientation})")
    if rules.views == "frontal" and not view:
        turns = ORIENTATIONS.index(orientation) if orientation else 0
        if looks_lateral(np.ascontiguousarray(np.rot90(small, -turns))):
            raise ExcludedError("looks like a lateral film, and nothing says which view it is")
    return dataclasses.replace(film, orientation=orientation)
