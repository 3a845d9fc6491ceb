"""Format version 1 of a shard data set: the names and layouts that writers and readers share.

Standard library only, because all of training that reads a data set imports this file.

A data set is a folder::

    manifest.json                   format version, settings, counts, SHA-256 of every shard
    samples.parquet                 one row per sample
    quarantine.parquet              source, path, outcome, reason, transfer syntax of everything left out
    {train,val,test}/
        shard-NNNNNN.tar            WebDataset: KEY.jpg or KEY.png, KEY.contour.png, KEY.json
        shard-NNNNNN.idx            DALI's webdataset index of that tar
        index.npy                   one INDEX_DTYPE row per sample, by shard, then by place in the shard

`index.npy` is what training reads: memory-mapped, so that starting costs the same for a thousand
films and for a hundred million, with the offset and CRC-32 of each file inside its tar.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
QUARANTINE = "quarantine.parquet"
INDEX = "index.npy"

IMAGE_SIDE = 1280
"""Side of the letterboxed square image in pixels, unless a build says otherwise."""
CONTOUR_SCALE = 8
"""The contour picture has 1/8 of the image's side."""
CONTOUR_OUTSIDE, CONTOUR_CHEST, CONTOUR_LUNG = 0, 128, 255

MOST_RECORD_BYTES = 2**20
"""Of a `KEY.json`; a page of text has about 3,000."""
MOST_MANIFEST_BYTES = 2**28
"""Of `manifest.json`; one of 40,000 shards has about 2**23."""

KEY_LENGTH = 16
"""Lower-case hexadecimal digits of a sample's key."""

INDEX_DTYPE = [
    ("key", f"S{KEY_LENGTH}"),
    ("shard", "<u4"),  # number within the split
    ("image_offset", "<u8"),  # bytes from the start of the tar to the first byte of the file
    ("image_size", "<u4"),
    ("image_crc32", "<u4"),
    ("contour_offset", "<u8"),
    ("contour_size", "<u4"),
    ("contour_crc32", "<u4"),
    ("json_offset", "<u8"),
    ("json_size", "<u4"),
    ("json_crc32", "<u4"),
    ("box", "<u2", (4,)),  # content box inside the letterbox: top, left, bottom, right (exclusive), pixels
]
"""Fields of `index.npy`, in numpy's notation."""


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """The content of `KEY.json`: all that passes from the source to the data set.

    An allow-list: a header field that has no place here is dropped.
    """

    key: str
    patient: str
    """Pseudonym: the same patient has the same one throughout a data set."""
    study: str
    view: str
    """"PA", "AP", "LATERAL", "OBLIQUE" or "" where the source does not say."""
    age: int | None
    """Years."""
    sex: str
    """"F", "M", "O" or ""."""
    labels: dict[str, float] = field(default_factory=dict)
    """1 present, 0 absent, -1 uncertain; a finding that is not named is unknown."""
    reports: dict[str, str] = field(default_factory=dict)
    """Report text by language ("en", "zh")."""
    original_height: int
    original_width: int
    bits_stored: int
    photometric: str
    """Photometric interpretation of the source before any inversion."""
    window: str
    """How the grey range was chosen: "voi_lut", "linear", "linear_exact", "sigmoid", "percentile", "full"."""
    repairs: list[str] = field(default_factory=list)
    """What was mended in the source's header, by the names in `docs/shards.md`."""
    orientation: str
    """How the picture stands, by its tags or its look: "upright", "rotated90", "rotated180", "rotated270"
    (clockwise turns that would set it upright), or "" where neither tells."""
    burned_in: bool
    """Whether there seems to be writing in the picture."""
    scrubbed: int = 0
    """What looked like names, dates and numbers in the reports and was replaced."""
    box: tuple[int, int, int, int]
    """Content inside the letterbox: top, left, bottom, right (exclusive), pixels of the stored image."""
    contour: str
    """How the contour was found: "network", "mask", "rect", "none", or "mean" (fallback of the network)."""
    contour_certainty: float | None = None
    """0 to 1, about the IoU to expect with a reader's chest region; None where the method has no opinion."""
    contour_reason: str = ""
    """Why the method is a fallback, or what is unusual about these lungs."""
    source_sha256: str
    """Of the source file's bytes, keyed like the pseudonyms."""
    pixel_hash: str
    """SHA-256 of the stored picture before it is encoded, keyed like the pseudonyms."""
    perceptual_hash: str
    """What the film looks like: 256 bits in hexadecimal digits, not keyed (`shards_tool/likeness.py`)."""
    duplicate_group: str = ""
    """The lowest key of the films that show nearly the same picture, which are all in one split; or ""."""


def parse_json(text: bytes, most: int) -> Any:  # noqa: ANN401  any JSON
    """The content of a JSON file of at most `most` bytes. Raises ValueError for everything else."""
    if len(text) > most:
        raise ValueError(f"{len(text)} bytes of JSON, more than {most}")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"damaged JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("damaged JSON: nested too deeply") from error


def read_record(text: bytes) -> SampleRecord:
    """The record in the bytes of a `KEY.json`. Raises ValueError that says what is wrong with it."""
    return validate_record(parse_json(text, MOST_RECORD_BYTES))


def validate_record(content: object) -> SampleRecord:
    """The record in the parsed content of a `KEY.json`.

    Raises:
        ValueError: a field is missing, unknown, or of another type; says which.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a record is an object, got {type(content).__name__}")
    names = [field.name for field in dataclasses.fields(SampleRecord)]
    missing, unknown = [n for n in names if n not in content], [n for n in content if n not in names]
    if missing or unknown:
        raise ValueError(f"fields missing: {missing}, unknown: {unknown}")
    box = content["box"]
    is_right = {
        **{n: isinstance(content[n], str) for n in _TEXTS},
        **{n: type(content[n]) is int and content[n] > 0 for n in _COUNTS},
        "age": content["age"] is None or (type(content["age"]) is int and content["age"] >= 0),
        "repairs": isinstance(content["repairs"], list)
        and all(isinstance(name, str) for name in content["repairs"]),
        "burned_in": isinstance(content["burned_in"], bool),
        "contour_certainty": content["contour_certainty"] is None
        or (type(content["contour_certainty"]) is float and 0 <= content["contour_certainty"] <= 1),
        "scrubbed": type(content["scrubbed"]) is int and content["scrubbed"] >= 0,
        "labels": _is_map(content["labels"])
        and all(value in (-1, 0, 1) for value in content["labels"].values()),
        "reports": _is_map(content["reports"])
        and all(isinstance(v, str) for v in content["reports"].values()),
        "box": isinstance(box, list | tuple)
        and len(box) == 4
        and all(type(edge) is int for edge in box)
        and 0 <= box[0] < box[2]
        and 0 <= box[1] < box[3],
    }
    if wrong := [name for name, right in is_right.items() if not right]:
        raise ValueError(", ".join(f"{name} is {content[name]!r}" for name in wrong))
    return SampleRecord(**{**content, "box": tuple(box)})


_TEXTS = (
    *("key", "patient", "study", "view", "sex", "photometric", "window", "orientation", "contour"),
    "contour_reason",
    *("source_sha256", "pixel_hash", "perceptual_hash", "duplicate_group"),
)
_COUNTS = ("original_height", "original_width", "bits_stored")


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)
