import numpy as np
import pytest
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence

from shards_tool.dicom_grey import grey_rule
from shards_tool.grey import GreyRule, Lut, apply_rule, grey_table, percentile_window
from tests.shards_tool.archive import dataset_of, twelve_bit


def lut_item(entries: list[int], first: int, bits: int):
    item = Dataset()
    item.add_new(0x00283002, "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new(0x00283006, "US", entries)
    return item


def rule_of(dataset: Dataset) -> GreyRule:
    rule, repairs = grey_rule(dataset, dataset.pixel_array, bits_stored=12)
    assert repairs == []
    return rule


def pydicom_grey(dataset) -> np.ndarray:
    """The reference: pydicom's own modality and VOI transforms, scaled to [0, 1] by their output range."""
    pixels = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    if "VOILUTSequence" in dataset:
        low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        is_signed = dataset.PixelRepresentation == 1
        ends = (-(2**11), 2**11 - 1) if is_signed else (0, 2**12 - 1)
        if "ModalityLUTSequence" in dataset:
            ends, slope, intercept = (0, 2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1), 1, 0
        low, high = (end * slope + intercept for end in ends)
    return (pixels - low) / (high - low)


CASES = {
    "linear": {"WindowCenter": 1800, "WindowWidth": 2500},
    "narrow linear": {"WindowCenter": 1800.5, "WindowWidth": 41},
    "several windows": {"WindowCenter": [1800, 900], "WindowWidth": [2500, 300]},
    "linear exact": {"WindowCenter": 1800, "WindowWidth": 2500, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 1800, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
    "rescaled": {"WindowCenter": 100, "WindowWidth": 900, "RescaleSlope": 0.25, "RescaleIntercept": -300},
    "voi table": {"VOILUTSequence": Sequence([lut_item(list(range(0, 4096, 2)), 500, 12)])},
    "modality table": {
        "ModalityLUTSequence": Sequence([lut_item([i * i // 4096 for i in range(4096)], 0, 16)]),
        "WindowCenter": 1500,
        "WindowWidth": 2800,
    },
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_is_pydicoms(name: str, photometric: str):
    dataset = dataset_of(twelve_bit(3), PhotometricInterpretation=photometric, **CASES[name])
    pixels, window = apply_rule(dataset.pixel_array, rule_of(dataset))
    expected = pydicom_grey(dataset)
    if photometric == "MONOCHROME1":
        expected = 1 - expected
    np.testing.assert_allclose(pixels / 65535, expected, atol=0.6 / 65535)
    function = CASES[name].get("VOILUTFunction", "LINEAR").lower()
    assert window == ("voi_lut" if "VOILUTSequence" in dataset else function)


def test_signed_pixels_are_windowed_like_pydicom_does():
    pixels = twelve_bit(4).astype(np.int16) - 2048
    dataset = dataset_of(pixels, WindowCenter=-100, WindowWidth=3000)
    grey, _ = apply_rule(dataset.pixel_array, rule_of(dataset))
    np.testing.assert_allclose(grey / 65535, pydicom_grey(dataset), atol=0.6 / 65535)


def test_without_a_window_the_film_fills_the_range_and_collimation_and_outliers_do_not_count():
    rng = np.random.default_rng(0)
    pixels = rng.integers(900, 1900, (200, 200)).astype(np.uint16)
    pixels[:60] = 0  # collimation
    pixels[100, :20] = 4095  # a marker
    grey, window = apply_rule(pixels, GreyRule(bits_stored=12))
    assert window == "percentile"
    film = grey[61:99] / 65535
    assert film.min() == 0 and film.max() == 1 and 0.48 < film.mean() < 0.52
    assert (grey[:60] == 0).all() and (grey[100, :20] == 65535).all()


@pytest.mark.parametrize("invert", [False, True])
def test_padding_is_black_and_does_not_move_the_window(invert: bool):
    pixels = np.random.default_rng(0).integers(900, 1900, (100, 100)).astype(np.uint16)
    rule = GreyRule(bits_stored=12, invert=invert)
    plain, _ = apply_rule(pixels, rule)
    padded = np.pad(pixels, 40, constant_values=4000)
    padded[0, :10] = 4010
    grey, _ = apply_rule(padded, GreyRule(bits_stored=12, invert=invert, padding=(4000, 4010)))
    np.testing.assert_array_equal(grey[40:-40, 40:-40], plain)
    assert (grey[:40] == 0).all()


def test_only_padding_is_no_film():
    with pytest.raises(ValueError, match="every pixel is padding"):
        apply_rule(np.full((80, 80), 7, dtype=np.uint16), GreyRule(bits_stored=12, padding=(7, 7)))


@pytest.mark.parametrize(("center", "width"), [(60000, 10), (-5000, 100), (0, 1)])
def test_a_window_that_shows_nothing_is_not_used(center: float, width: float):
    rule = GreyRule(bits_stored=12, center=center, width=width)
    pixels, window = apply_rule(twelve_bit(5), rule)
    assert window == "percentile" and pixels.min() == 0 and pixels.max() == 65535


def test_eight_bits_without_a_window_stay_as_they_are():
    pixels = np.arange(20, 220, dtype=np.uint8).reshape(10, 20)
    grey, window = apply_rule(pixels, GreyRule(bits_stored=8))
    assert window == "full"
    np.testing.assert_array_equal(grey, pixels.astype(np.uint16) * 257)
    falling, _ = apply_rule(pixels, GreyRule(bits_stored=8, slope=-1, intercept=255))
    np.testing.assert_array_equal(falling, (255 - pixels.astype(np.uint16)) * 257)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_a_table_of_other_bits_than_declared_fills_the_range(bits: int):
    lut = Lut(first=0, entries=np.arange(4096), bits=bits)
    rule = GreyRule(bits_stored=12, voi_lut=lut)
    grey, window = grey_table(np.arange(4096.0), np.ones(4096, np.int64), rule)
    assert window == "voi_lut" and grey[0] == 0 and grey[-1] == 1


def test_float_and_32_bit_pixels_keep_their_order():
    values = np.linspace(-3e6, 5e6, 6400).reshape(80, 80)
    for pixels in (values.astype(np.float32), values.astype(np.int32)):
        grey, window = apply_rule(pixels, GreyRule(bits_stored=32))
        assert window == "percentile" and grey.min() == 0 and grey.max() == 65535
        assert (np.diff(grey.ravel().astype(int)) >= 0).all()


def test_values_that_are_no_numbers_are_refused():
    pixels = np.linspace(0, 1, 6400, dtype=np.float32).reshape(80, 80)
    pixels[3, 3] = np.nan
    with pytest.raises(ValueError, match="no numbers"):
        apply_rule(pixels, GreyRule(bits_stored=32))
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="out of range"):
        apply_rule(twelve_bit(0), GreyRule(bits_stored=12, slope=1e308))


def test_percentile_window_works_on_falling_values():
    values = -np.arange(1000.0)
    assert percentile_window(values, np.ones(1000, np.int64)) == (-995.0, -5.0)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        *(("u1", 3, 250), ("<u2", 0, 65535), ("<u2", 300, 5000), (">u2", 5, 4095), ("<u2", 7, 8)),
        *(("<i2", -32768, 32767), (">i2", -100, 4000), ("<i4", -70000, -5000)),
    ],
)
def test_every_pixel_gets_the_grey_of_its_value_whatever_its_type(dtype: str, low: int, high: int):
    pixels = np.random.default_rng(0).integers(low, high + 1, (60, 50)).astype(dtype)
    stored, place, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    rule = GreyRule(bits_stored=16, center=(low + high) / 2, width=0.7 * (high - low) + 2, invert=True)
    table, window = grey_table(stored.astype(np.float64), counts, rule)
    grey, used = apply_rule(pixels, rule)
    assert used == window and grey.dtype == np.uint16
    np.testing.assert_array_equal(grey, np.rint(table * 65535).astype(np.uint16)[place.reshape(60, 50)])
