"""Nothing that identifies a patient is in any byte of a data set."""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shards_tool.build import build
from shards_tool.identities import identity_hashes, redact
from shards_tool.phantom import write_archive
from shards_tool.phantom.archive import METADATA
from shards_tool.phantom.dicom import uid
from shards_tool.phantom.study import Study, plan_patient
from tests.shards_tool.archive import SMALL, textured, write_dicom, write_key

PATIENTS, SEED, SIDE = 3, 4, 96


def identities_of(study: Study) -> Iterator[str]:
    """All that the archive says about who, where and when."""
    person = study.person
    yield from (person.patient_id, study.accession, person.address, person.telephone, study.hospital)
    yield from (uid(person.patient_id, study.accession, kind) for kind in ("study", "series", "instance"))
    for name in (person.name, study.referrer):
        parts = name.replace("=", "^").replace(".", "").split("^")
        yield from (part for part in parts if len(part.encode()) >= 4)
    for date in (study.date, person.birth_date):
        yield from (date.strftime(form) for form in ("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%B %d, %Y", "%Y年"))
    yield study.time
    yield Path(study.file).parent.as_posix()


def add_identities_to_reports(table: Path, studies: dict[str, Study]) -> None:
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        study = studies[row["file"]]
        latin, _, chinese = study.person.name.partition("=")
        family, given = latin.split("^")
        doctor = " ".join(reversed(study.referrer.split("^")[:2]))
        surname = chinese.replace("^", "") or "赵相"
        date = study.date
        row["report_en"] += (
            f" Patient name: {given} {family}. MRN {study.person.patient_id}, {study.accession}. Born "
            f"{study.person.birth_date:%d.%m.%Y}; film of {date:%B %d, %Y}, sent {date:%Y-%m-%d}. Call "
            f"{study.person.telephone}. Dictated by: {doctor}. "
            f"{study.hospital if study.hospital.isascii() else ''}"
        )
        row["report_zh"] += (
            f"患者姓名：{surname}。{date.year}年{date.month}月{date.day}日。模拟市第一人民医院"
        )
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Study]]:
    root = tmp_path_factory.mktemp("phantoms")
    write_archive(root, patients=PATIENTS, seed=SEED, side=SIDE)
    studies = [study for number in range(PATIENTS) for study in plan_patient(SEED, number, side=SIDE)]
    add_identities_to_reports(root / METADATA, {study.file: study for study in studies})
    return root, studies


def words_of(data: Path) -> bytes:
    """Every byte of a data set, and what its compressed tables hold."""
    files = [path for path in sorted(data.rglob("*")) if path.is_file()]
    tables = [str(pq.read_table(path).to_pylist()) for path in files if path.suffix == ".parquet"]
    names = [str(path.relative_to(data)) for path in files]
    return b"\0".join([*(path.read_bytes() for path in files), *(text.encode() for text in tables + names)])


def test_no_identity_of_a_patient_is_anywhere(
    phantoms: tuple[Path, list[Study]], key_file: Path, tmp_path: Path
):
    root, studies = phantoms
    build([root / "dicom"], tmp_path / "data", SMALL, meta=[root / METADATA], key_file=key_file, workers=0)
    rows = pq.read_table(tmp_path / "data" / "samples.parquet").to_pylist()
    assert len(rows) == len(studies) and all(row["scrubbed"] >= 8 for row in rows)
    assert all("[name]" in dict(row["reports"])[language] for row in rows for language in ("en", "zh"))
    words = words_of(tmp_path / "data")
    found = {word for study in studies for word in identities_of(study) if word.encode() in words}
    assert found == set()


def test_the_search_would_find_what_is_kept_on_request(
    phantoms: tuple[Path, list[Study]], key_file: Path, tmp_path: Path
):
    root, studies = phantoms
    settings = dataclasses.replace(SMALL, reports="keep")
    build([root / "dicom"], tmp_path / "data", settings, meta=[root / METADATA], key_file=key_file, workers=0)
    words = words_of(tmp_path / "data")
    assert all(study.person.patient_id.encode() in words for study in studies)
    assert all(study.date.strftime("%Y-%m-%d").encode() in words for study in studies)


KEY = b"k" * 32


@pytest.mark.parametrize(
    ("header", "report", "expected"),
    [
        (
            "Okonkwo^Ngozi",
            "Seen with OKONKWO at the bedside; Ngozi agrees.",
            "Seen with [name] at the bedside; [name] agrees.",
        ),
        ("Smith-Jones^Ann", "Ms Jones was told. Smith-Jones, A.", "Ms [name] was told. [name], A."),
        (
            "White^Rose",
            "White line at the apex, white lungs, rose.",
            "[name] line at the apex, white lungs, rose.",
        ),
        (
            "Wang^XiaoMing=王^小明",
            "患者王小明诉胸痛，小明既往体健。王氏。",
            "患者[name]诉胸痛，[name]既往体健。王氏。",
        ),
        ("MRN-00421", "Compare MRN-00421 and 00421.", "Compare [name] and [name]."),
        ("ANONYMOUS^PATIENT", "Patient upright. Anonymous.", "Patient upright. Anonymous."),
        ("", "No effusion.", "No effusion."),
    ],
)
def test_people_of_the_header_are_found_in_the_report(header: str, report: str, expected: str):
    text, count = redact(KEY, report, identity_hashes(KEY, [header]))
    assert text == expected
    assert count == expected.count("[name]")


def test_a_name_without_any_mark_is_found_because_the_header_says_it(tmp_path: Path):
    write_dicom(tmp_path / "archive" / "a.dcm", textured(1), PatientName="Okonkwo^Ngozi", PatientID="Q77123")
    (tmp_path / "table.csv").write_text(
        "file,report_en\narchive/a.dcm,Stable since last seen by Okonkwo. Effusion of Q77123 unchanged.\n"
    )
    key_file = write_key(tmp_path / "key")
    build(
        [tmp_path / "archive"],
        tmp_path / "data",
        SMALL,
        meta=[tmp_path / "table.csv"],
        key_file=key_file,
        workers=0,
    )
    (row,) = pq.read_table(tmp_path / "data" / "samples.parquet").to_pylist()
    assert dict(row["reports"])["en"] == "Stable since last seen by [name]. Effusion of [number] unchanged."
    assert row["scrubbed"] == 2
