import csv
import hashlib
import io
import re
import struct

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless, RLELossless

from shards_tool import dicom
from shards_tool.dicom import read_dicom
from shards_tool.film import ExcludedError, FilmRules, Frames
from shards_tool.headers import _segments
from tests.shards_tool.archive import dataset_of, picture, twelve_bit


def content_of(dataset: pydicom.Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def changed(dataset: pydicom.Dataset, tags: dict) -> pydicom.Dataset:
    """With these attributes set, or removed where they are None, whatever the pixels say."""
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def header_of(dataset: pydicom.Dataset, rules: FilmRules | None = None) -> dicom.Header:
    rules = rules if rules is not None else FilmRules()
    return dicom.read_header(io.BytesIO(content_of(dataset)), rules, has_preamble=True)


WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_lossless_encodings_give_the_same_film(syntax: str):
    plain = dataset_of(twelve_bit(0), **WINDOW)
    packed = dataset_of(twelve_bit(0), **WINDOW)
    packed.compress(syntax)
    film = read_dicom(content_of(packed))
    np.testing.assert_array_equal(film.pixels_HW, read_dicom(content_of(plain)).pixels_HW)
    assert (film.bits_stored, film.photometric, film.window) == (12, "MONOCHROME2", "linear")


def test_both_photometric_interpretations_of_a_film_look_the_same():
    pixels = twelve_bit(1)
    bright = read_dicom(content_of(dataset_of(pixels, **WINDOW)))
    dark = read_dicom(
        content_of(dataset_of(4095 - pixels, PhotometricInterpretation="MONOCHROME1", **WINDOW))
    )
    # The standard's linear function is half a grey level off centre, so inversion moves it by one.
    np.testing.assert_allclose(dark.pixels_HW / 65535, bright.pixels_HW / 65535, atol=1.01 / 4095)
    assert dark.photometric == "MONOCHROME1"


def test_an_old_overlay_in_the_high_bits_does_not_show():
    pixels = twelve_bit(2)
    with_overlay = pixels.copy()
    with_overlay[10:20, 10:20] |= 1 << 12
    dataset = dataset_of(with_overlay, **WINDOW)
    dataset.add_new(0x60000102, "US", 12)
    film = read_dicom(content_of(dataset))
    plain = read_dicom(content_of(dataset_of(pixels, **WINDOW)))
    np.testing.assert_array_equal(film.pixels_HW, plain.pixels_HW)


def test_a_colour_capture_becomes_grey():
    grey = picture(3)
    dataset = dataset_of(np.repeat(grey[..., None], 3, axis=2), PhotometricInterpretation="RGB")
    dataset.PlanarConfiguration = 0
    film = read_dicom(content_of(dataset))
    np.testing.assert_array_equal(film.pixels_HW, grey.astype(np.uint16) * 257)
    assert film.photometric == "RGB" and film.window == "full"


def test_empty_window_tags_count_as_no_window():
    film = read_dicom(content_of(dataset_of(twelve_bit(4), WindowCenter="", WindowWidth="")))
    assert film.window == "percentile"


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ({"Rows": 65000, "Columns": 65000}, "65000 x 65000 pixels"),
        ({"Rows": None}, "without an image .Computed Radiography"),
    ],
)
def test_what_is_no_film_is_refused_by_its_header(tags: dict, word: str):
    dataset = changed(dataset_of(twelve_bit(0)), tags)
    with pytest.raises(ValueError, match=word):
        read_dicom(content_of(dataset))
    assert header_of(dataset).why_not != ""


@pytest.mark.parametrize(
    ("tags", "rules", "word"),
    [
        ({"Modality": "CT"}, FilmRules(views="all"), "modality CT"),
        ({"BodyPartExamined": "HIP"}, FilmRules(views="chest"), "body part HIP is not the chest"),
        ({"NumberOfFrames": 3}, FilmRules(), r"multi-frame DICOM \(3 frames\): --frames first or middle"),
    ],
)
def test_what_a_rule_leaves_out_is_told_by_its_header(tags: dict, rules: FilmRules, word: str):
    dataset = changed(dataset_of(twelve_bit(0)), tags)
    header = header_of(dataset, rules)
    assert re.search(word, header.why_excluded) and header.why_not == ""
    with pytest.raises(ExcludedError, match=word):
        read_dicom(content_of(dataset), rules)


def test_all_views_keep_other_body_parts():
    dataset = changed(dataset_of(twelve_bit(0)), {"BodyPartExamined": "HIP"})
    assert header_of(dataset, FilmRules(views="all")).why_excluded == ""


@pytest.mark.parametrize("compressed", [False, True])
def test_of_several_frames_the_asked_one_is_read(compressed: bool):
    frames = np.stack([twelve_bit(seed) for seed in range(5)])
    dataset = dataset_of(frames[0], **WINDOW)
    dataset.NumberOfFrames = 5
    dataset.PixelData = frames.tobytes()
    if compressed:
        dataset.compress(RLELossless)
    policies: dict[Frames, int] = {"first": 0, "middle": 2}
    for policy, number in policies.items():
        film = read_dicom(content_of(dataset), FilmRules(frames=policy))
        alone = read_dicom(content_of(dataset_of(frames[number], **WINDOW)))
        np.testing.assert_array_equal(film.pixels_HW, alone.pixels_HW)


def test_the_view_comes_from_the_first_element_that_names_one():
    dataset = dataset_of(twelve_bit(0), ViewPosition="", SeriesDescription="Thorax seitlich")
    assert header_of(dataset).view == "LATERAL"
    code = pydicom.Dataset()
    code.CodeMeaning = "postero-anterior"
    dataset.ViewCodeSequence = [code]
    assert header_of(dataset).view == "PA"


@pytest.mark.parametrize(
    ("directions", "orientation"),
    [
        (["L", "F"], "upright"),
        (["F", "R"], "rotated90"),
        (["R", "H"], "rotated180"),
        (["H", "L"], "rotated270"),
        ("", ""),
    ],
)
def test_the_orientation_is_what_the_header_says(directions: list[str] | str, orientation: str):
    film = read_dicom(content_of(dataset_of(twelve_bit(0), PatientOrientation=directions)))
    assert film.orientation == orientation


def test_a_codestream_larger_than_its_header_is_refused_before_it_is_decoded():
    dataset = dataset_of(twelve_bit(0))
    dataset.compress(JPEG2000Lossless)
    size = struct.pack(">II", 80, 96)
    assert size in dataset.PixelData
    dataset.PixelData = dataset.PixelData.replace(size, struct.pack(">II", 100_000, 100_000), 1)
    with pytest.raises(ValueError, match="the compressed image 100000 x 100000"):
        read_dicom(content_of(dataset))


def test_truncated_pixels_are_an_error():
    content = content_of(dataset_of(twelve_bit(0)))
    with pytest.raises(Exception, match=r"(?i)pixel data"):
        read_dicom(content[:-4000])


def test_a_missing_decoder_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args: object, **_options: object) -> np.ndarray:
        raise RuntimeError("Unable to decompress: the plugins are missing dependencies: gdcm")

    dataset = dataset_of(twelve_bit(0))
    dataset.compress(RLELossless)
    monkeypatch.setattr(dicom, "pixel_array", refuse)
    with pytest.raises(ValueError, match=r"no decoder for RLE Lossless.*python-gdcm"):
        read_dicom(content_of(dataset))


@pytest.mark.realdata
def test_real_pixels_are_those_of_the_published_checksums(cxr):
    with (cxr / "dicom" / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    lossless = [
        row for row in rows if "JPEG Baseline" not in row["transfer_syntax"] and "JPLY" not in row["file"]
    ]
    assert len(rows) == 12 and len(lossless) == 8
    for row in lossless:
        pixels = dicom._decode(pydicom.dcmread(cxr / row["file"]), frame=0)
        digest = hashlib.md5(pixels.astype("<i4").tobytes()).hexdigest()
        assert digest == row["pixels_md5_int32le"], row["file"]


@pytest.mark.realdata
def test_a_real_12_bit_jpeg_is_decoded_onto_its_quantisation_lattice(cxr):
    """Pixels are coefficients times quantiser, transformed and rounded: only that rounding may be left."""
    dataset = pydicom.dcmread(cxr / "dicom" / "RG2_JPLY_fixed.dcm")
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    table = next(segment for marker, segment in _segments(frame) if marker == 0xDB)
    order = sorted(range(64), key=lambda i: (i // 8 + i % 8, i % 8 if (i // 8 + i % 8) % 2 == 0 else i // 8))
    quantiser = np.zeros(64)
    quantiser[order] = list(table[1:65])
    pixels = dicom._decode(dataset, frame=0).astype(np.float64)
    blocks = pixels[480:1600, 320:1120].reshape(140, 8, 100, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
    blocks = blocks[(blocks > 0).all(axis=(1, 2))]  # clipping at 0 is not undone
    coefficients = np.stack([cv2.dct(block - 2048) for block in blocks]) / quantiser.reshape(8, 8)
    distance = np.abs(coefficients - np.rint(coefficients)) * quantiser.reshape(8, 8)
    assert pixels.max() > 500 and len(blocks) > 5000
    # Rounding alone gives 0.23 on average, and 4 where it goes the same way in a whole block.
    assert distance.mean() < 0.25 and np.quantile(distance, 0.99) < 1.0 and distance.max() < 4.01


@pytest.mark.realdata
def test_real_encodings_of_one_film_agree_within_the_loss_of_their_codec(cxr):
    anything = FilmRules(views="all")
    for family, lossless in (("RG1", "RG1_J2KR.dcm"), ("RG2", "RG2_JPLL.dcm")):
        reference = read_dicom((cxr / "dicom" / lossless).read_bytes(), anything).pixels_HW / 65535
        for path in sorted((cxr / "dicom").glob(f"{family}_*.dcm")):
            film = read_dicom(path.read_bytes(), anything).pixels_HW / 65535
            loss = np.sqrt(np.mean((film - reference) ** 2))
            assert loss < 0.006, (path.name, loss)


@pytest.mark.realdata
def test_inversion_of_a_real_film(cxr):
    name = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm"
    film = read_dicom((cxr / "dicom" / name).read_bytes())
    inverted = read_dicom((cxr / "dicom" / "Fake_MONOHR1.dcm").read_bytes())
    np.testing.assert_array_equal(inverted.pixels_HW, 65535 - film.pixels_HW)


@pytest.mark.realdata
def test_real_films_are_those_of_another_careful_reader(cxr):
    """radreader is no dependency: it brings a decoder under the GPL. `docs/log.md` has the comparison."""
    radreader = pytest.importorskip("radreader")
    compared = 0
    for path in sorted((cxr / "dicom").glob("*.dcm")):
        if path.name.startswith("RG2_JPLY"):  # 12-bit JPEG, for which it has another decoder, or none
            continue
        theirs = radreader.read(path, qc="off").pixels
        ours = read_dicom(path.read_bytes(), FilmRules(views="all")).pixels_HW / 65535
        np.testing.assert_allclose(ours, theirs, atol=0.51 / 65535)
        compared += 1
    assert compared == 10
