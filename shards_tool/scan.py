"""What each file of the input is, and whose film."""

import dataclasses
import hashlib
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import cast

from shards_tool.contour import MaskFolder
from shards_tool.dicom import Header, plain_text, read_header
from shards_tool.film import FilmRules
from shards_tool.headers import SNIFF_BYTES, describe, sniff
from shards_tool.identities import identity_hashes
from shards_tool.ledger_rows import NOT_READ
from shards_tool.metadata import clean_age, clean_sex
from shards_tool.privacy import keyed_hash, pseudonym
from shards_tool.sources import Found, Root
from shards_tool.workers import Step

MAX_FILE_BYTES = 2**30
"""A film has at most some hundred megabytes; more is no film, and would have to fit into memory."""

_PLAINLY_NO_IMAGE = {
    *(".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xml", ".html", ".htm", ".yaml", ".yml"),
    *(".txt", ".md", ".rst", ".log", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".py", ".sh", ".ini", ".db"),
}
_DICOM_SUFFIXES = {"", ".dcm", ".dicom", ".ima", ".img"}


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """One input file. `state` is "film", "quarantine", "excluded" (both with a reason) or "ignored"
    (plainly no image)."""

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
    identities: frozenset[str] = frozenset()
    """Keyed hashes of the words by which the header names people."""


def named_path(root: Root, path: str) -> PurePosixPath:
    """A file's path from its source's own name on, as contour finders see it."""
    return PurePosixPath(root.name, path)


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What a worker needs to scan files; picklable."""

    roots: tuple[Root, ...]
    key: bytes
    masks: Path | None
    rules: FilmRules

    def __call__(self, batch: list[Found], step: Step) -> list[Scanned]:
        scanned = []
        for found in batch:
            step(found.path)
            scanned.append(self._scan(found))
        return scanned

    def _scan(self, found: Found) -> Scanned:
        if found.refused:
            return Scanned(found=found, state="quarantine", reason=found.refused)
        try:
            return self._scan_file(found, PurePosixPath(found.path))
        except OSError as error:
            self.roots[found.source].raise_if_gone(error)
            return Scanned(found=found, state="quarantine", reason=f"{NOT_READ}{error.strerror or error}")

    def _scan_file(self, found: Found, path: PurePosixPath) -> Scanned:
        root = self.roots[found.source]
        if found.size < 0:
            is_folder = not root.is_remote and root.local(found.path).is_dir()
            kind = "link to a folder, not followed" if is_folder else "not a regular file"
            return Scanned(found=found, state="quarantine", reason=kind)
        if path.name.startswith(".") or path.name == "DICOMDIR":
            return Scanned(found=found, state="ignored", reason="hidden file or media directory")
        if found.size > MAX_FILE_BYTES:
            return Scanned(
                found=found, state="quarantine", reason=f"{found.size} bytes, at most {MAX_FILE_BYTES}"
            )
        try:
            opened = root.open(found.path)
        except ValueError as error:
            return Scanned(found=found, state="quarantine", reason=str(error))
        with opened as file:
            head = file.read(SNIFF_BYTES)
            kind = sniff(head)
            suffix = path.suffix.lower()
            if not kind and suffix in _PLAINLY_NO_IMAGE:
                return Scanned(found=found, state="ignored", reason="no image")
            if not kind and (suffix not in _DICOM_SUFFIXES or not head):
                file.seek(0)
                return Scanned(found=found, state="quarantine", reason=describe(file.read(512)))
            file.seek(0)
            digest = keyed_hash(
                self.key, "file", hashlib.file_digest(cast(BufferedIOBase, file), "sha256").hexdigest()
            )
            file.seek(0)
            if kind in ("png", "jpeg"):
                return self._film(found, digest, None)
            # Old archives hold DICOM without the preamble; so its suffix, or none, is reason to try.
            try:
                header = read_header(file, self.rules, has_preamble=bool(kind))
            except OSError:
                raise
            except Exception as error:  # pydicom raises nearly anything on damaged headers
                reason = f"damaged DICOM header: {plain(error)}" if kind else describe(head)
                return Scanned(found=found, state="quarantine", reason=reason)
        if not kind and not header.has_class:
            return Scanned(found=found, state="quarantine", reason=describe(head))
        if header.is_directory:
            return Scanned(found=found, state="ignored", reason="DICOMDIR")
        if reason := header.why_not or header.why_excluded:
            return Scanned(
                found=found,
                state="quarantine" if header.why_not else "excluded",
                reason=reason,
                transfer_syntax=header.transfer_syntax,
            )
        return self._film(found, digest, header)

    def mask_sha256(self, found: Found) -> str:
        """Of the file's mask; "" where there is none."""
        if self.masks is None or found.refused:  # a refused name may lead anywhere
            return ""
        mask = MaskFolder(self.masks).mask_path(named_path(self.roots[found.source], found.path))
        return hashlib.sha256(mask.read_bytes()).hexdigest() if mask else ""

    def _film(self, found: Found, digest: str, header: Header | None) -> Scanned:
        film = Scanned(found=found, state="film", digest=digest, mask_sha256=self.mask_sha256(found))
        if header is None:
            return film
        return dataclasses.replace(
            film,
            transfer_syntax=header.transfer_syntax,
            patient=pseudonym(self.key, "patient", header.patient) if header.patient else "",
            study=pseudonym(self.key, "study", header.study) if header.study else "",
            view=header.view,
            sex=clean_sex(header.sex),
            age=clean_age(header.age),
            identities=identity_hashes(self.key, header.identities),
        )


def plain(error: Exception) -> str:
    """An exception on one line; of kinds whose text alone says little, the kind as well."""
    words = plain_text(error)[:300]
    if isinstance(error, ValueError | OSError | RuntimeError) and words:
        return words
    return f"{type(error).__name__}: {words}"
