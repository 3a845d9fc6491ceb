"""Files on other machines, through fsspec: object stores and whatever else it has a package for.

Each package has errors of its own, which are no OSErrors (botocore's, say, where no credentials are
found or nobody answers). Here they become OSErrors that name the place, so that a store that is gone
for a while stops a build, as a folder that is gone does, and costs no films.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

_BUFFER = 2**18


def is_url(place: str) -> bool:
    return "://" in place


def was_url(path: object) -> bool:
    """Whether a path was given as a URL: `Path` makes `s3:/x` of `s3://x`."""
    scheme, colon, rest = str(path).partition(":/")
    return bool(colon and scheme.isalnum() and rest) and "/" not in scheme


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        ValueError: no such protocol, or its package is not installed; says which.
    """
    import fsspec

    try:
        # Listings are not kept: a million entries would fill the memory, and files may be replaced meanwhile.
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ValueError(f"source {url}: {error}") from error
    return files, str(path).rstrip("/")


@contextlib.contextmanager
def reaching(place: str) -> Iterator[None]:
    """Errors of any file system's package as OSErrors."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # each package has its own
        raise OSError(f"{place}: {error}") from error


def open_far(folder: str, path: str) -> BinaryIO:
    """A file below the folder of a URL, to read.

    Raises:
        OSError: it is not there, or the place cannot be reached; so does reading.
    """
    files, base = file_system(folder)
    with reaching(folder):
        return io.BufferedReader(_FarFile(files.open(f"{base}/{path}", "rb"), folder, path), _BUFFER)


class _FarFile(io.RawIOBase):
    def __init__(self, file: BinaryIO, place: str, path: str) -> None:
        self._file, self._place = file, place
        self.name = f"{place}/{path}"  # pydicom asks every buffered file for it

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 (any buffer)
        with reaching(self._place):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        with reaching(self._place):
            return self._file.read()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with reaching(self._place):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
