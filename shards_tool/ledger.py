"""The build's memory: one SQLite file in the output folder, gone when the data set is complete.

It knows every input, every planned sample and every finished shard, so that memory does not grow
with the archive and a killed build goes on. Only the parent process opens it. Identities do not
enter it: headers and tables are pseudonymised before.
"""

import dataclasses
import itertools
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from shards_tool.ledger_meta import MetaTables, name_of
from shards_tool.ledger_rows import (
    NOT_READ,
    TABLES,
    LeftOut,
    Made,
    Planned,
    ShardFile,
    ToMake,
    made_of,
    planned_of,
    shard_file_of,
)
from shards_tool.published import STRICTNESS
from shards_tool.scan import Scanned
from shards_tool.sources import Found


class Ledger:
    def __init__(self, path: Path) -> None:
        # SQLite's own locks are left out: network file systems often have none, and the build has a lock.
        self._db = sqlite3.connect(f"{path.resolve().as_uri()}?nolock=1", uri=True)
        self._db.execute("PRAGMA journal_mode = TRUNCATE")
        self._db.executescript(TABLES)
        self.meta = MetaTables(self._db)

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

    def has_work(self) -> bool:
        """Whether any film is made or any shard written."""
        query = "SELECT 1 FROM made WHERE pack != '' UNION ALL SELECT 1 FROM shard LIMIT 1"
        return self._db.execute(query).fetchone() is not None

    def take(self, path: Path) -> None:
        """Add the inputs and films of another ledger."""
        self._db.execute("ATTACH ? AS part", (f"{path.resolve().as_uri()}?nolock=1",))
        self._db.execute("INSERT OR REPLACE INTO main.input SELECT * FROM part.input")
        self._db.execute("INSERT OR IGNORE INTO main.made SELECT * FROM part.made")
        self.commit()
        self._db.execute("DETACH part")

    # Inputs

    def forget_seen(self) -> None:
        self._db.execute("UPDATE input SET seen = 0")

    def is_known(self, found: Found, mask_sha256: str) -> bool:
        """Whether the file was scanned before and neither it nor its mask changed; it then counts as seen.

        What could not be opened then may be there by now, so it counts as not known.
        """
        place = found.source, os.fsencode(found.path)
        cursor = self._db.execute(
            """UPDATE input SET seen = 1 WHERE source = ? AND path = ? AND size = ? AND mtime_ns = ?
            AND (mask_sha256 = ? OR state != 'film') AND reason NOT GLOB ?""",
            (*place, found.size, found.mtime_ns, mask_sha256, f"{NOT_READ}*"),
        )
        return cursor.rowcount == 1

    def add_inputs(self, batch: Iterable[Scanned]) -> None:
        rows = [
            (
                *(scanned.found.source, os.fsencode(scanned.found.path), name_of(scanned.found.path)),
                *(scanned.found.size, scanned.found.mtime_ns, 1, scanned.state, scanned.reason),
                *(
                    scanned.transfer_syntax,
                    scanned.digest,
                    scanned.mask_sha256,
                    scanned.patient,
                    scanned.study,
                ),
                *(scanned.view, scanned.sex, scanned.age, " ".join(sorted(scanned.identities))),
            )
            for scanned in batch
        ]
        self._db.executemany(f"INSERT OR REPLACE INTO input VALUES ({', '.join('?' * 17)})", rows)
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
                   patient, study, view, sex, age, identities
            FROM input WHERE state = 'film' ORDER BY source, path"""
        for row in self._db.execute(query):
            source, path, size, mtime_ns, syntax, digest, mask, *about, identities = row
            patient, study, view, sex, age = about
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
                identities=frozenset(identities.split()),
            )

    # The plan

    def clear_plan(self) -> None:
        self._db.execute("DELETE FROM sample")
        self._db.execute("DELETE FROM unplanned")
        self._db.execute("DELETE FROM twin")

    def add_sample(self, sample: Planned) -> None:
        """Plan a sample. Of files of the same bytes one is planned, the first in the strictest split; the
        others are duplicates, and their patients are kept in mind."""
        row = self._db.execute("SELECT * FROM sample WHERE key = ?", (sample.key,)).fetchone()
        if row is not None:
            known = planned_of(row)
            if STRICTNESS.index(sample.split) <= STRICTNESS.index(known.split):
                sample, known = known, sample
            self.leave_out(
                LeftOut(
                    source=known.source,
                    path=known.path,
                    outcome="duplicate",
                    reason=_copy_of(sample.key),
                    transfer_syntax=known.transfer_syntax,
                )
            )
            self._db.execute("INSERT OR IGNORE INTO twin VALUES (?, ?)", (known.key, known.patient))
        self._db.execute(
            f"INSERT OR REPLACE INTO sample VALUES ({', '.join('?' * 16)})",
            (
                *(sample.key, sample.digest, sample.mask_sha256, sample.source, os.fsencode(sample.path)),
                *(sample.transfer_syntax, sample.split, sample.duplicate_group),
                *(sample.patient, sample.study, sample.view, sample.sex, sample.age),
                *(_json(sample.labels), _json(sample.reports), sample.scrubbed),
            ),
        )

    def twins(self) -> list[tuple[str, str]]:
        """Sample and another patient who has a file of the same bytes, in that order."""
        query = """
            SELECT key, twin.patient FROM twin JOIN sample USING (key) WHERE twin.patient != sample.patient
            ORDER BY key, twin.patient"""
        return self._db.execute(query).fetchall()

    def leave_out(self, left_out: LeftOut) -> None:
        """Note a film that the plan does without."""
        row = (os.fsencode(left_out.path), left_out.outcome, left_out.reason, left_out.transfer_syntax)
        self._db.execute("INSERT INTO unplanned VALUES (?, ?, ?, ?, ?)", (left_out.source, *row))

    def count_samples(self) -> int:
        return self._db.execute("SELECT COUNT(*) FROM sample").fetchone()[0]

    def samples(self) -> Iterator[Planned]:
        """All samples of the plan in the order of their keys."""
        for row in self._db.execute("SELECT * FROM sample ORDER BY key"):
            yield planned_of(row)

    def drop_sample(self, key: str, outcome: str, reason: str) -> None:
        """Leave a sample out after all; where it is excluded, the files of the same bytes are so, too."""
        self._db.execute(
            """INSERT INTO unplanned SELECT source, path, ?, ?, transfer_syntax FROM sample WHERE key = ?""",
            (outcome, reason, key),
        )
        self._db.execute("DELETE FROM sample WHERE key = ?", (key,))
        if outcome == "excluded":
            self._db.execute(
                "UPDATE unplanned SET outcome = ?, reason = ? WHERE outcome = 'duplicate' AND reason = ?",
                (outcome, reason, _copy_of(key)),
            )

    def drop_failures(self) -> None:
        """Leave out the samples that could not be made, and with them the files of the same bytes."""
        failed = "sample NATURAL JOIN (SELECT digest, mask_sha256, view, outcome, reason FROM made) AS made"
        self._db.execute(
            f"""UPDATE unplanned SET (outcome, reason) = (
                SELECT made.outcome, made.reason FROM {failed} WHERE key = substr(unplanned.reason, 14))
            WHERE unplanned.outcome = 'duplicate' AND EXISTS (
                SELECT 1 FROM {failed} WHERE key = substr(unplanned.reason, 14) AND made.outcome != '')"""
        )
        self._db.execute(
            f"""INSERT INTO unplanned SELECT source, path, made.outcome, made.reason, transfer_syntax
            FROM {failed} WHERE made.outcome != ''"""
        )
        self._db.execute(
            f"DELETE FROM sample WHERE key IN (SELECT key FROM {failed} WHERE made.outcome != '')"
        )

    def likenesses(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Key, patient, split, pixel hash and look of every sample, in the order of their keys."""
        yield from self._db.execute(
            """SELECT key, patient, split, facts ->> '$.pixel_hash', facts ->> '$.perceptual_hash'
            FROM sample JOIN made USING (digest, mask_sha256, view) ORDER BY key"""
        )

    def place_samples(self, places: Iterable[tuple[str, str, str]]) -> None:
        """Set split and duplicate group of samples: (split, group, key) of each."""
        self._db.executemany("UPDATE sample SET split = ?, duplicate_group = ? WHERE key = ?", places)

    def planned_shards(self, split: str, size: int) -> Iterator[list[tuple[Planned, Made]]]:
        """The samples of a split in the order of their keys, cut into shards."""
        after = ""
        while True:
            rows = self._db.execute(
                """SELECT sample.*, made.* FROM sample JOIN made USING (digest, mask_sha256, view)
                WHERE split = ? AND key > ? ORDER BY key LIMIT ?""",
                (split, after, size),
            ).fetchall()
            if not rows:
                return
            yield [(planned_of(row[:-13]), made_of(row[-13:])) for row in rows]
            after = rows[-1][0]

    # Films

    def list_films_to_make(self) -> int:
        """Note which samples no worker has read yet; returns how many.

        What could not be opened before may be there by now, so it counts as not read yet.
        """
        self._db.execute("DELETE FROM made WHERE reason GLOB ?", (f"{NOT_READ}*",))
        self._db.execute("DROP TABLE IF EXISTS temp.todo")
        self._db.execute(
            """CREATE TEMP TABLE todo AS SELECT key FROM sample WHERE NOT EXISTS (
                SELECT 1 FROM made WHERE (made.digest, made.mask_sha256, made.view)
                    = (sample.digest, sample.mask_sha256, sample.view))
            ORDER BY source, path"""
        )
        return self._db.execute("SELECT COUNT(*) FROM todo").fetchone()[0]

    def films_to_make(self, size: int) -> Iterator[list[ToMake]]:
        """The samples that were noted, in batches, in the order of their files."""
        query = """
            SELECT sample.*, input.size, input.mtime_ns
            FROM todo JOIN sample USING (key) JOIN input USING (source, path)
            WHERE todo.rowid > ? AND todo.rowid <= ? ORDER BY todo.rowid"""
        for start in itertools.count(step=size):
            rows = self._db.execute(query, (start, start + size)).fetchall()
            if not rows:
                return
            yield [ToMake(film=planned_of(row[:-2]), size=row[-2], mtime_ns=row[-1]) for row in rows]

    def add_made(self, films: Iterable[Made]) -> None:
        rows = [
            (
                *(film.digest, film.mask_sha256, film.view, film.pack),
                *dataclasses.astuple(film.image),
                *dataclasses.astuple(film.contour),
                *(film.facts, film.outcome, film.reason),
            )
            for film in films
        ]
        self._db.executemany(f"INSERT OR REPLACE INTO made VALUES ({', '.join('?' * 13)})", rows)
        self.commit()

    def last_pack(self, folder: str) -> str:
        """Name of the newest pack in a folder, or ""."""
        return self._db.execute(
            "SELECT COALESCE(MAX(pack), '') FROM made WHERE pack GLOB ?", (f"{folder}/pack-*",)
        ).fetchone()[0]

    # Shards

    def shard(self, split: str, number: int) -> ShardFile | None:
        row = self._db.execute(
            "SELECT * FROM shard WHERE split = ? AND number = ?", (split, number)
        ).fetchone()
        return shard_file_of(row) if row else None

    def forget_shard(self, split: str, number: int) -> None:
        self._forget(split, number, "=")

    def forget_shards_from(self, split: str, number: int) -> None:
        """Drop the shards past the end of a plan that has become shorter."""
        self._forget(split, number, ">=")

    def _forget(self, split: str, number: int, relation: str) -> None:
        for table, column in (("shard", "number"), ("row", "shard")):
            self._db.execute(
                f"DELETE FROM {table} WHERE split = ? AND {column} {relation} ?", (split, number)
            )
        self.commit()

    def add_shard(self, shard: ShardFile, rows: list[tuple[bytes, str]]) -> None:
        """Note a finished shard with its samples (index entry, record), at once."""
        where = shard.split, shard.number
        self._db.execute("INSERT INTO shard VALUES (?, ?, ?, ?, ?, ?)", dataclasses.astuple(shard))
        self._db.executemany(
            "INSERT INTO row VALUES (?, ?, ?, ?, ?)",
            [(*where, place, entry, record) for place, (entry, record) in enumerate(rows)],
        )
        self.commit()

    def shards(self, split: str) -> list[ShardFile]:
        query = "SELECT * FROM shard WHERE split = ? ORDER BY number"
        return [shard_file_of(row) for row in self._db.execute(query, (split,))]

    def rows(self, split: str, shard: int) -> list[tuple[bytes, str]]:
        """Index entry and record of every sample of a shard."""
        query = "SELECT entry, record FROM row WHERE split = ? AND shard = ? ORDER BY place"
        return self._db.execute(query, (split, shard)).fetchall()

    def count_patients(self, split: str) -> int:
        """In the finished shards of a split."""
        query = "SELECT COUNT(DISTINCT record ->> '$.patient') FROM row WHERE split = ?"
        return self._db.execute(query, (split,)).fetchone()[0]

    def left_out(self) -> Iterator[LeftOut]:
        """The quarantine table: by scanning, and by the plan."""
        columns = "reason, transfer_syntax"
        query = f"""
            SELECT source, path, REPLACE(state, 'ignored', 'excluded'), {columns}
            FROM input WHERE state != 'film'
            UNION ALL SELECT source, path, outcome, {columns} FROM unplanned
            ORDER BY source, path"""
        for source, path, outcome, reason, syntax in self._db.execute(query):
            yield LeftOut(
                source=source,
                path=os.fsdecode(path),
                outcome=outcome,
                reason=reason,
                transfer_syntax=syntax,
            )


def _copy_of(key: str) -> str:
    return f"duplicate of {key}"  # `drop_failures` takes the key out again


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
