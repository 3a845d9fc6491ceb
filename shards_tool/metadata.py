"""Tables beside the films: patient, view, age, sex, labels, reports and split, one row per file."""

import csv
import gzip
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards_tool.published import LISTS, STRICTNESS
from shards_tool.remote import was_url
from shards_tool.sidecars import Row, annotation_rows, listed_rows, own_rows, report_rows
from shards_tool.views import view_of

FILE_COLUMN = "file"
REPORT_COLUMNS = {"report_en": "en", "report_zh": "zh"}
LABEL_PREFIX = "label:"

_SEXES = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M", "O": "O", "OTHER": "O"}
_AGE = re.compile(r"0*(\d{1,3})(?:\.\d+)?\s*([YMWD]?)", re.IGNORECASE)
_MAX_AGE = 130
_UNIT_PER_YEAR = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}


def clean_view(value: str) -> str:
    """ "PA", "AP", "LATERAL", "OBLIQUE" or "" for anything else."""
    return view_of(value)


def clean_sex(value: str) -> str:
    """ "F", "M", "O" or "" for anything else."""
    return _SEXES.get(value.strip().upper(), "")


def clean_age(value: str) -> int | None:
    """Whole years from "62", "62.5" or DICOM's "062Y", "018M"; None for anything else."""
    match = _AGE.fullmatch(value.strip())
    if match is None:
        return None
    years = int(match[1]) // _UNIT_PER_YEAR[match[2].upper()]
    return years if years <= _MAX_AGE else None


@dataclass(frozen=True, kw_only=True)
class MetaRow:
    """What a table says about one file; "" and None where it says nothing."""

    patient: str = ""
    study: str = ""
    view: str = ""
    sex: str = ""
    age: int | None = None
    labels: dict[str, float] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)
    scrubbed: int = 0
    """As in `SampleRecord.scrubbed`."""
    split: str = ""
    """As the table spells it, until `published.clean_split` has read it."""

    def merged(self, later: "MetaRow") -> "MetaRow":
        """Both tables' content; where both speak, the later one wins, and of splits the stricter."""
        return MetaRow(
            patient=later.patient or self.patient,
            study=later.study or self.study,
            view=later.view or self.view,
            sex=later.sex or self.sex,
            age=self.age if later.age is None else later.age,
            labels=self.labels | later.labels,
            reports=self.reports | later.reports,
            scrubbed=self.scrubbed + later.scrubbed,
            split=max(self.split, later.split, key=STRICTNESS.index),
        )


def read_table(path: Path) -> Iterator[tuple[str, MetaRow]]:
    """Rows of a table, with the file (or the folder) that each is about.

    CSV, TSV, JSON, JSONL (also .gz) of our own form or those of `shards_tool/sidecars.py`; NIH's lists of
    splits; Open-i's XML; MIMIC-CXR's texts, in a folder or archive.

    Raises:
        ValueError: no such file, unknown suffix, no known columns, or a value that is no label.
    """
    if was_url(path):
        raise ValueError(f"--meta {path}: tables are read from local paths only; copy it here")
    if not path.exists():
        raise ValueError(f"--meta {path}: no such file or folder")
    for number, row in enumerate(_raw_rows(path), start=1):
        rows = own_rows(row)
        if not rows and "image_path" not in row:
            columns = ", ".join(map(str, row)) or "nothing"
            raise ValueError(f"{path}, row {number}: no '{FILE_COLUMN}'; it has {columns}")
        for own in rows:
            file = own[FILE_COLUMN]
            if not isinstance(file, str) or not file:
                raise ValueError(
                    f"{path}, row {number}: no '{FILE_COLUMN}'; it has {', '.join(map(str, own))}"
                )
            try:
                yield file, _meta_row(own)
            except ValueError as error:
                raise ValueError(f"{path}, row {number}: {error}") from error


def _raw_rows(path: Path) -> Iterator[Row]:
    name = path.name.lower().removesuffix(".gz")
    try:
        if path.is_dir() or name.endswith((".xml", ".zip", ".tar", ".tgz")):
            yield from report_rows(path)
            return
        # utf-8-sig: spreadsheets begin with a byte order mark, which would join the first column name.
        opener = gzip.open if path.suffix.lower() == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            if name.endswith((".csv", ".tsv")):
                # A report is longer than csv's default of 128 KiB only if it is broken.
                csv.field_size_limit(2**24)
                for row in csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ","):
                    yield {**row}
            elif name.endswith(".jsonl"):
                for line in file:
                    if line.strip():
                        yield _object(json.loads(line))
            elif name.endswith(".json"):
                yield from annotation_rows(json.load(file))
            elif name in LISTS:
                yield from listed_rows(file, LISTS[name])
            else:
                raise ValueError(
                    "wanted a .csv, .tsv, .json, .jsonl (or .gz of them), Open-i's .xml or .tgz, "
                    f"a folder or archive of MIMIC-CXR's texts, or NIH's {' or '.join(LISTS)}"
                )
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _object(row: object) -> dict[str, object]:
    if not isinstance(row, dict):
        raise ValueError(f"wanted an object per row, got {type(row).__name__}")
    return row


def _meta_row(row: Row) -> MetaRow:
    def text(name: str) -> str:
        value = row.get(name)
        # JSON can spell half a surrogate pair, which no file can hold.
        return "" if value is None else str(value).encode("utf-8", "replace").decode().strip()

    names = row.get("labels")
    if isinstance(names, str):
        names = names.split("|")
    labels = (
        {str(name).strip(): 1.0 for name in names if str(name).strip()} if isinstance(names, list) else {}
    )
    # csv puts what is too much in a row under None.
    for column in [column for column in row if isinstance(column, str) and column.startswith(LABEL_PREFIX)]:
        if text(column):
            labels[column.removeprefix(LABEL_PREFIX)] = _label(column, text(column))
    return MetaRow(
        patient=text("patient"),
        study=text("study"),
        view=clean_view(text("view")),
        sex=clean_sex(text("sex")),
        age=clean_age(text("age")),
        labels=labels,
        reports={language: text(column) for column, language in REPORT_COLUMNS.items() if text(column)},
        split=text("split"),
    )


def _label(column: str, value: str) -> float:
    if value not in ("0", "1", "-1", "0.0", "1.0", "-1.0"):
        raise ValueError(f"{column} is {value!r}; wanted 1 (present), 0 (absent), -1 (uncertain) or nothing")
    return float(value)
