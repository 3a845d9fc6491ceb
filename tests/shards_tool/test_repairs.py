"""Headers as vendors break them: the film is the one of the whole header, and its record says why."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, RLELossless

from shards_tool.dicom import read_dicom
from shards_tool.film import Film
from tests.shards_tool.archive import dataset_of, picture, twelve_bit

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def read(dataset: pydicom.Dataset) -> Film:
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=False, implicit_vr=False, little_endian=True)
    return read_dicom(file.getvalue())


def without(*names: str) -> Callable[[pydicom.Dataset], None]:
    def remove(dataset: pydicom.Dataset) -> None:
        for name in names:
            delattr(dataset, name)

    return remove


def with_raw(tag: int, vr: str, value: Any) -> Callable[[pydicom.Dataset], None]:
    def put(dataset: pydicom.Dataset) -> None:
        dataset.add_new(tag, vr, value)

    return put


BROKEN = {
    "no BitsStored": (without("BitsStored"), ["bits_stored"]),
    "no BitsStored, no HighBit": (without("BitsStored", "HighBit"), ["bits_stored", "high_bit"]),
    "BitsStored of 0": (with_raw(0x00280101, "US", 0), ["bits_stored"]),
    "BitsStored above BitsAllocated": (with_raw(0x00280101, "US", 20), ["bits_stored"]),
    "no HighBit": (without("HighBit"), ["high_bit"]),
    "no BitsAllocated": (without("BitsAllocated"), ["bits_allocated"]),
    "no PixelRepresentation": (without("PixelRepresentation"), ["pixel_representation"]),
    "no SamplesPerPixel": (without("SamplesPerPixel"), ["samples_per_pixel"]),
    "no PhotometricInterpretation": (without("PhotometricInterpretation"), ["photometric"]),
    "odd PhotometricInterpretation": (with_raw(0x00280004, "CS", "MONOCHROME 2"), ["photometric"]),
    "empty NumberOfFrames": (with_raw(0x00280008, "IS", ""), ["number_of_frames"]),
    "unknown function": (with_raw(0x00281056, "CS", "S_CURVE"), ["voi_function"]),
    "empty slope": (with_raw(0x00281053, "DS", ""), ["rescale"]),
    "slope of 0": (with_raw(0x00281053, "DS", "0"), ["rescale"]),
    "an unusable first window": (
        lambda ds: (ds.add_new(0x00281050, "DS", ["9", "2048"]), ds.add_new(0x00281051, "DS", ["0", "4096"])),
        ["window"],
    ),
    "a padding that is the whole film": (
        lambda ds: (ds.add_new(0x00280120, "US", 0), ds.add_new(0x00280121, "US", 4095)),
        ["padding"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_header_gives_the_film_of_the_whole_one(name: str):
    whole = dataset_of(twelve_bit(3) | 1, **WINDOW)
    broken = dataset_of(twelve_bit(3) | 1, **WINDOW)
    breaking, repairs = BROKEN[name]
    broken["PixelData"].VR = "OW"  # which the writer else derives from what is about to be removed
    breaking(broken)
    film = read(broken)
    np.testing.assert_array_equal(film.pixels_HW, read(whole).pixels_HW)
    assert list(film.repairs) == repairs
    assert (film.bits_stored, film.photometric, film.window) == (12, "MONOCHROME2", "linear")
    assert read(whole).repairs == ()


@pytest.mark.parametrize("syntax", ["", RLELossless, JPEG2000Lossless])
def test_a_missing_transfer_syntax_is_told_by_the_pixels(syntax: str):
    dataset = dataset_of(twelve_bit(3), **WINDOW)
    whole = read(dataset)
    if syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    content = file.getvalue()
    start = content.index(b"\x02\0\x10\0UI")  # (0002,0010), explicit VR
    length = int.from_bytes(content[start + 6 : start + 8], "little")
    cut = content[:start] + content[start + 8 + length :]
    size = int.from_bytes(cut[140:144], "little") - 8 - length  # of the file meta group
    film = read_dicom(cut[:140] + size.to_bytes(4, "little") + cut[144:])
    np.testing.assert_array_equal(film.pixels_HW, whole.pixels_HW)
    assert film.repairs == ("transfer_syntax",)


def test_a_missing_photometric_interpretation_follows_the_presentation():
    dataset = dataset_of(twelve_bit(3), PresentationLUTShape="INVERSE", **WINDOW)
    without("PhotometricInterpretation")(dataset)
    film = read(dataset)
    assert film.photometric == "MONOCHROME1" and film.repairs == ("photometric",)


@pytest.mark.parametrize(
    ("center", "width"), [("", ""), ("", "4096"), ("2048", "0"), ("9e9", "10"), ("-3e5", "20")]
)
def test_windows_that_cannot_be_used_are_replaced(center: str, width: str):
    film = read(dataset_of(twelve_bit(4), WindowCenter=center, WindowWidth=width))
    assert film.window == "percentile" and film.repairs == ("window",)
    assert film.pixels_HW.min() == 0 and film.pixels_HW.max() == 65535


def test_values_above_bits_stored_are_kept_not_wrapped():
    pixels = twelve_bit(5) * 2  # 13 bits
    film = read(dataset_of(pixels, WindowCenter=4096, WindowWidth=8192))
    assert film.repairs == ("values_above_bits_stored",) and film.bits_stored == 13
    order = np.argsort(pixels.ravel(), kind="stable")
    assert (np.diff(film.pixels_HW.ravel()[order].astype(int)) >= 0).all()


def test_left_aligned_pixels_are_shifted():
    whole = read(dataset_of(twelve_bit(5), **WINDOW))
    dataset = dataset_of(twelve_bit(5) << 4, **WINDOW)
    dataset.HighBit = 15
    film = read(dataset)
    np.testing.assert_array_equal(film.pixels_HW, whole.pixels_HW)
    assert film.repairs == ("high_bit_shift",)


@pytest.mark.parametrize("is_extended", [True, False])
def test_signed_pixels_with_and_without_repeated_sign_bits_are_the_same(is_extended: bool):
    signed = twelve_bit(6).astype(np.int16) - 2048
    window = {"WindowCenter": 0, "WindowWidth": 4096}
    whole = read(dataset_of(signed, **window))
    stored = signed if is_extended else signed & np.int16(0x0FFF)
    film = read(dataset_of(stored, **window))
    np.testing.assert_array_equal(film.pixels_HW, whole.pixels_HW)
    assert film.repairs == ()


def test_a_padding_value_of_the_wrong_sign_is_understood():
    pixels = twelve_bit(7).astype(np.int16) - 2048
    pixels[:9] = -2000
    dataset = dataset_of(pixels)
    dataset.add_new(0x00280120, "US", 65536 - 2000)
    film = read(dataset)
    assert film.repairs == ("padding",) and (film.pixels_HW[:9] == 0).all()


def lut_of(count: int, entries: bytes, *, first: int = 0, bits: int = 12) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.add_new(0x00283002, "US", [count, first, bits])
    item.add_new(0x00283006, "OW", entries)
    return item


RISING = np.arange(4096, dtype="<u2")


@pytest.mark.parametrize(
    ("item", "repairs", "window"),
    [
        (lut_of(4096, RISING.tobytes()), [], "voi_lut"),
        (lut_of(4096, RISING.tobytes(), bits=16), ["lut_bits"], "voi_lut"),
        (lut_of(4096, RISING.tobytes(), bits=8), ["lut_bits"], "voi_lut"),
        (lut_of(4096, RISING[:4080].tobytes()), ["lut_entries"], "voi_lut"),
        (lut_of(4096, b""), ["voi_lut"], "linear"),
        (lut_of(4096, bytes(8192)), ["voi_lut"], "linear"),
    ],
)
def test_tables_of_grey_as_vendors_write_them(item: pydicom.Dataset, repairs: list[str], window: str):
    film = read(dataset_of(twelve_bit(8), VOILUTSequence=Sequence([item]), **WINDOW))
    assert list(film.repairs) == repairs and film.window == window
    np.testing.assert_allclose(film.pixels_HW / 65535, twelve_bit(8) / 4095, atol=1 / 4095)


def test_a_table_for_negative_values_may_be_written_without_its_sign():
    signed = twelve_bit(9).astype(np.int16) - 2048
    item = lut_of(4096, RISING.tobytes(), first=65536 - 2048)
    film = read(dataset_of(signed, VOILUTSequence=Sequence([item])))
    np.testing.assert_allclose(film.pixels_HW / 65535, twelve_bit(9) / 4095, atol=1e-5)


@pytest.mark.parametrize("planes", [0, 1])
def test_colour_by_pixel_and_by_plane_become_the_same_grey(planes: int):
    colour = np.stack([picture(seed) for seed in range(3)], axis=2)
    stored = colour if planes == 0 else colour.transpose(2, 0, 1)
    dataset = dataset_of(colour, PhotometricInterpretation="RGB")
    dataset.PlanarConfiguration = planes
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()
    grey = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read(dataset).pixels_HW / 257, grey, atol=0.51)
    if planes == 0:
        without("PlanarConfiguration")(dataset)
        assert read(dataset).repairs == ("planar_configuration",)


def test_a_palette_becomes_grey():
    dataset = dataset_of(picture(1), PhotometricInterpretation="PALETTE COLOR")
    falling = (np.arange(255, -1, -1, dtype="<u2") * 257).tobytes()
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", falling)
    film = read(dataset)
    np.testing.assert_array_equal(film.pixels_HW, (255 - picture(1).astype(np.uint16)) * 257)
    without("PhotometricInterpretation")(dataset)
    assert read(dataset).repairs == ("photometric",)


def test_oblong_pixels_are_made_square():
    film = read(dataset_of(twelve_bit(2), PixelAspectRatio=["2", "1"], **WINDOW))
    assert film.pixels_HW.shape == (192, 80) and film.repairs == ("pixel_aspect",)
    assert read(dataset_of(twelve_bit(2), ImagerPixelSpacing=[0.2, 0.2])).pixels_HW.shape == (96, 80)
