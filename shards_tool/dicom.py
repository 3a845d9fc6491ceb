"""DICOM: the few header fields that may pass, and pixels as a film.

Decoders come from pydicom's plug-ins (gdcm, pylibjpeg-openjpeg, Pillow), all under permissive licences.
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
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGExtended12Bit

from shards_tool.film import Film
from shards_tool.grey import GreyRule, Lut, apply_rule
from shards_tool.headers import check_size, codestream_size

_HEADER_TAGS = (
    *("TransferSyntaxUID", "SOPClassUID", "Modality", "Rows", "Columns", "NumberOfFrames"),
    *("PatientID", "PatientSex", "PatientAge", "StudyInstanceUID", "ViewPosition"),
)
"""All that is ever read of a header before the pixels are."""
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_NOT_PROJECTIONS = {"CT", "MR", "US", "PT", "NM", "OCT", "OP", "ES", "GM", "SM", "XC", "ECG"}
_DECODERS = "python-gdcm (JPEG, JPEG-LS) and pylibjpeg with pylibjpeg-openjpeg (JPEG 2000)"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file's header says; texts as they stand there, stripped."""

    has_class: bool
    """False for what is hardly DICOM at all."""
    is_directory: bool
    """A DICOMDIR."""
    why_not: str
    """The reason for which this is no film, or ""."""
    transfer_syntax: str
    patient: str
    study: str
    view: str
    sex: str
    age: str


def read_header(file: BinaryIO, *, has_preamble: bool) -> Header:
    """Read the few fields that matter and none of the pixels.

    Raises:
        Exception: of many kinds, from pydicom, for a damaged file.
    """
    with _quiet_pydicom():
        tags: list[Any] = list(_HEADER_TAGS)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=not has_preamble, specific_tags=tags)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        return Header(
            has_class="SOPClassUID" in dataset,
            is_directory=str(dataset.get("SOPClassUID", "")) == _DIRECTORY_CLASS,
            why_not=_why_not_a_film(dataset),
            transfer_syntax=plain_text(syntax.name) if syntax else "",
            patient=plain_text(dataset.get("PatientID")),
            study=plain_text(dataset.get("StudyInstanceUID")),
            view=plain_text(dataset.get("ViewPosition")),
            sex=plain_text(dataset.get("PatientSex")),
            age=plain_text(dataset.get("PatientAge")),
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
    if "Rows" not in header or "Columns" not in header:
        sop_class = header.get("SOPClassUID")
        return f"DICOM without an image ({plain_text(sop_class.name)[:80] if sop_class else 'no SOP class'})"
    frames = header.get("NumberOfFrames") or 1
    if int(frames) != 1:
        return f"multi-frame DICOM ({frames} frames)"
    modality = header.get("Modality") or ""
    if modality in _NOT_PROJECTIONS:
        return f"modality {modality} is no projection radiograph"
    try:
        check_size(int(header.Rows), int(header.Columns))
    except ValueError as error:
        return str(error)
    return ""


def read_dicom(content: bytes) -> Film:
    """Decode a single-frame DICOM image.

    Raises:
        ValueError: the file is not a film, or no decoder for it is installed.
        Exception: of many kinds, from pydicom and its decoders, for a damaged file.
    """
    with _quiet_pydicom():
        dataset = pydicom.dcmread(io.BytesIO(content), force=content[128:132] != b"DICM")
        if reason := _why_not_a_film(dataset):
            raise ValueError(reason)
        pixels = _decode(dataset)
        photometric = str(dataset.PhotometricInterpretation)
        bits_stored = int(dataset.BitsStored) if "BitsStored" in dataset else 32  # float pixel data has none
        if photometric == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)
            bits_stored = 8 * pixels.dtype.itemsize
    if pixels.ndim == 3:  # a secondary capture is meant for display as it is
        grey_HW = cv2.cvtColor(pixels[..., :3], cv2.COLOR_RGB2GRAY)
        pixels_HW = (grey_HW.astype(np.uint32) * 65535 // (2**bits_stored - 1)).astype(np.uint16)
        window = "full"
    else:
        pixels_HW, window = apply_rule(
            _without_overlay_bits(pixels, dataset), _grey_rule(dataset, bits_stored=bits_stored)
        )
    return Film(pixels_HW=pixels_HW, bits_stored=bits_stored, photometric=photometric, window=window)


def _decode(dataset: Dataset) -> np.ndarray:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated and "PixelData" in dataset:
        frame = next(iter(generate_frames(dataset.PixelData, number_of_frames=1)))
        coded = codestream_size(frame)
        if coded is not None and coded != (int(dataset.Rows), int(dataset.Columns)):
            raise ValueError(
                f"the header says {dataset.Columns} x {dataset.Rows} pixels, "
                f"the compressed image {coded[1]} x {coded[0]}"
            )
        if syntax == JPEGExtended12Bit and int(dataset.BitsAllocated) == 16:
            return _decode_jpeg_12(dataset, frame)
    if syntax in JPEG2000TransferSyntaxes:  # openjpeg takes 0.55 to 0.9 of gdcm's time on real films
        dataset.pixel_array_options(decoding_plugin="pylibjpeg")
    try:
        return dataset.pixel_array
    except RuntimeError as error:
        if "missing dependencies" in str(error) or "missing required dependencies" in str(error):
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


def _without_overlay_bits(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Clear unused high bits where an old overlay is kept in them (PS3.5 8.1.2, retired)."""
    positions = (dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2))  # Overlay Bit Position
    if any(position is not None and position.value for position in positions) and pixels.dtype.kind == "u":
        return pixels & np.asarray(2 ** int(dataset.BitsStored) - 1, dtype=pixels.dtype)
    return pixels


def _grey_rule(dataset: Dataset, *, bits_stored: int) -> GreyRule:
    slope = _number(dataset, "RescaleSlope")
    intercept = _number(dataset, "RescaleIntercept")
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    least_width = 1.0 if function == "LINEAR" else np.finfo(np.float64).tiny
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width is None or width < least_width:
        center = width = None
    return GreyRule(
        bits_stored=bits_stored,
        invert=dataset.PhotometricInterpretation == "MONOCHROME1",
        padding=_padding(dataset),
        modality_lut=_lut(dataset, "ModalityLUTSequence"),
        slope=slope if slope else 1.0,
        intercept=intercept if slope and intercept is not None else 0.0,
        voi_lut=_lut(dataset, "VOILUTSequence"),
        center=center,
        width=width,
        function=function,
    )


def _first(value: Any) -> Any:  # noqa: ANN401
    """The first of several values: of alternative windows, the one that the standard shows by default."""
    if isinstance(value, MultiValue):
        return value[0] if len(value) else None
    return value


def _number(dataset: Dataset, name: str) -> float | None:
    value = _first(dataset.get(name))
    if value is None or value == "":
        return None
    number = float(value)
    return number if np.isfinite(number) else None


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    value = _first(dataset.get("PixelPaddingValue"))
    if not isinstance(value, int):
        return None
    limit = _first(dataset.get("PixelPaddingRangeLimit"))
    other = limit if isinstance(limit, int) else value
    return min(value, other), max(value, other)


def _lut(dataset: Dataset, name: str) -> Lut | None:
    """The first table of a sequence; None where there is none with a descriptor and data."""
    sequence = dataset.get(name)
    if not sequence:
        return None
    item = sequence[0]
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or len(descriptor) != 3 or not data:
        return None
    count = int(descriptor[0]) or 2**16  # PS3.3 C.11.1.1.1: 0 stands for 65,536
    if isinstance(data, bytes):
        is_big_endian = dataset.original_encoding[1] is False
        dtype = np.dtype(np.uint8 if len(data) == count else (">u2" if is_big_endian else "<u2"))
        entries = np.frombuffer(data, dtype, count=len(data) // dtype.itemsize)
    else:
        entries = np.atleast_1d(np.asarray(data))
    if not len(entries):
        return None
    return Lut(first=int(descriptor[1]), entries=entries[:count].astype(np.int64), bits=int(descriptor[2]))
