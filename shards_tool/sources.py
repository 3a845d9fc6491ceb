"""Where films come from: folders, files, globs, lists, media with a DICOMDIR, archives, and fsspec URLs.

A film has a stable path: its source's place on the command line, and its path below that source's
root, which goes on into archives: `2019/january.zip!/0001/film.dcm`.
"""

import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom

from shards_tool.archives import (
    DAMAGE,
    JOINT,
    MAX_DEPTH,
    Archive,
    is_archive,
    is_compressed_tar,
    open_archive,
    unpack,
)
from shards_tool.files import whole_file
from shards_tool.remote import file_system, is_url, open_far, reaching

SPOOL = "spool"
"""Folder beside a build's ledger for what has to be unpacked."""
_LISTS = (".csv", ".tsv", ".jsonl", ".parquet")
_MAGIC = "*?["


@dataclass(frozen=True, kw_only=True)
class Found:
    source: int
    """Place of the source on the command line."""
    path: str
    """Relative to the source's root."""
    size: int
    """Bytes; -1 for what is no regular file."""
    mtime_ns: int
    refused: str = ""
    """Why it is not to be read, where that is known already."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """What the paths of a source are relative to; picklable."""

    place: str
    """A local folder, absolute, or the URL of a folder."""
    spool: Path
    """Folder for what has to be unpacked to be read."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.place).name

    @property
    def is_remote(self) -> bool:
        return is_url(self.place)

    def exists(self) -> bool:
        """Raises OSError where a place on another machine cannot be reached."""
        if self.is_remote:
            files, path = file_system(self.place)
            with reaching(self.place):
                return bool(files.exists(path))
        return Path(self.place).exists()

    def raise_if_gone(self, error: Exception) -> None:
        """A film that cannot be opened is one film; a source that is gone must not empty the data set.

        Raises:
            OSError: the source is not there, or cannot be reached.
        """
        if isinstance(error, OSError) and not self.exists():
            raise OSError(error.errno, "source is gone", self.place) from error

    def local(self, path: str) -> Path:
        """Of a file that is in no archive and on no other machine."""
        return Path(self.place) / path

    def open(self, path: str) -> BinaryIO:
        """A file, or a member of an archive, to read.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        archive, joint, member = path.rpartition(JOINT)
        if joint:
            try:
                return io.BytesIO(_opened(self, archive, self._stamp(archive)).read(member))
            except OSError:
                raise
            except DAMAGE as error:
                raise ValueError(f"in {archive}: {error}") from error
        if self.is_remote:
            return open_far(self.place, path)
        return self.local(path).open("rb")

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read()

    def archive(self, path: str) -> Archive:
        """An archive of this source, opened; the last few stay open."""
        return _opened(self, path, self._stamp(path))

    def _stamp(self, path: str) -> str:
        """Another one when the file has changed."""
        outermost = path.partition(JOINT)[0]
        if self.is_remote:
            files, folder = file_system(self.place)
            with reaching(self.place):
                return json.dumps(files.info(f"{folder}/{outermost}"), default=str, sort_keys=True)
        status = self.local(outermost).stat()
        return f"{status.st_size} {status.st_mtime_ns}"


@functools.lru_cache(maxsize=4)
def _opened(root: Root, path: str, stamp: str) -> Archive:
    if not is_compressed_tar(path) and JOINT not in path:
        return open_archive(path, root.open(path) if root.is_remote else root.local(path))
    name = hashlib.sha256(f"{root.place}\0{path}\0{stamp}".encode("utf-8", "surrogateescape")).hexdigest()
    spooled = root.spool / name
    if not spooled.exists():
        root.spool.mkdir(parents=True, exist_ok=True)
        with root.open(path) as packed, whole_file(spooled) as file:
            if is_compressed_tar(path):
                size = packed.seek(0, os.SEEK_END)
                packed.seek(0)
                unpack(packed, path, file, size)
            else:
                file.write(packed.read())
    return open_archive("x.zip" if path.lower().endswith(".zip") else "x.tar", spooled)


@dataclass(frozen=True, kw_only=True)
class Source:
    kind: Literal["folder", "file", "glob", "list", "dicomdir"]
    text: str
    """Of a local source its absolute path."""
    root: Root


def source_of(text: str | Path, spool: Path) -> Source:
    """What a word on the command line stands for.

    Raises:
        ValueError: there is no such file, folder or match.
        OSError: a place on another machine cannot be reached.
    """
    text = str(text)
    if is_url(text):
        return _remote_source(text.rstrip("/"), spool)
    path = Path(text)
    if path.is_dir():
        return Source(kind="folder", text=str(path.resolve()), root=_root(path.resolve(), spool))
    if path.exists():
        kind: Literal["file", "list", "dicomdir"] = "file"
        if path.name.upper() == "DICOMDIR":
            kind = "dicomdir"
        elif path.suffix.lower() in _LISTS:
            kind = "list"
        return Source(
            kind=kind, text=str(path.absolute()), root=_root(path.absolute().parent.resolve(), spool)
        )
    if any(sign in text for sign in _MAGIC):
        whole = PurePosixPath(path.absolute())
        fixed = next(i for i, part in enumerate(whole.parts) if any(sign in part for sign in _MAGIC))
        return Source(kind="glob", text=str(whole), root=_root(Path(*whole.parts[:fixed]), spool))
    raise ValueError(f"no such source: {text}")


def _root(folder: Path, spool: Path) -> Root:
    return Root(place=str(folder), spool=spool)


def _remote_source(url: str, spool: Path) -> Source:
    if any(sign in url for sign in _MAGIC):
        raise ValueError(f"source {url}: globs work on local paths only; give the folder")
    files, path = file_system(url)
    with reaching(url):
        if not files.exists(path):
            raise ValueError(f"no such source: {url}")
        is_folder = files.isdir(path)
    if is_folder:
        return Source(kind="folder", text=url, root=Root(place=url, spool=spool))
    if url.lower().endswith(_LISTS):
        raise ValueError(f"source {url}: lists of files are read from local paths only")
    return Source(kind="file", text=url, root=Root(place=url.rpartition("/")[0], spool=spool))


def walk(sources: list[Source], exclude: Iterable[Path]) -> Iterator[Found]:
    """Every file of the sources and of their archives, except what lies under an excluded path.

    Links to folders are not followed.

    Raises:
        ValueError: a list or DICOMDIR cannot be read.
        OSError: a folder cannot be listed.
    """
    excluded = {str(path.resolve()) for path in exclude}
    for number, source in enumerate(sources):
        for found in _files(source, excluded):
            found = dataclasses.replace(found, source=number)
            if found.size >= 0 and is_archive(found.path):
                yield from _walk_archive(source.root, found, depth=1)
            else:
                yield found


def _files(source: Source, excluded: set[str]) -> Iterator[Found]:
    root = source.root
    if root.is_remote:
        yield from _walk_remote(source)
    elif source.kind == "folder":
        yield from _walk_folder(Path(root.place), "", excluded)
    elif source.kind == "glob":
        yield from _matching(source, excluded)
    elif source.kind == "list":
        for file in _listed(Path(source.text)):
            yield _found(Path(root.place), os.path.relpath(Path(root.place, file), root.place))
    elif source.kind == "dicomdir":
        for file in _on_medium(Path(source.text)):
            yield _found(Path(root.place), file)
    else:
        yield _found(Path(root.place), Path(source.text).name)


def _walk_folder(root: Path, inside: str, excluded: set[str]) -> Iterator[Found]:
    folders = [inside]
    while folders:
        inside = folders.pop()
        with os.scandir(root / inside) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.path in excluded:
                    continue
                relative = f"{inside}/{entry.name}" if inside else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(relative)
                else:
                    yield _found(root, relative)


def _matching(source: Source, excluded: set[str]) -> Iterator[Found]:
    """Files that match a glob, and those below folders that do, each once."""
    folder = Path(source.root.place)
    seen: set[str] = set()
    for path in sorted(folder.glob(os.path.relpath(source.text, folder))):
        inside = os.path.relpath(path, folder)
        for found in _walk_folder(folder, inside, excluded) if path.is_dir() else [_found(folder, inside)]:
            if found.path not in seen and str(folder / found.path) not in excluded:
                seen.add(found.path)
                yield found


def _found(root: Path, relative: str) -> Found:
    try:
        status = (root / relative).stat()
    except OSError:  # a link to nothing; scanning says so
        return Found(source=0, path=relative, size=-1, mtime_ns=0)
    size = status.st_size if stat.S_ISREG(status.st_mode) else -1
    return Found(source=0, path=relative, size=size, mtime_ns=status.st_mtime_ns)


def _walk_remote(source: Source) -> Iterator[Found]:
    files, base = file_system(source.root.place)
    with reaching(source.root.place):
        if source.kind == "file":
            name = source.text.rpartition("/")[2]
            yield _remote(files.info(f"{base}/{name}"), name)
            return
        for folder, folders, names in files.walk(base, detail=True, on_error="raise"):
            folders_in_order = sorted(folders)
            folders.clear()  # walked on in this order
            folders.update(dict.fromkeys(folders_in_order))
            for name, info in sorted(names.items()):
                # Object stores have no folders; consoles mark them with empty objects of their names.
                if name and not info["name"].endswith("/"):
                    yield _remote(info, f"{folder}/{name}".removeprefix(base).lstrip("/"))


def _remote(info: dict[str, Any], path: str) -> Found:
    says = ("mtime", "LastModified", "last_modified", "created", "ETag", "md5Hash")
    stamp = hashlib.sha256("\0".join(str(info.get(name)) for name in says).encode()).digest()[:7]
    size = info.get("size")
    size = -1 if size is None else int(size)
    return Found(source=0, path=path, size=size, mtime_ns=int.from_bytes(stamp, "big"))


def _walk_archive(root: Root, outer: Found, *, depth: int) -> Iterator[Found]:
    """The members of an archive; the archive itself, refused, where it cannot be read."""
    try:
        archive = root.archive(outer.path)
    except DAMAGE as error:
        root.raise_if_gone(error)
        yield dataclasses.replace(outer, refused=f"archive that cannot be read: {error}")
        return
    for member in archive.members():
        found = dataclasses.replace(
            outer, path=f"{outer.path}{JOINT}{member.name}", size=member.size, refused=member.refused
        )
        if member.refused or not is_archive(member.name):
            yield found
        elif depth == MAX_DEPTH:
            yield dataclasses.replace(found, refused=f"archives within {MAX_DEPTH} others are not opened")
        else:
            yield from _walk_archive(root, found, depth=depth + 1)


def _listed(path: Path) -> Iterator[str]:
    """The `file` column of a list of files.

    Raises:
        ValueError: the list cannot be read, or has no such column.
    """
    try:
        if path.suffix.lower() == ".parquet":
            for batch in pq.ParquetFile(path).iter_batches(columns=["file"]):
                yield from (_local(str(file)) for file in batch.column("file").to_pylist() if file)
            return
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows: Iterable[Any]
            if path.suffix.lower() == ".jsonl":
                rows = (json.loads(line) for line in lines if line.strip())
            else:
                rows = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            for row in rows:
                if not isinstance(row, dict) or "file" not in row:
                    raise ValueError("no column 'file'")
                if row["file"]:
                    yield _local(str(row["file"]))
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise ValueError(
            f"list of files {path}: {error}; wanted a column 'file' with paths beside it"
        ) from error


def _local(file: str) -> str:
    if is_url(file):
        raise ValueError(f"{file}: lists name local files; give the folder of the URLs as a source instead")
    return file


def _on_medium(path: Path) -> Iterator[str]:
    """The images that a DICOMDIR names (PS3.10 8), below its folder.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values, which many media have
            records = pydicom.dcmread(path).DirectoryRecordSequence
            names = [record.get("ReferencedFileID") or () for record in records]
    except Exception as error:  # pydicom raises nearly anything on damaged files
        raise ValueError(f"DICOMDIR {path} cannot be read: {error}") from error
    for name in names:
        file = name if isinstance(name, str) else "/".join(str(part) for part in name)
        if file and ".." not in PurePosixPath(file).parts and not file.startswith("/"):
            yield file
