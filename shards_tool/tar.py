"""A deterministic WebDataset tar and DALI's index of it."""

import hashlib
import tarfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

IDX_VERSION = "v1.2"
"""First word of an index in the form of DALI's `wds2idx`."""


@dataclass(frozen=True, kw_only=True)
class Member:
    name: str
    offset: int
    """Bytes from the start of the tar to the first byte of the file."""
    size: int
    crc32: int


class TarWriter:
    """Plain ustar with everything fixed that could differ between two builds: times, owners, modes.

    `tarfile` writes each header; the offsets, sizes and checksums are kept along the way.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, content: bytes) -> Member:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.mode = 0o444
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        member = Member(name=name, offset=self.bytes, size=len(content), crc32=zlib.crc32(content))
        self._write(content)
        self._write(b"\0" * (-len(content) % tarfile.BLOCKSIZE))
        return member

    def finish(self) -> str:
        """Write the end of the archive, padded to a whole record as tar does; returns the SHA-256."""
        self._write(b"\0" * (2 * tarfile.BLOCKSIZE))
        self._write(b"\0" * (-self.bytes % tarfile.RECORDSIZE))
        return self._hash.hexdigest()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self.bytes += len(content)


def idx_text(samples: list[list[Member]]) -> str:
    """A line per sample: extension, offset, size, name of each file, exactly as `wds2idx` writes it."""
    lines = [f"{IDX_VERSION} {len(samples)}"]
    for members in samples:
        fields = (f"{m.name.split('.', 1)[1]} {m.offset} {m.size} {m.name}" for m in members)
        lines.append(" ".join(fields))
    return "\n".join(lines) + "\n"
