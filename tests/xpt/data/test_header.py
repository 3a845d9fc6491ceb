import cv2
import numpy as np
import pytest

from xpt.data.header import check_picture


def encoded(suffix: str, pixels: np.ndarray, *parameters: int) -> bytes:
    ok, data = cv2.imencode(suffix, pixels, parameters)
    assert ok
    return data.tobytes()


PIXELS = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
PICTURES = {
    "jpeg": encoded(".jpg", PIXELS),
    "progressive jpeg": encoded(".jpg", PIXELS, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "colour jpeg": encoded(".jpg", np.dstack([PIXELS] * 3)),
    "png 8 bit": encoded(".png", PIXELS),
    "png 16 bit": encoded(".png", PIXELS.astype(np.uint16) * 257),
}


@pytest.mark.parametrize("name", PICTURES)
def test_complete_picture_of_the_right_size_passes(name: str):
    check_picture(PICTURES[name], side=48)


def test_padding_between_jpeg_segments_is_allowed():
    data = PICTURES["jpeg"]
    check_picture(data[:2] + b"\xff\xff" + data[2:], side=48)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("shape", [(48, 40), (40, 48), (96, 96)])
def test_wrong_size_is_named(suffix: str, shape: tuple[int, int]):
    data = encoded(suffix, np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match=f"wrong size, got {shape[0]} x {shape[1]} pixels, wanted 48 x 48"):
        check_picture(data, side=48)


@pytest.mark.parametrize("name", PICTURES)
def test_no_prefix_of_a_picture_passes(name: str):
    data = PICTURES[name]
    for length in {*range(0, 200), len(data) // 2, len(data) - 1}:
        with pytest.raises(ValueError):
            check_picture(data[:length], side=48)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + bytes(50), b"\xff\xd8" + bytes(50), b"\xff\xd8" + b"\xff" * 50]
)
def test_what_is_no_picture_is_refused(data: bytes):
    with pytest.raises(ValueError):
        check_picture(data, side=48)
