"""The source files behind samples, found by their keys, and shown as they are: no window, no inversion.

A data set does not say where its films came from. Who has the sources and the key can find out.
"""

import hashlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from shards_tool.headers import SNIFF_BYTES, sniff
from shards_tool.privacy import keyed_hash
from shards_tool.schema import KEY_LENGTH
from shards_tool.sources import source_of, walk


@dataclass(frozen=True, kw_only=True)
class Originals:
    sources: Sequence[str | Path]
    key: bytes

    def find(self, keys: set[str]) -> dict[str, np.ndarray]:
        """8-bit grey pictures of the samples with these keys; those that are not found are missing.

        Reads files of the sources until all are found.

        Raises:
            ValueError: no such source.
        """
        found: dict[str, np.ndarray] = {}
        with tempfile.TemporaryDirectory() as spool:
            sources = [source_of(source, Path(spool)) for source in self.sources]
            for file in walk(sources, []):
                if len(found) == len(keys):
                    break
                if file.size < 0 or file.refused:
                    continue
                try:
                    content = sources[file.source].root.read(file.path)
                except (OSError, ValueError):
                    continue  # it was not readable for the build either
                digest = hashlib.sha256(content).hexdigest()
                key = keyed_hash(self.key, "file", digest)[:KEY_LENGTH]
                if key in keys:
                    found[key] = as_it_is(content)
        return found


def as_it_is(content: bytes) -> np.ndarray:
    """Stored values from the lowest to the highest as 8-bit grey, as a simple viewer shows them."""
    if sniff(content[:SNIFF_BYTES]) in ("png", "jpeg"):
        return np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    pixels = pydicom.dcmread(io.BytesIO(content), force=True).pixel_array
    pixels = pixels[0] if pixels.ndim == 4 else pixels
    values = pixels.astype(np.float64)
    values = values.mean(axis=-1) if values.ndim == 3 else values
    low, high = values.min(), values.max()
    return np.rint(255 * (values - low) / max(high - low, 1.0)).astype(np.uint8)
