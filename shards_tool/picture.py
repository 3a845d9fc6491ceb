"""PNG and JPEG as a film."""

import io
import warnings

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from shards_tool.film import Film, Grey
from shards_tool.grey import GreyRule, apply_rule
from shards_tool.headers import PNG_MAGIC, check_size

_WIDE_PNG_MODES = {"I;16", "I;16B", "I"}


def read_picture(content: bytes) -> Film:
    """Decode a PNG or JPEG of any mode to grey; transparent pixels become black, EXIF orientation is applied.

    Eight-bit pictures keep their grey as it is. A 16-bit one keeps it if it uses the upper half of
    the range; otherwise it holds, say, 12 bits as they came from a detector and gets a window.

    Raises:
        ValueError: not a whole picture, animated, or outside the bounds on pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own bomb warning comes before our bound is checked
        try:
            # Pillow, not OpenCV: OpenCV returns a truncated JPEG half grey and reports nothing.
            image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        except UnidentifiedImageError as error:
            raise ValueError("damaged PNG or JPEG header") from error
        check_size(image.height, image.width)
        if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
            raise ValueError("animated PNG")
        is_colour = image.mode not in ("1", "L", "LA", *_WIDE_PNG_MODES)
        if _is_wide_colour_png(content):
            pixels_HW = _read_wide_colour_png(content)
        else:
            if image.mode == "RGB" and image.format in ("JPEG", "MPO"):
                # The luma channel as stored, instead of back and forth through RGB.
                image.draft("L", image.size)
            ImageOps.exif_transpose(image, in_place=True)
            pixels_HW = _grey_of(image)
    photometric = "RGB" if is_colour else "MONOCHROME2"
    bits_stored = 8 * pixels_HW.dtype.itemsize
    window = "full"
    if bits_stored == 16 and int(pixels_HW.max()) < 2**15:
        pixels_HW, window = apply_rule(pixels_HW, GreyRule(bits_stored=bits_stored))
    return Film(pixels_HW=pixels_HW, bits_stored=bits_stored, photometric=photometric, window=window)


def is_turned(content: bytes) -> bool:
    """Whether `read_picture` turns or mirrors this picture, as its EXIF orientation says."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def _grey_of(image: Image.Image) -> Grey:
    if image.mode in _WIDE_PNG_MODES:
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    if image.mode in ("RGBA", "LA"):
        grey_HW, alpha_HW = np.asarray(image.convert("LA")).transpose(2, 0, 1).astype(np.uint32)
        return ((grey_HW * alpha_HW + 127) // 255).astype(np.uint8)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return np.asarray(image if image.mode == "L" else image.convert("L"))


def _is_wide_colour_png(content: bytes) -> bool:
    """16 bits a sample and more than one channel: Pillow would drop the lower eight."""
    return content.startswith(PNG_MAGIC) and content[24] == 16 and content[25] != 0


def _read_wide_colour_png(content: bytes) -> Grey:
    Image.open(
        io.BytesIO(content), formats=("PNG",)
    ).verify()  # checks every CRC; OpenCV does not report them
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("damaged PNG")
    assert image.ndim == 3 and image.dtype == np.uint16
    grey_HW = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY)
    if image.shape[2] == 4:
        grey_HW = ((grey_HW.astype(np.uint64) * image[..., 3] + 32767) // 65535).astype(np.uint16)
    return grey_HW
