import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from shards_tool.picture import read_picture
from tests.shards_tool.archive import picture

GREY = picture(0)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def palette_image() -> Image.Image:
    image = Image.fromarray(255 - GREY).convert("P")
    image.putpalette([value for grey in range(255, -1, -1) for value in (grey, grey, grey)])
    return image


GREY_PICTURES = {
    "L": Image.fromarray(GREY),
    "RGB": Image.fromarray(GREY).convert("RGB"),
    "opaque RGBA": Image.fromarray(GREY).convert("RGBA"),
    "opaque LA": Image.fromarray(GREY).convert("LA"),
    "palette": palette_image(),
}


@pytest.mark.parametrize("name", GREY_PICTURES)
def test_every_mode_of_png_gives_the_same_grey(name: str):
    film = read_picture(saved(GREY_PICTURES[name]))
    np.testing.assert_array_equal(film.pixels_HW, GREY)
    assert film.window == "full" and film.bits_stored == 8
    assert film.photometric == ("RGB" if name in ("RGB", "opaque RGBA", "palette") else "MONOCHROME2")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_read_as_grey(mode: str):
    film = read_picture(saved(Image.fromarray(GREY).convert("RGB").convert(mode), "JPEG", quality=100))
    assert np.abs(film.pixels_HW.astype(int) - GREY).max() <= 3


def test_transparent_pixels_are_black():
    image = Image.fromarray(GREY).convert("RGBA")
    alpha = np.full((96, 80), 255, dtype=np.uint8)
    alpha[:, :40] = 0
    image.putalpha(Image.fromarray(alpha))
    film = read_picture(saved(image))
    assert (film.pixels_HW[:, :40] == 0).all()
    np.testing.assert_array_equal(film.pixels_HW[:, 40:], GREY[:, 40:])


def test_full_range_16_bit_png_is_kept_exactly():
    wide = GREY.astype(np.uint16) * 257 + 3
    film = read_picture(saved(Image.fromarray(wide)))
    np.testing.assert_array_equal(film.pixels_HW, wide)
    assert film.bits_stored == 16 and film.window == "full"


def test_12_bits_in_a_16_bit_png_do_not_come_out_black():
    film = read_picture(saved(Image.fromarray(GREY.astype(np.uint16) * 16)))
    assert film.window == "percentile" and film.pixels_HW.max() == 65535 and film.pixels_HW.mean() > 20000


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_keeps_its_bits(channels: int):
    wide = GREY.astype(np.uint16) * 257 + 3
    image = np.dstack([wide] * 3 + [np.full_like(wide, 65535)] * (channels - 3))
    done, code = cv2.imencode(".png", image)
    film = read_picture(code.tobytes())
    assert done and film.bits_stored == 16
    assert np.abs(film.pixels_HW.astype(int) - wide).max() <= 1


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    film = read_picture(saved(Image.fromarray(GREY), "JPEG", quality=100, exif=exif))
    upright = np.rot90(GREY, -1)
    assert film.pixels_HW.shape == upright.shape
    assert np.abs(film.pixels_HW.astype(int) - upright).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_picture_is_an_error(form: str, share: float):
    content = saved(Image.fromarray(GREY), form)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        read_picture(content[: int(len(content) * share)])


@pytest.mark.parametrize("depth", [8, 16])
def test_a_header_of_100_000_pixels_allocates_nothing(depth: int):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, depth, 0 if depth == 8 else 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    content += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises((ValueError, Image.DecompressionBombError), match=r"100000 x 100000|pixels"):
        read_picture(content)


def test_an_animated_png_is_refused():
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    with pytest.raises(ValueError, match="animated"):
        read_picture(saved(frames[0], save_all=True, append_images=frames[1:]))
