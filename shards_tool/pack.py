"""One worker makes one pack: read, decode, letterbox and encode each film, once, before its place is known.

Which films are duplicates is only known from their pixels, and the splits depend on that. So films
are made first and wait in packs, encoded; the plan then settles their places, and shards are copies
of what is in the packs. Decoding twice instead, first to compare and then to write, would nearly
double the work; this costs the data set's size once more on the disk while a build is under way.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from shards_tool.archives import JOINT
from shards_tool.burned_in import find_writing, mask_writing
from shards_tool.contour import ContourFinder, contour_finder, model_sha256
from shards_tool.files import whole_file
from shards_tool.film import ExcludedError, FilmRules, Grey
from shards_tool.ledger_rows import NOT_READ, Made, Piece, ToMake
from shards_tool.letterbox import letterbox, letterbox_contour
from shards_tool.likeness import look_of
from shards_tool.privacy import keyed_hash
from shards_tool.reading import read_film
from shards_tool.scan import named_path, plain
from shards_tool.settings import BuildStoppedError
from shards_tool.sources import Root
from shards_tool.workers import Step

PNG_COMPRESSION = 3
"""zlib level: higher ones cost several times the time for a few percent of a noisy film's size."""


@dataclass(frozen=True, kw_only=True)
class PackTask:
    name: str
    """Relative to the output folder."""
    films: list[ToMake]
    crashed: frozenset[str] = frozenset()
    """Keys of films that are not to be tried again."""


@dataclass(frozen=True, kw_only=True)
class FilmMaker:
    """What a worker needs to make films; picklable."""

    roots: tuple[Root, ...]
    out: Path
    key: bytes
    side: int
    format: Literal["jpeg", "png16"]
    quality: int
    contour: str
    contour_model: str
    """SHA-256 of the model's file, which must not change during the build."""
    rules: FilmRules

    def __call__(self, task: PackTask, step: Step) -> list[Made]:
        """Write a pack under its final name, and say where each film is in it, or why it is not.

        Raises:
            OSError: the output cannot be written, or a whole source has gone away.
            BuildStoppedError: the contour model is another one by now.
        """
        cv2.setNumThreads(1)  # the processes are the parallelism
        finder = contour_finder(self.contour)
        if model_sha256(finder) != self.contour_model:
            raise BuildStoppedError(
                f"--contour {self.contour}: the model's file changed during the build; put the old one back "
                "and run the same command to go on, or give another --out"
            )
        made: list[Made] = []
        with whole_file(self.out / task.name) as file:

            def write(content: bytes) -> Piece:
                piece = Piece(offset=file.tell(), size=len(content), crc32=zlib.crc32(content))
                file.write(content)
                return piece

            for to_make in task.films:
                film = to_make.film
                step(film.key)
                nothing = Made(digest=film.digest, mask_sha256=film.mask_sha256, view=film.view)
                try:
                    if film.key in task.crashed:
                        raise ValueError("two workers died decoding it")
                    image, contour, facts = self._make(to_make, finder)
                except Exception as error:
                    # Decoders raise nearly anything on damaged input; it costs this film only.
                    self.roots[film.source].raise_if_gone(error)
                    made.append(replace(nothing, outcome=_outcome(error), reason=_reason(error)))
                    continue
                made.append(
                    replace(
                        nothing,
                        pack=task.name,
                        image=write(image),
                        contour=write(contour),
                        facts=json.dumps(facts, ensure_ascii=False, sort_keys=True),
                    )
                )
        return made

    def _make(self, to_make: ToMake, finder: ContourFinder) -> tuple[bytes, bytes, dict[str, Any]]:
        """Image, contour, and the fields of the record that the pixels decide."""
        planned = to_make.film
        content = self.roots[planned.source].read(planned.path)
        if not self._is_unchanged(to_make, content):
            raise ValueError("the file changed during the build")
        film = read_film(content, self.rules, view=planned.view)
        contour = finder(film.pixels_HW, named_path(self.roots[planned.source], planned.path))
        if self.rules.sideways == "exclude" and contour.orientation not in ("", "upright"):
            raise ExcludedError(f"does not stand upright ({contour.orientation})")
        canvas_HW, box = letterbox(film.pixels_HW, self.side)
        height, width = film.pixels_HW.shape
        content_HW = canvas_HW[box.top : box.bottom, box.left : box.right]
        writing = find_writing(content_HW)
        if self.rules.writing == "mask":
            content_HW[:] = mask_writing(content_HW, writing)
        look = look_of(content_HW)
        stored_HW = as_8_bits(canvas_HW) if self.format == "jpeg" else as_16_bits(canvas_HW)
        facts = {
            "original_height": height,
            "original_width": width,
            "bits_stored": film.bits_stored,
            "photometric": film.photometric,
            "window": film.window,
            "repairs": list(film.repairs),
            "orientation": contour.orientation or film.orientation,
            "burned_in": film.burned_in or bool(writing),
            "box": box.as_tuple(),
            "contour": contour.method,
            "contour_certainty": contour.certainty,
            "contour_reason": contour.reason,
            "pixel_hash": keyed_hash(self.key, "pixels", hashlib.sha256(stored_HW.data).hexdigest()),
            "perceptual_hash": look.hex(),
        }
        image = encode_jpeg(stored_HW, self.quality) if self.format == "jpeg" else encode_png16(stored_HW)
        return image, _encode(letterbox_contour(contour.mask_hw, height, width, self.side), ".png", []), facts

    def _is_unchanged(self, to_make: ToMake, content: bytes) -> bool:
        """Whether this is what the scan saw: by size and time, as for resuming, or else by the hash."""
        film, root = to_make.film, self.roots[to_make.film.source]
        if not root.is_remote and JOINT not in film.path and len(content) == to_make.size:
            status = root.local(film.path).stat()
            if (status.st_size, status.st_mtime_ns) == (to_make.size, to_make.mtime_ns):
                return True
        return keyed_hash(self.key, "file", hashlib.sha256(content).hexdigest()) == film.digest


def as_8_bits(pixels_HW: Grey) -> Grey:
    return pixels_HW if pixels_HW.dtype == np.uint8 else cv2.convertScaleAbs(pixels_HW, alpha=1 / 257)


def as_16_bits(pixels_HW: Grey) -> Grey:
    return pixels_HW if pixels_HW.dtype == np.uint16 else pixels_HW.astype(np.uint16) * np.uint16(257)


def encode_jpeg(pixels_HW: Grey, quality: int) -> bytes:
    return _encode(pixels_HW, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png16(pixels_HW: Grey) -> bytes:
    return _encode(pixels_HW, ".png", [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])


def _encode(pixels_HW: Grey, suffix: str, options: list[int]) -> bytes:
    done, code = cv2.imencode(suffix, pixels_HW, options)
    assert done
    return code.tobytes()


def _outcome(error: Exception) -> str:
    return "excluded" if isinstance(error, ExcludedError) else "quarantine"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{NOT_READ}{error.strerror}"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return plain(error)
