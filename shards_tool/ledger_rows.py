"""The tables of the ledger, and what their rows stand for."""

import json
import os
from dataclasses import dataclass

TABLES = """
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS input (
    source INT, path BLOB, name TEXT, size INT, mtime_ns INT, seen INT,
    state TEXT, reason TEXT, transfer_syntax TEXT, digest TEXT, mask_sha256 TEXT,
    patient TEXT, study TEXT, view TEXT, sex TEXT, age INT, identities TEXT,
    PRIMARY KEY (source, path)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS input_name ON input (name);
CREATE TABLE IF NOT EXISTS meta (
    "table" INT, absolute TEXT, file TEXT, name TEXT, row TEXT, used INT, PRIMARY KEY (absolute, "table"));
CREATE INDEX IF NOT EXISTS meta_file ON meta (file);
CREATE INDEX IF NOT EXISTS meta_name ON meta (name, "table");
CREATE TABLE IF NOT EXISTS sample (
    key TEXT PRIMARY KEY, digest TEXT, mask_sha256 TEXT, source INT, path BLOB, transfer_syntax TEXT,
    split TEXT, duplicate_group TEXT,
    patient TEXT, study TEXT, view TEXT, sex TEXT, age INT, labels TEXT, reports TEXT,
    scrubbed INT);
CREATE INDEX IF NOT EXISTS sample_order ON sample (split, key);
CREATE TABLE IF NOT EXISTS unplanned (
    source INT, path BLOB, outcome TEXT, reason TEXT, transfer_syntax TEXT);
CREATE INDEX IF NOT EXISTS unplanned_reason ON unplanned (reason);
CREATE TABLE IF NOT EXISTS twin (key TEXT, patient TEXT, PRIMARY KEY (key, patient)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS made (
    digest TEXT, mask_sha256 TEXT, view TEXT, pack TEXT,
    image_offset INT, image_size INT, image_crc32 INT,
    contour_offset INT, contour_size INT, contour_crc32 INT,
    facts TEXT, outcome TEXT, reason TEXT, PRIMARY KEY (digest, mask_sha256, view)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shard (
    split TEXT, number INT, plan TEXT, samples INT, bytes INT, sha256 TEXT, PRIMARY KEY (split, number));
CREATE TABLE IF NOT EXISTS row (
    split TEXT, shard INT, place INT, entry BLOB, record TEXT,
    PRIMARY KEY (split, shard, place)) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A film as its header and the tables describe it, and its place in the data set."""

    key: str
    digest: str
    mask_sha256: str
    source: int
    path: str
    transfer_syntax: str
    split: str = ""
    """Until the duplicates are known, what the tables ask for, as in `published.STRICTNESS`."""
    duplicate_group: str = ""
    patient: str
    study: str
    view: str
    sex: str
    age: int | None
    labels: dict[str, float]
    reports: dict[str, str]
    scrubbed: int


@dataclass(frozen=True, kw_only=True)
class ToMake:
    """A film whose pixels have not been read yet, and its file's stamp when it was scanned."""

    film: Planned
    size: int
    mtime_ns: int


NOT_READ = "cannot be read: "
"""How the reasons begin that lie in the place of a file and not in its content."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Bytes in a file."""

    offset: int
    size: int
    crc32: int


_NOTHING = Piece(offset=0, size=0, crc32=0)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A film that a worker has read: encoded in a pack, or the reason why not."""

    digest: str
    mask_sha256: str
    view: str
    """As it was known from header and tables."""
    pack: str = ""
    """Relative to the output folder."""
    image: Piece = _NOTHING
    contour: Piece = _NOTHING
    facts: str = ""
    """JSON: the fields of the record that the pixels decide."""
    outcome: str = ""
    """"quarantine" or "excluded" where it is in no pack."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """One line of the quarantine table."""

    source: int
    path: str
    outcome: str = "quarantine"
    """"quarantine" (cannot be used), "excluded" (a rule leaves it out) or "duplicate"."""
    reason: str
    transfer_syntax: str


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A finished shard."""

    split: str
    number: int
    plan: str
    samples: int
    bytes: int
    sha256: str


def planned_of(row: tuple) -> Planned:
    key, digest, mask, source, path, syntax, split, group, *about, labels, reports, scrubbed = row
    patient, study, view, sex, age = about
    return Planned(
        key=key,
        digest=digest,
        mask_sha256=mask,
        source=source,
        path=os.fsdecode(path),
        transfer_syntax=syntax,
        split=split,
        duplicate_group=group,
        patient=patient,
        study=study,
        view=view,
        sex=sex,
        age=age,
        labels=json.loads(labels),
        reports=json.loads(reports),
        scrubbed=scrubbed,
    )


def made_of(row: tuple) -> Made:
    digest, mask, view, pack, *places, facts, outcome, reason = row
    image, contour = (Piece(offset=o, size=s, crc32=c) for o, s, c in (places[:3], places[3:]))
    return Made(
        digest=digest,
        mask_sha256=mask,
        view=view,
        pack=pack,
        image=image,
        contour=contour,
        facts=facts,
        outcome=outcome,
        reason=reason,
    )


def shard_file_of(row: tuple) -> ShardFile:
    split, number, plan, samples, size, sha256 = row
    return ShardFile(split=split, number=number, plan=plan, samples=samples, bytes=size, sha256=sha256)
