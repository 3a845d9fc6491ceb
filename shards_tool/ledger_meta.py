"""What the tables of labels and reports say, in the ledger, found again by a film's place or name."""

import dataclasses
import json
import os
import sqlite3
from pathlib import Path

from shards_tool.metadata import MetaRow


class MetaTables:
    """Each table says at most one thing of a film; where several speak of it, the later ones win."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def clear(self) -> None:
        self._db.execute("DELETE FROM meta")

    def add(self, table: int, absolute: Path, file: str, row: MetaRow) -> None:
        """Note a row.

        Args:
            table: its number.
            absolute: where the file would lie beside the table.
            file: as the table names it.
        """
        place = table, storable(str(absolute))
        known = self._db.execute('SELECT row FROM meta WHERE "table" = ? AND absolute = ?', place).fetchone()
        if known is not None:
            row = MetaRow(**json.loads(known[0])).merged(row)
        content = json.dumps(dataclasses.asdict(row))
        self._db.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?, ?, ?, 0)", (*place, file, name_of(file), content)
        )

    def about(self, absolute: Path, relative: str) -> MetaRow:
        """What the tables say about a file.

        In each table it is found by its place beside the table, else by its path from its source on, else by
        its bare name, if that is the only one among the files and in the table.
        """
        found: dict[int, tuple[str, str]] = {}
        for where, value in (("absolute", storable(str(absolute))), ("file", storable(relative))):
            query = f'SELECT "table", absolute, row FROM meta WHERE {where} = ?'
            for table, place, row in self._db.execute(query, (value,)).fetchall():
                found.setdefault(table, (place, row))
        name = name_of(relative)
        for table in self._tables_with(name) - set(found):
            query = 'SELECT absolute, row FROM meta WHERE name = ? AND "table" = ? LIMIT 2'
            rows = self._db.execute(query, (name, table)).fetchall()
            if len(rows) == 1 and self._is_only_file(name):
                found[table] = rows[0]
        merged = MetaRow()
        for table, (place, row) in sorted(found.items()):
            self._db.execute('UPDATE meta SET used = 1 WHERE "table" = ? AND absolute = ?', (table, place))
            merged = merged.merged(MetaRow(**json.loads(row)))
        return merged

    def _tables_with(self, name: str) -> set[int]:
        # By steps through the index: view1_frontal.jpg may be in a table a hundred thousand times.
        query = """
            WITH RECURSIVE step (number) AS (
                SELECT MIN("table") FROM meta WHERE name = ?1
                UNION ALL SELECT (SELECT MIN("table") FROM meta WHERE name = ?1 AND "table" > number)
                FROM step WHERE number IS NOT NULL)
            SELECT number FROM step WHERE number IS NOT NULL"""
        return {number for (number,) in self._db.execute(query, (name,))}

    def _is_only_file(self, name: str) -> bool:
        namesakes = self._db.execute("SELECT 1 FROM input WHERE name = ? LIMIT 2", (name,)).fetchall()
        return len(namesakes) == 1

    def count(self) -> tuple[int, int]:
        """Rows of the tables, and those of them whose file was not found."""
        return self._db.execute("SELECT COUNT(*), COALESCE(SUM(used = 0), 0) FROM meta").fetchone()


def name_of(path: str) -> str:
    """The bare name, on whatever system the path was written."""
    return storable(path.replace("\\", "/").rsplit("/", 1)[-1])


def storable(path: str) -> str:
    """SQLite's text is UTF-8, a file's name on Linux need not be."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
