"""Finding the input: which files there are, what each is, and whose film it is."""

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards_tool.contour import MaskFolder
from shards_tool.dicom import Header, plain_text, read_header
from shards_tool.headers import SNIFF_BYTES, describe, sniff
from shards_tool.metadata import clean_age, clean_sex, clean_view
from shards_tool.privacy import keyed_hash, pseudonym
from shards_tool.workers import Step

MAX_FILE_BYTES = 2**30
"""A film has at most some hundred megabytes; more is no film, and would have to fit into memory."""

_PLAINLY_NO_IMAGE = {
    *(".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xml", ".html", ".htm", ".yaml", ".yml"),
    *(".txt", ".md", ".rst", ".log", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".py", ".sh", ".ini", ".db"),
}
_DICOM_SUFFIXES = {"", ".dcm", ".dicom", ".ima", ".img"}


@dataclass(frozen=True, kw_only=True)
class Found:
    source: int
    """Place of the source on the command line."""
    path: str
    """Relative to the source."""
    size: int
    """Bytes; -1 for what is no regular file."""
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """One input file. `state` is "film", "quarantine" (with a reason) or "ignored" (plainly no image)."""

    found: Found
    state: str
    reason: str = ""
    transfer_syntax: str = ""
    digest: str = ""
    """Keyed hash of the file's SHA-256."""
    mask_sha256: str = ""
    patient: str = ""
    """Pseudonym of what the header says, or "" where it says nothing."""
    study: str = ""
    view: str = ""
    sex: str = ""
    age: int | None = None


def source_root(source: Path) -> Path:
    """The folder that the paths of a source are relative to; a source may be a single file."""
    return source if source.is_dir() else source.parent


def named_path(root: Path, path: str) -> PurePosixPath:
    """A file's path from its source's own name on, as contour finders see it."""
    return PurePosixPath(root.name, path)


def walk(sources: list[Path], exclude: Iterable[Path]) -> Iterator[Found]:
    """Every file of the sources, except what lies under an excluded path. Links to folders are not followed.

    Raises:
        ValueError: no such source.
    """
    excluded = {str(path.resolve()) for path in exclude}
    for number, source in enumerate(sources):
        if not source.exists():
            raise ValueError(f"no such source: {source}")
        if source.is_dir():
            yield from _walk_folder(source.resolve(), number, "", excluded)
        else:
            yield _found(source, number, source.name)


def _walk_folder(root: Path, number: int, inside: str, excluded: set[str]) -> Iterator[Found]:
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
                    yield _found(Path(entry.path), number, relative)


def _found(path: Path, number: int, relative: str) -> Found:
    try:
        status = path.stat()
    except OSError:  # a link to nothing; scanning says so
        return Found(source=number, path=relative, size=-1, mtime_ns=0)
    size = status.st_size if stat.S_ISREG(status.st_mode) else -1
    return Found(source=number, path=relative, size=size, mtime_ns=status.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What a worker needs to scan files; picklable."""

    roots: tuple[Path, ...]
    key: bytes
    masks: Path | None

    def __call__(self, batch: list[Found], step: Step) -> list[Scanned]:
        scanned = []
        for found in batch:
            step(found.path)
            scanned.append(self._scan(found))
        return scanned

    def _scan(self, found: Found) -> Scanned:
        path = self.roots[found.source] / found.path
        try:
            return self._scan_file(found, path)
        except OSError as error:
            return Scanned(
                found=found, state="quarantine", reason=f"cannot be read: {error.strerror or error}"
            )

    def _scan_file(self, found: Found, path: Path) -> Scanned:
        if found.size < 0:
            kind = "link to a folder, not followed" if path.is_dir() else "not a regular file"
            return Scanned(found=found, state="quarantine", reason=kind)
        if path.name.startswith(".") or path.name == "DICOMDIR":
            return Scanned(found=found, state="ignored", reason="hidden file or media directory")
        if found.size > MAX_FILE_BYTES:
            return Scanned(
                found=found, state="quarantine", reason=f"{found.size} bytes, at most {MAX_FILE_BYTES}"
            )
        with path.open("rb") as file:
            head = file.read(SNIFF_BYTES)
            kind = sniff(head)
            suffix = path.suffix.lower()
            if not kind and suffix in _PLAINLY_NO_IMAGE:
                return Scanned(found=found, state="ignored", reason="no image")
            if not kind and (suffix not in _DICOM_SUFFIXES or not head):
                file.seek(0)
                return Scanned(found=found, state="quarantine", reason=describe(file.read(512)))
            file.seek(0)
            digest = keyed_hash(self.key, "file", hashlib.file_digest(file, "sha256").hexdigest())
            file.seek(0)
            if kind in ("png", "jpeg"):
                return self._film(found, digest, None)
            # Old archives hold DICOM without the preamble; so its suffix, or none, is reason to try.
            try:
                header = read_header(file, has_preamble=bool(kind))
            except OSError:
                raise
            except Exception as error:  # pydicom raises nearly anything on damaged headers
                reason = f"damaged DICOM header: {plain(error)}" if kind else describe(head)
                return Scanned(found=found, state="quarantine", reason=reason)
        if not kind and not header.has_class:
            return Scanned(found=found, state="quarantine", reason=describe(head))
        if header.is_directory:
            return Scanned(found=found, state="ignored", reason="DICOMDIR")
        if header.why_not:
            return Scanned(
                found=found,
                state="quarantine",
                reason=header.why_not,
                transfer_syntax=header.transfer_syntax,
            )
        return self._film(found, digest, header)

    def _film(self, found: Found, digest: str, header: Header | None) -> Scanned:
        mask_sha256 = ""
        if self.masks is not None:
            mask = MaskFolder(self.masks).mask_path(named_path(self.roots[found.source], found.path))
            mask_sha256 = hashlib.sha256(mask.read_bytes()).hexdigest() if mask else ""
        film = Scanned(found=found, state="film", digest=digest, mask_sha256=mask_sha256)
        if header is None:
            return film
        return dataclasses.replace(
            film,
            transfer_syntax=header.transfer_syntax,
            patient=pseudonym(self.key, "patient", header.patient) if header.patient else "",
            study=pseudonym(self.key, "study", header.study) if header.study else "",
            view=clean_view(header.view),
            sex=clean_sex(header.sex),
            age=clean_age(header.age),
        )


def plain(error: Exception) -> str:
    """An exception on one line; of kinds whose text alone says little, the kind as well."""
    words = plain_text(error)[:300]
    if isinstance(error, ValueError | OSError | RuntimeError) and words:
        return words
    return f"{type(error).__name__}: {words}"
