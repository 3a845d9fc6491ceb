"""DICOM: the few header fields that may pass, and pixels as a film.

Built on pydicom and its plug-ins (gdcm, pylibjpeg-openjpeg, Pillow), all under permissive licences.
"""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGExtended12Bit

from shards_tool.dicom_grey import grey_rule
from shards_tool.film import ExcludedError, Film, FilmRules, Grey
from shards_tool.grey import apply_rule
from shards_tool.headers import check_deflated, check_size, codestream_size
from shards_tool.identities import IDENTITY_TAGS
from shards_tool.repairs import mend, mend_values, whole
from shards_tool.views import is_other_body_part, view_of

_HEADER_TAGS = (
    *("TransferSyntaxUID", "SOPClassUID", "Modality", "Rows", "Columns", "NumberOfFrames"),
    *("PatientID", "PatientSex", "PatientAge", "StudyInstanceUID"),
    *("BodyPartExamined", "ViewPosition", "ViewCodeSequence", "SeriesDescription", "ProtocolName"),
    *IDENTITY_TAGS,
)
"""All that is ever read of a header before the pixels are."""
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_NOT_PROJECTIONS = {"CT", "MR", "US", "PT", "NM", "OCT", "OP", "ES", "GM", "SM", "XC", "ECG"}
_DECODERS = "python-gdcm (JPEG, JPEG-LS) and pylibjpeg with pylibjpeg-openjpeg (JPEG 2000)"
_MAX_ASPECT = 4.0
"""Pixels more oblong than this are a broken tag, not a detector."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file's header says; texts as they stand there, stripped."""

    has_class: bool
    """False for what is hardly DICOM at all."""
    is_directory: bool
    """A DICOMDIR."""
    why_not: str
    """The reason for which this cannot be a film, or ""."""
    why_excluded: str
    """The rule that leaves this film out, or ""."""
    transfer_syntax: str
    patient: str
    study: str
    view: str
    """As in `SampleRecord.view`."""
    sex: str
    age: str
    identities: tuple[str, ...]
    """Names and numbers of people, to be sought in the reports; they go no further than that."""


def read_header(file: BinaryIO, rules: FilmRules, *, has_preamble: bool) -> Header:
    """Read the few fields that matter and none of the pixels.

    Raises:
        Exception: of many kinds, from pydicom, for a damaged file.
    """
    with _quiet_pydicom():
        check_deflated(file)
        tags: list[Any] = list(_HEADER_TAGS)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=not has_preamble, specific_tags=tags)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        return Header(
            has_class="SOPClassUID" in dataset,
            is_directory=str(dataset.get("SOPClassUID", "")) == _DIRECTORY_CLASS,
            why_not=_why_not_a_film(dataset),
            why_excluded=_why_excluded(dataset, rules),
            transfer_syntax=plain_text(syntax.name) if syntax else "",
            patient=plain_text(dataset.get("PatientID")),
            study=plain_text(dataset.get("StudyInstanceUID")),
            view=_view(dataset),
            sex=plain_text(dataset.get("PatientSex")),
            age=plain_text(dataset.get("PatientAge")),
            identities=tuple(filter(None, (plain_text(dataset.get(name)) for name in IDENTITY_TAGS))),
        )


def plain_text(value: object) -> str:
    """As one line of printable text that UTF-8 can hold; "" for None."""
    if value is None:
        return ""
    text = str(value).encode("utf-8", "replace").decode()
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


@contextlib.contextmanager
def _quiet_pydicom() -> Iterator[None]:
    """pydicom warns, and logs, of every odd value in every header; of millions of films nobody reads that."""
    log = logging.getLogger("pydicom")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was_disabled


def _why_not_a_film(header: Dataset) -> str:
    height, width = whole(header, "Rows"), whole(header, "Columns")
    if height is None or width is None:
        sop_class = header.get("SOPClassUID")
        return f"DICOM without an image ({plain_text(sop_class.name)[:80] if sop_class else 'no SOP class'})"
    try:
        check_size(height, width)
    except ValueError as error:
        return str(error)
    return ""


def _why_excluded(header: Dataset, rules: FilmRules) -> str:
    modality = plain_text(header.get("Modality")).upper()[:16]
    if modality in _NOT_PROJECTIONS:
        return f"modality {modality} is no projection radiograph"
    frames = whole(header, "NumberOfFrames") or 1
    if frames > 1 and rules.frames == "exclude":
        return f"multi-frame DICOM ({frames} frames): --frames first or middle takes one of them"
    if rules.views != "all" and is_other_body_part(part := plain_text(header.get("BodyPartExamined"))):
        return f"body part {part[:16]} is not the chest"
    return ""


def _view(header: Dataset) -> str:
    codes = header.get("ViewCodeSequence") or []
    meanings = [plain_text(code.get("CodeMeaning")) for code in codes]
    descriptions = [plain_text(header.get(name)) for name in ("SeriesDescription", "ProtocolName")]
    return view_of(plain_text(header.get("ViewPosition")), *meanings, *descriptions)


def read_dicom(content: bytes, rules: FilmRules | None = None) -> Film:
    """Decode one frame of a DICOM image.

    Raises:
        ExcludedError: the rules leave it out.
        ValueError: the file is not a film, or no decoder for it is installed.
        Exception: of many kinds, from pydicom and its decoders, for a damaged file.
    """
    rules = rules if rules is not None else FilmRules()
    with _quiet_pydicom():
        file = io.BytesIO(content)
        check_deflated(file)
        dataset = pydicom.dcmread(file, force=content[128:132] != b"DICM")
        if reason := _why_not_a_film(dataset):
            raise ValueError(reason)
        if reason := _why_excluded(dataset, rules):
            raise ExcludedError(reason)
        repairs = mend(dataset)
        frames = whole(dataset, "NumberOfFrames") or 1
        pixels = _decode(dataset, frame=frames // 2 if rules.frames == "middle" else 0)
        if "PixelData" in dataset:
            pixels, bits_stored, needed = mend_values(pixels, dataset)
            repairs += needed
        else:
            bits_stored = 32  # float pixel data has no BitsStored
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)
            bits_stored = 8 * pixels.dtype.itemsize
    if pixels.ndim == 3:  # a secondary capture is meant for display as it is
        pixels_HW, window = _grey_of_colour(pixels, bits_stored), "full"
    else:
        rule, needed = grey_rule(dataset, pixels, bits_stored=bits_stored)
        pixels_HW, window = apply_rule(pixels, rule)
        repairs += needed
        if rule.center is not None and window != rule.function.lower():
            repairs.append("window")  # it shows nothing of this film
    if (aspect := _pixel_aspect(dataset)) != 1.0:
        pixels_HW = _with_square_pixels(pixels_HW, aspect)
        repairs.append("pixel_aspect")
    return Film(
        pixels_HW=pixels_HW,
        bits_stored=bits_stored,
        photometric=str(dataset.PhotometricInterpretation),
        window=window,
        repairs=tuple(sorted(set(repairs))),
        orientation=_orientation(dataset),
        burned_in=plain_text(dataset.get("BurnedInAnnotation")).upper() == "YES",
    )


def _grey_of_colour(pixels: np.ndarray, bits_stored: int) -> Grey:
    grey_HW = cv2.cvtColor(pixels[..., :3], cv2.COLOR_RGB2GRAY)
    full = 2**bits_stored - 1
    return (np.minimum(grey_HW.astype(np.uint32), full) * 65535 // full).astype(np.uint16)


def _decode(dataset: Dataset, *, frame: int) -> np.ndarray:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated and "PixelData" in dataset:
        frames = generate_frames(dataset.PixelData, number_of_frames=whole(dataset, "NumberOfFrames") or 1)
        code = next((code for place, code in enumerate(frames) if place == frame), b"")
        coded = codestream_size(code)
        if coded is not None and coded != (int(dataset.Rows), int(dataset.Columns)):
            raise ValueError(
                f"the header says {dataset.Columns} x {dataset.Rows} pixels, "
                f"the compressed image {coded[1]} x {coded[0]}"
            )
        if syntax == JPEGExtended12Bit and int(dataset.BitsAllocated) == 16:
            return _decode_jpeg_12(dataset, code)
    # openjpeg takes 0.55 to 0.9 of gdcm's time on real films.
    plugin = "pylibjpeg" if syntax in JPEG2000TransferSyntaxes else ""
    try:
        # What lies above BitsStored is judged by `mend_values`, where pydicom would clear it.
        return pixel_array(
            dataset, index=frame, decoding_plugin=plugin, correct_unused_bits=False, view_only=True
        )
    except (RuntimeError, NotImplementedError) as error:
        words = str(error)
        if "missing dependencies" in words or "missing required dependencies" in words:
            name = syntax.name if syntax else "this file"
            raise ValueError(f"no decoder for {name}: install {_DECODERS}") from error
        raise


def _decode_jpeg_12(dataset: Dataset, frame: bytes) -> np.ndarray:
    """12-bit JPEG Extended by gdcm itself: pydicom refuses to let it.

    Its result is right: the DCT coefficients of a decoded film lie on the quantisation lattice of the
    file within the rounding of pixels to whole numbers (a test checks this).
    """
    import gdcm  # the only codec here that is not reached through pydicom

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((int(dataset.Columns), int(dataset.Rows), 1))
    image.SetDataElement(element)
    monochrome = gdcm.PhotometricInterpretation.GetPIType(str(dataset.PhotometricInterpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(monochrome))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(JPEGExtended12Bit))))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    with _quiet_stderr():
        decoded = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(decoded, "<u2").reshape(int(dataset.Rows), int(dataset.Columns))


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """gdcm tries its 8-bit decoder first, whose C code complains of every film on descriptor 2."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _pixel_aspect(dataset: Dataset) -> float:
    """Height of a pixel over its width; 1.0 where that is not said, or within a percent."""
    for name in ("PixelAspectRatio", "ImagerPixelSpacing", "PixelSpacing"):
        try:
            vertical, horizontal = (float(part) for part in dataset.get(name) or ())
        except (ValueError, TypeError):
            continue
        if vertical > 0 and horizontal > 0 and np.isfinite(ratio := vertical / horizontal):
            is_oblong = abs(ratio - 1) > 0.01 and 1 / _MAX_ASPECT <= ratio <= _MAX_ASPECT
            return ratio if is_oblong else 1.0
    return 1.0


def _with_square_pixels(pixels_HW: Grey, aspect: float) -> Grey:
    """The longer edge of a pixel is divided, so that nothing is lost."""
    height, width = pixels_HW.shape
    height, width = (round(height * aspect), width) if aspect > 1 else (height, round(width / aspect))
    check_size(height, width)
    return cv2.resize(pixels_HW, (width, height), interpolation=cv2.INTER_LINEAR)


def _orientation(dataset: Dataset) -> str:
    """What PatientOrientation says (PS3.3 C.7.6.1.1.1: where the row and the column point to), or ""."""
    try:
        row, column = (
            str(direction).strip().upper()[:1] for direction in dataset.get("PatientOrientation") or ()
        )
    except ValueError:
        return ""
    if column == "F":
        return "upright"
    return {"F": "rotated90", "H": "rotated270"}.get(row, "rotated180" if column == "H" else "")
