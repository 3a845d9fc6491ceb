"""Small shard folders, written straight in the format that `shards_tool.schema` describes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards_tool import schema
from shards_tool.tables import file_sha256
from shards_tool.tar import TarWriter

SIDE = 64


@dataclass(frozen=True, kw_only=True)
class Film:
    """One sample's files."""

    image: bytes
    contour: bytes
    box: tuple[int, int, int, int] = (0, 0, SIDE, SIDE)


def grey(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    return pixels


def encoded(suffix: str, pixels: np.ndarray) -> bytes:
    ok, data = cv2.imencode(suffix, pixels)
    assert ok
    return data.tobytes()


def random_film(number: int, *, suffix: str = ".jpg") -> Film:
    rng = np.random.default_rng(number)
    pixels = cv2.resize(
        rng.integers(0, 256, (8, 8), dtype=np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC
    )
    contour = rng.choice(
        np.array([schema.CONTOUR_OUTSIDE, schema.CONTOUR_CHEST, schema.CONTOUR_LUNG], dtype=np.uint8),
        (SIDE // schema.CONTOUR_SCALE,) * 2,
    )
    return Film(image=encoded(suffix, pixels), contour=encoded(".png", contour))


def write_shards(
    root: Path, films: list[Film], *, shard_size: int = 4, numbers: Sequence[int] | None = None
) -> Path:
    """A data set with these films as its training split, in shards numbered 0, 1, ... or as given."""
    folder = root / "train"
    folder.mkdir(parents=True)
    rows, shards = [], []
    for place, first in enumerate(range(0, len(films), shard_size)):
        shard = place if numbers is None else numbers[place]
        members = range(first, min(first + shard_size, len(films)))
        with (folder / schema.shard_name(shard)).open("wb") as file:
            tar = TarWriter(file)
            for number in members:
                film = films[number]
                key = f"{number:0{schema.KEY_LENGTH}x}"
                suffix = "png" if film.image.startswith(b"\x89PNG") else "jpg"
                row: list[object] = [key.encode(), shard]
                for name, data in ((suffix, film.image), ("contour.png", film.contour), ("json", b"{}")):
                    member = tar.add(f"{key}.{name}", data)
                    row += [member.offset, member.size, member.crc32]
                rows.append((*row, film.box))
            digest = tar.finish()
        shards.append(
            {"name": schema.shard_name(shard), "samples": len(members), "bytes": tar.bytes, "sha256": digest}
        )
    np.save(folder / schema.INDEX, np.array(rows, dtype=schema.INDEX_DTYPE))
    manifest = {
        "format_version": schema.FORMAT_VERSION,
        "settings": {"side": SIDE},
        "splits": {"train": {"samples": len(films), "shards": shards}},
        "tables": {f"train/{schema.INDEX}": file_sha256(folder / schema.INDEX)},
    }
    (root / schema.MANIFEST).write_text(json.dumps(manifest))
    return root


@pytest.fixture
def shard_folder(tmp_path: Path) -> Path:
    """24 films in shards of 4."""
    return write_shards(tmp_path / "shards", [random_film(n) for n in range(24)])
