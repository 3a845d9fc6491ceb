"""The build's memory: one SQLite file in the output folder, gone when the data set is complete.

It knows every input, every planned sample and every finished shard, so that memory does not grow
with the archive and a killed build goes on. Only the parent process opens it. Identities do not
enter it: headers and tables are pseudonymised before.
"""

import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards_tool.metadata import MetaRow
from shards_tool.scan import Found, Scanned

_SCHEMA = """
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS input (
    source INT, path BLOB, name TEXT, size INT, mtime_ns INT, seen INT,
    state TEXT, reason TEXT, transfer_syntax TEXT, digest TEXT, mask_sha256 TEXT,
    patient TEXT, study TEXT, view TEXT, sex TEXT, age INT,
    PRIMARY KEY (source, path)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS input_name ON input (name);
CREATE TABLE IF NOT EXISTS meta (absolute TEXT PRIMARY KEY, file TEXT, name TEXT, row TEXT, used INT);
CREATE INDEX IF NOT EXISTS meta_file ON meta (file);
CREATE INDEX IF NOT EXISTS meta_name ON meta (name);
CREATE TABLE IF NOT EXISTS sample (
    key TEXT PRIMARY KEY, digest TEXT, mask_sha256 TEXT, source INT, path BLOB, transfer_syntax TEXT,
    split TEXT, patient TEXT, study TEXT, view TEXT, sex TEXT, age INT, labels TEXT, reports TEXT);
CREATE INDEX IF NOT EXISTS sample_order ON sample (split, key);
CREATE TABLE IF NOT EXISTS duplicate (source INT, path BLOB, key TEXT, transfer_syntax TEXT);
CREATE TABLE IF NOT EXISTS shard (
    split TEXT, number INT, plan TEXT, samples INT, bytes INT, sha256 TEXT, PRIMARY KEY (split, number));
CREATE TABLE IF NOT EXISTS row (
    split TEXT, shard INT, place INT, entry BLOB, record TEXT,
    PRIMARY KEY (split, shard, place)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failure (
    split TEXT, shard INT, source INT, path BLOB, reason TEXT, transfer_syntax TEXT);
"""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One sample before its pixels are read."""

    key: str
    digest: str
    mask_sha256: str
    source: int
    path: str
    transfer_syntax: str
    split: str
    patient: str
    study: str
    view: str
    sex: str
    age: int | None
    labels: dict[str, float]
    reports: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """One line of the quarantine table."""

    source: int
    path: str
    reason: str
    transfer_syntax: str


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A finished shard; `samples` is 0 and there is no file where none of its films could be read."""

    split: str
    number: int
    plan: str
    samples: int
    bytes: int
    sha256: str


class Ledger:
    def __init__(self, path: Path) -> None:
        # SQLite's own locks are left out: network file systems often have none, and the build has a lock.
        self._db = sqlite3.connect(f"{path.resolve().as_uri()}?nolock=1", uri=True)
        self._db.execute("PRAGMA journal_mode = TRUNCATE")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def commit(self) -> None:
        self._db.commit()

    # Settings

    def settings(self) -> dict[str, object]:
        return {
            name: json.loads(value) for name, value in self._db.execute("SELECT name, value FROM setting")
        }

    def set_settings(self, settings: dict[str, object]) -> None:
        rows = [(name, json.dumps(value)) for name, value in settings.items()]
        self._db.executemany("INSERT OR REPLACE INTO setting VALUES (?, ?)", rows)
        self.commit()

    # Inputs

    def forget_seen(self) -> None:
        self._db.execute("UPDATE input SET seen = 0")

    def is_known(self, found: Found) -> bool:
        """Whether the file was scanned before and has not changed since; it then counts as seen."""
        cursor = self._db.execute(
            "UPDATE input SET seen = 1 WHERE source = ? AND path = ? AND size = ? AND mtime_ns = ?",
            (found.source, os.fsencode(found.path), found.size, found.mtime_ns),
        )
        return cursor.rowcount == 1

    def add_inputs(self, batch: Iterable[Scanned]) -> None:
        rows = [
            (
                *(scanned.found.source, os.fsencode(scanned.found.path), _name(scanned.found.path)),
                *(scanned.found.size, scanned.found.mtime_ns, 1, scanned.state, scanned.reason),
                *(
                    scanned.transfer_syntax,
                    scanned.digest,
                    scanned.mask_sha256,
                    scanned.patient,
                    scanned.study,
                ),
                *(scanned.view, scanned.sex, scanned.age),
            )
            for scanned in batch
        ]
        self._db.executemany(f"INSERT OR REPLACE INTO input VALUES ({', '.join('?' * 16)})", rows)
        self.commit()

    def forget_unseen(self) -> None:
        """Drop files that an earlier, interrupted run knew and that are gone."""
        self._db.execute("DELETE FROM input WHERE seen = 0")
        self.commit()

    def count_inputs(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT state, COUNT(*) FROM input GROUP BY state ORDER BY state"))

    def films(self) -> Iterator[Scanned]:
        """All films in the order of (source, path)."""
        query = """
            SELECT source, path, size, mtime_ns, transfer_syntax, digest, mask_sha256,
                   patient, study, view, sex, age
            FROM input WHERE state = 'film' ORDER BY source, path"""
        for row in self._db.execute(query):
            source, path, size, mtime_ns, syntax, digest, mask, patient, study, view, sex, age = row
            yield Scanned(
                found=Found(source=source, path=os.fsdecode(path), size=size, mtime_ns=mtime_ns),
                state="film",
                transfer_syntax=syntax,
                digest=digest,
                mask_sha256=mask,
                patient=patient,
                study=study,
                view=view,
                sex=sex,
                age=age,
            )

    # Tables of labels and reports

    def clear_meta(self) -> None:
        self._db.execute("DELETE FROM meta")

    def add_meta(self, absolute: Path, file: str, row: MetaRow) -> None:
        known = self._db.execute(
            "SELECT row FROM meta WHERE absolute = ?", (_storable(str(absolute)),)
        ).fetchone()
        if known is not None:
            row = MetaRow(**json.loads(known[0])).merged(row)
        self._db.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?, ?, 0)",
            (_storable(str(absolute)), file, _name(file), json.dumps(dataclasses.asdict(row))),
        )

    def meta_of(self, absolute: Path, relative: str) -> MetaRow:
        """What the tables say about a file: found by its place beside the table, its path, or its name."""
        name = _name(relative)
        for where, value in (("absolute", _storable(str(absolute))), ("file", _storable(relative))):
            rows = self._db.execute(f"SELECT absolute, row FROM meta WHERE {where} = ?", (value,)).fetchall()
            if rows:
                return self._merge(rows)
        rows = self._db.execute("SELECT absolute, row FROM meta WHERE name = ? LIMIT 2", (name,)).fetchall()
        if len(rows) == 1:
            # A name may stand for several files; then it says nothing about any one of them.
            namesakes = self._db.execute("SELECT 1 FROM input WHERE name = ? LIMIT 2", (name,)).fetchall()
            if len(namesakes) == 1:
                return self._merge(rows)
        return MetaRow()

    def _merge(self, rows: list[tuple[str, str]]) -> MetaRow:
        merged = MetaRow()
        for absolute, row in rows:
            self._db.execute("UPDATE meta SET used = 1 WHERE absolute = ?", (absolute,))
            merged = merged.merged(MetaRow(**json.loads(row)))
        return merged

    def count_meta(self) -> tuple[int, int]:
        """Rows of the tables, and those of them whose file was not found."""
        return self._db.execute("SELECT COUNT(*), COALESCE(SUM(used = 0), 0) FROM meta").fetchone()

    # The plan

    def clear_plan(self) -> None:
        self._db.execute("DELETE FROM sample")
        self._db.execute("DELETE FROM duplicate")

    def add_sample(self, sample: Planned) -> None:
        """Plan a sample, or note it as a duplicate where its bytes are already planned."""
        cursor = self._db.execute(
            f"INSERT OR IGNORE INTO sample VALUES ({', '.join('?' * 14)})",
            (
                *(sample.key, sample.digest, sample.mask_sha256, sample.source, os.fsencode(sample.path)),
                *(
                    sample.transfer_syntax,
                    sample.split,
                    sample.patient,
                    sample.study,
                    sample.view,
                    sample.sex,
                ),
                *(sample.age, _json(sample.labels), _json(sample.reports)),
            ),
        )
        if cursor.rowcount == 0:
            self._db.execute(
                "INSERT INTO duplicate VALUES (?, ?, ?, ?)",
                (sample.source, os.fsencode(sample.path), sample.key, sample.transfer_syntax),
            )

    def count_samples(self) -> int:
        return self._db.execute("SELECT COUNT(*) FROM sample").fetchone()[0]

    def planned_shards(self, split: str, size: int) -> Iterator[list[Planned]]:
        """The samples of a split in the order of their keys, cut into shards."""
        after = ""
        while True:
            rows = self._db.execute(
                "SELECT * FROM sample WHERE split = ? AND key > ? ORDER BY key LIMIT ?", (split, after, size)
            ).fetchall()
            if not rows:
                return
            yield [_planned(row) for row in rows]
            after = rows[-1][0]

    # Shards

    def shard(self, split: str, number: int) -> ShardFile | None:
        row = self._db.execute(
            "SELECT * FROM shard WHERE split = ? AND number = ?", (split, number)
        ).fetchone()
        return _shard_file(row) if row else None

    def forget_shard(self, split: str, number: int) -> None:
        self._forget(split, number, "=")

    def forget_shards_from(self, split: str, number: int) -> None:
        """Drop the shards past the end of a plan that has become shorter."""
        self._forget(split, number, ">=")

    def _forget(self, split: str, number: int, relation: str) -> None:
        for table, column in (("shard", "number"), ("row", "shard"), ("failure", "shard")):
            self._db.execute(
                f"DELETE FROM {table} WHERE split = ? AND {column} {relation} ?", (split, number)
            )
        self.commit()

    def add_shard(self, shard: ShardFile, rows: list[tuple[bytes, str]], failures: list[LeftOut]) -> None:
        """Note a finished shard with its samples (index entry, record) and the films that failed, at once."""
        where = shard.split, shard.number
        self._db.execute("INSERT INTO shard VALUES (?, ?, ?, ?, ?, ?)", dataclasses.astuple(shard))
        self._db.executemany(
            "INSERT INTO row VALUES (?, ?, ?, ?, ?)",
            [(*where, place, entry, record) for place, (entry, record) in enumerate(rows)],
        )
        self._db.executemany(
            "INSERT INTO failure VALUES (?, ?, ?, ?, ?, ?)",
            [(*where, f.source, os.fsencode(f.path), f.reason, f.transfer_syntax) for f in failures],
        )
        self.commit()

    def shards(self, split: str) -> list[ShardFile]:
        query = "SELECT * FROM shard WHERE split = ? AND samples > 0 ORDER BY number"
        return [_shard_file(row) for row in self._db.execute(query, (split,))]

    def rows(self, split: str, shard: int) -> list[tuple[bytes, str]]:
        """Index entry and record of every sample of a shard."""
        query = "SELECT entry, record FROM row WHERE split = ? AND shard = ? ORDER BY place"
        return self._db.execute(query, (split, shard)).fetchall()

    def left_out(self) -> Iterator[LeftOut]:
        """The quarantine table: by scanning, as duplicates, by decoding."""
        query = """
            SELECT source, path, reason, transfer_syntax FROM input WHERE state = 'quarantine'
            UNION ALL SELECT source, path, 'duplicate of ' || key, transfer_syntax FROM duplicate
            UNION ALL SELECT source, path, reason, transfer_syntax FROM failure
            ORDER BY source, path"""
        for source, path, reason, syntax in self._db.execute(query):
            yield LeftOut(source=source, path=os.fsdecode(path), reason=reason, transfer_syntax=syntax)


def _name(path: str) -> str:
    return _storable(path.replace("\\", "/").rsplit("/", 1)[-1])


def _storable(path: str) -> str:
    """SQLite's text is UTF-8, a file's name on Linux need not be."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _planned(row: tuple) -> Planned:
    key, digest, mask, source, path, syntax, split, patient, study, view, sex, age, labels, reports = row
    return Planned(
        key=key,
        digest=digest,
        mask_sha256=mask,
        source=source,
        path=os.fsdecode(path),
        transfer_syntax=syntax,
        split=split,
        patient=patient,
        study=study,
        view=view,
        sex=sex,
        age=age,
        labels=json.loads(labels),
        reports=json.loads(reports),
    )


def _shard_file(row: tuple) -> ShardFile:
    split, number, plan, samples, size, sha256 = row
    return ShardFile(split=split, number=number, plan=plan, samples=samples, bytes=size, sha256=sha256)
