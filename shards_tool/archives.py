"""Zip and tar files read in place: their films have paths such as `archive.zip!/folder/film.dcm`.

Nothing is written under a member's name, so no name can lead anywhere; names that try are refused all
the same. Compressed tars cannot be read at random, and archives within archives not at all: both are
unpacked once, whole, into a spool folder.
"""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

JOINT = "!/"
"""Between an archive and a path in it."""
MAX_DEPTH = 2
"""A zip in a tar is opened, an archive in that is not."""
MAX_MEMBER_BYTES = 2**30
MAX_MEMBERS = 20_000_000
MAX_UNPACKED_RATIO = 100
"""Of unpacked to packed bytes of a compressed tar, beside a first gigabyte; films reach about 10."""

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, OSError),
    *(NotImplementedError, RuntimeError, KeyError),
)
"""What the standard library raises for a damaged or odd archive."""


@dataclass(frozen=True, kw_only=True)
class Member:
    name: str
    size: int
    refused: str = ""
    """Why this member is not read, or ""."""


class Archive(Protocol):
    def members(self) -> Iterator[Member]: ...

    def read(self, name: str) -> bytes:
        """Raises ValueError for a member that is not there, or larger than it says."""
        ...


def is_archive(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def is_compressed_tar(name: str) -> bool:
    return is_archive(name) and not name.lower().endswith((".zip", ".tar"))


def unpack(packed: BinaryIO, name: str, spooled: BinaryIO, size: int) -> None:
    """Unpack a compressed tar of `size` bytes, as a plain tar.

    Raises:
        ValueError: it unpacks to more than it should.
    """
    left = 2**30 + MAX_UNPACKED_RATIO * size
    with _decompressed(packed, name.lower()) as opened:
        while block := opened.read(2**20):
            left -= len(block)
            if left < 0:
                raise ValueError(f"unpacks to more than {MAX_UNPACKED_RATIO} times its size")
            spooled.write(block)


def _decompressed(packed: BinaryIO, kind: str) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    if kind.endswith("gz"):
        return gzip.GzipFile(fileobj=packed)
    return bz2.BZ2File(packed) if kind.endswith("bz2") else lzma.LZMAFile(packed)


def open_archive(name: str, file: BinaryIO | Path) -> Archive:
    """The archive in a file: a path, or an open file where there is no path.

    Raises:
        ValueError, OSError, and what is in `DAMAGE`: not an archive of its suffix's kind.
    """
    return _Zip(file) if name.lower().endswith(".zip") else _Tar(file)


def _refusal(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or JOINT in name:
        return "its name leads out of its archive"
    return ""


def _plain(name: str) -> str:
    name = name.replace("\\", "/")
    return name.removeprefix("./")


class _Zip:
    def __init__(self, file: BinaryIO | Path) -> None:
        self._zip = zipfile.ZipFile(file)
        self._infos = {_plain(info.filename): info for info in self._zip.infolist() if not info.is_dir()}
        if len(self._infos) > MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} members")

    def members(self) -> Iterator[Member]:
        for name, info in self._infos.items():
            refused = _refusal(name)
            if stat.S_ISLNK(info.external_attr >> 16):
                refused = "link in an archive, not followed"
            elif info.flag_bits & 1:
                refused = "encrypted"
            elif info.file_size > MAX_MEMBER_BYTES:
                refused = f"{info.file_size} bytes, at most {MAX_MEMBER_BYTES}"
            yield Member(name=name, size=info.file_size, refused=refused)

    def read(self, name: str) -> bytes:
        if name not in self._infos:
            raise ValueError("no such member in the archive")
        info = self._infos[name]
        with self._zip.open(info) as member:
            # What a header says about its size is not to be trusted: never more than that is unpacked.
            content = member.read(min(info.file_size, MAX_MEMBER_BYTES) + 1)
        if len(content) != info.file_size:
            raise ValueError("larger or smaller than its archive says")
        return content


class _Tar:
    def __init__(self, file: BinaryIO | Path) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int, str]] = {}
        with self._opened() as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            last = -1
            for info in tar:
                # Python before 3.11.14 loops for ever over a header with a negative size.
                if info.offset <= last or info.size < 0 or len(self._places) >= MAX_MEMBERS:
                    raise ValueError("damaged or hostile tar")
                last = info.offset
                if info.isdir():
                    continue
                refused = _refusal(name := _plain(info.name))
                if not info.isreg() or info.issparse():
                    refused = "link or special file in an archive, not followed"
                elif info.size > MAX_MEMBER_BYTES:
                    refused = f"{info.size} bytes, at most {MAX_MEMBER_BYTES}"
                self._places[name] = info.offset_data, info.size, refused
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue] (it keeps a kilobyte for each)

    def members(self) -> Iterator[Member]:
        for name, (_, size, refused) in self._places.items():
            yield Member(name=name, size=size, refused=refused)

    def read(self, name: str) -> bytes:
        if name not in self._places:
            raise ValueError("no such member in the archive")
        offset, size, _ = self._places[name]
        with self._opened() as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) != size:
            raise ValueError("cut off in its archive")
        return content

    def _opened(self) -> AbstractContextManager[BinaryIO]:
        return self._file.open("rb") if isinstance(self._file, Path) else nullcontext(self._file)
