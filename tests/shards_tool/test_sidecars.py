import csv
import gzip
import json
import tarfile
import zipfile
from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest

from shards_tool.build import build
from shards_tool.metadata import MetaRow, read_table
from shards_tool.schema import SAMPLES
from shards_tool.study_texts import findings_and_impression
from tests.shards_tool.archive import SMALL, picture


def write_csv(path: Path, *rows: dict[str, str]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_chexpert(tmp_path: Path):
    row = {
        "Path": "CheXpert-v1.0-small/train/patient00001/study2/view1_frontal.jpg",
        **{"Sex": "Female", "Age": "68", "Frontal/Lateral": "Frontal", "AP/PA": "AP"},
        **{"No Finding": "", "Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"},
    }
    lateral = row | {
        "Frontal/Lateral": "Lateral",
        "AP/PA": "",
        "Path": "CheXpert-v1.0/valid/patient2/study1/v.jpg",
    }
    table = write_csv(tmp_path / "train.csv", row, lateral)
    (file, said), (full, same), (other, beside) = read_table(table)
    assert file == "train/patient00001/study2/view1_frontal.jpg" and other == "valid/patient2/study1/v.jpg"
    # The full resolution's folder is called batch 2 (train 1) and the like.
    assert full == "patient00001/study2/view1_frontal.jpg" and same == said
    assert said == MetaRow(
        patient="patient00001",
        study="patient00001/study2",
        view="AP",
        sex="F",
        age=68,
        labels={"Edema": 1, "Pneumonia": -1, "Fracture": 0},
        split="train",
    )
    assert (beside.view, beside.split) == ("LATERAL", "valid")


def test_nih(tmp_path: Path):
    row = {
        **{"Image Index": "00000013_005.png", "Finding Labels": "Mass|Nodule", "Follow-up #": "5"},
        **{"Patient ID": "13", "Patient Age": "060Y", "Patient Gender": "M", "View Position": "PA"},
    }
    healthy = row | {"Image Index": "00000014_000.png", "Finding Labels": "No Finding"}
    (file, said), (_, other) = read_table(write_csv(tmp_path / "Data_Entry_2017.csv", row, healthy))
    assert (file, said.patient, said.view, said.sex, said.age) == ("00000013_005.png", "13", "PA", "M", 60)
    assert len(said.labels) == 15 and {name for name, value in said.labels.items() if value} == {
        "Mass",
        "Nodule",
    }
    assert {name for name, value in other.labels.items() if value} == {"No Finding"}


def test_mimic_films_studies_and_reports_come_together(tmp_path: Path, key_file: Path):
    folder = tmp_path / "files" / "p10" / "p10000032"
    for study, film in (("s501", "aaa"), ("s501", "bbb"), ("s777", "ccc")):
        (folder / study).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / study / f"{film}.jpg"), picture(ord(film[0])))
    films = [
        {"dicom_id": film, "subject_id": "10000032", "study_id": study[1:], "ViewPosition": view}
        for study, film, view in (("s501", "aaa", "PA"), ("s501", "bbb", "LATERAL"), ("s777", "ccc", "AP"))
    ]
    meta = [
        write_csv(tmp_path / "metadata.csv.gz", *films),
        write_csv(
            tmp_path / "chexpert.csv.gz",
            {"subject_id": "10000032", "study_id": "501", "Edema": "1.0", "Pneumonia": ""},
            {"subject_id": "10000032", "study_id": "777", "Edema": "", "Pneumonia": "-1.0"},
        ),
        write_csv(
            tmp_path / "sectioned.csv", {"study": "s501", "findings": "Edema.", "impression": "As said."}
        ),
    ]
    summary = build([tmp_path / "files"], tmp_path / "data", SMALL, meta=meta, key_file=key_file, workers=0)
    assert (summary.samples, summary.excluded) == (2, 1)  # the lateral one
    rows = {row["view"]: row for row in pq.read_table(tmp_path / "data" / SAMPLES).to_pylist()}
    assert dict(rows["PA"]["labels"]) == {"Edema": 1} and dict(rows["AP"]["labels"]) == {"Pneumonia": -1}
    assert (
        dict(rows["PA"]["reports"]) == {"en": "FINDINGS: Edema.\nIMPRESSION: As said."}
        and not rows["AP"]["reports"]
    )
    assert rows["PA"]["patient"] == rows["AP"]["patient"] and rows["PA"]["study"] != rows["AP"]["study"]


STUDY = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with ascites  // eval for infection: any?

 COMPARISON:  Chest radiograph ___.

 FINDINGS:

 There is no focal consolidation.
 Right: small effusion.  Heart size is normal.

 IMPRESSION:  No acute process.

 NOTIFICATION:  Discussed with ___ by phone at 9:15 AM.
"""


def test_mimic_texts_describe_the_films_of_their_studies(tmp_path: Path, key_file: Path):
    patient = tmp_path / "mimic" / "files" / "p10" / "p10000032"
    other = (
        "WET READ: ___ 9:15 AM\n Rotated.\n\n COMPARISON: None.\n\n PA and lateral.\n\n Heart\n is large.\n"
    )
    for study, film, text in (("s501", "aaa", STUDY), ("s777", "ccc", other)):
        (patient / study).mkdir(parents=True)
        cv2.imwrite(str(patient / study / f"{film}.jpg"), picture(ord(film[0])))
        (patient / f"{study}.txt").write_text(text)
    (patient / "notes.txt").write_text("FINDINGS: not a study")
    root = tmp_path / "mimic"
    with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip", "w") as file:
        for path in sorted(root.rglob("*.txt")):
            file.write(path, path.relative_to(root))
    with tarfile.open(tmp_path / "reports.tar.gz", "w:gz") as file:
        file.add(root / "files", "files")
    labels = write_csv(tmp_path / "c.csv", {"subject_id": "10000032", "study_id": "501", "Edema": "1.0"})
    sources = root, tmp_path / "mimic-cxr-reports.zip", tmp_path / "reports.tar.gz"
    for number, meta in enumerate(sources):
        data = tmp_path / f"data{number}"
        build([root], data, SMALL, meta=[labels, meta], key_file=key_file, workers=0)
        rows = pq.read_table(data / SAMPLES).to_pylist()
        by_label = {bool(row["labels"]): row for row in rows}
        assert dict(by_label[True]["reports"]) == {
            "en": "FINDINGS: There is no focal consolidation. Right: small effusion. Heart size is normal.\n"
            "IMPRESSION: No acute process."
        }
        assert dict(by_label[False]["reports"]) == {"en": "FINDINGS: Heart is large."}
        assert len({row["patient"] for row in rows}) == 1 and len({row["study"] for row in rows}) == 2
    # The same pseudonym as from the data set's own tables, so that both may be used together.
    (_, from_table), (_, from_text) = next(read_table(labels)), next(read_table(root))
    assert (from_table.patient, from_table.study) == (from_text.patient, from_text.study)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FINDINGS AND IMPRESSION: Clear.", ("Clear.", "")),
        ("HISTORY: Cough.\n\nConclusion: Clear.\n", ("", "Clear.")),
        (
            "INDICATION: Pain.\nPORTABLE AP CHEST RADIOGRAPH:  Tube.\nIMPRESSION: Tube: well placed.",
            ("Tube.", "Tube: well placed."),
        ),
        ("REASON FOR CHEST X-RAY: Pain.\nIMPRESSION:\n\n1. Clear.\n2. Same.", ("", "1. Clear. 2. Same.")),
        ("FINDINGS: A.\nIMPRESSION: B.\nFINDINGS: C.", ("A. C.", "B.")),
        ("The findings: none of note.", ("The findings: none of note.", "")),
        ("INDICATION: Pain.\n\n", ("", "")),
        ("Two views.\n\nClear.\n\n", ("Clear.", "")),
        ("IMPRESSION:\n", ("", "")),
        ("", ("", "")),
    ],
)
def test_sections_of_a_text(text: str, expected: tuple[str, str]):
    assert findings_and_impression(text) == expected


def test_what_holds_no_reports_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("FINDINGS: none")
    with pytest.raises(ValueError, match=r"no reports in .*empty"):
        list(read_table(tmp_path / "empty"))
    for content, word in ((b"\xff\xfe\xff", "no UTF-8 text"), (b"x" * 2**21, "no report")):
        (tmp_path / "empty" / "s1.txt").write_bytes(content)
        with pytest.raises(ValueError, match=rf"s1\.txt is {word}"):
            list(read_table(tmp_path / "empty"))


def test_r2gen_annotations_keep_the_films_of_a_study_together(tmp_path: Path):
    both = {
        "id": "CXR1",
        "report": "Clear lungs .",
        "image_path": ["CXR1/0.png", "CXR1/1.png"],
        "split": "train",
    }
    mimic = {"id": "x", "study_id": 5, "subject_id": 7, "report": "双肺清晰。", "image_path": ["p7/s5/x.jpg"]}
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"train": [both], "val": [], "test": [mimic]}), encoding="utf-8")
    rows = list(read_table(path))
    known = MetaRow(patient="CXR1", study="CXR1", reports={"en": "Clear lungs ."}, split="train")
    assert rows[:2] == [("CXR1/0.png", known), ("CXR1/1.png", known)]
    report = {"zh": "双肺清晰。"}
    assert rows[2] == ("p7/s5/x.jpg", MetaRow(patient="7", study="5", reports=report, split="test"))


REPORT = """<?xml version="1.0" encoding="utf-8"?>{}
<eCitation><uId id="CXR7"/><Abstract>
<AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS">Clear.</AbstractText><AbstractText Label="IMPRESSION">Normal.</AbstractText>
</Abstract><MeSH><major>Cardiomegaly/mild</major></MeSH>
<parentImage id="CXR7_1"/><parentImage id="CXR7_2"/></eCitation>"""


def test_rsna(tmp_path: Path):
    path = tmp_path / "classes.csv"
    path.write_text("patientId,class\np1,Lung Opacity\np1,Lung Opacity\np2,Normal\n")
    rows = list(read_table(path))
    assert [file for file, _ in rows] == ["p1.dcm", "p1.dcm", "p2.dcm"]
    names = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
    assert rows[0][1] == MetaRow(patient="p1", labels=dict(zip(names, (0, 0, 1), strict=True)))
    assert rows[2][1].labels == dict(zip(names, (1, 0, 0), strict=True))
    path.write_text("patientId,x,y,width,height,Target\np1,1,2,3,4,1\np2,,,,,0\n")
    assert [row.labels for _, row in read_table(path)] == [{"Pneumonia": 1}, {"Pneumonia": 0}]


def test_open_i(tmp_path: Path):
    path = tmp_path / "7.xml"
    path.write_text(REPORT.format(""), encoding="utf-8")
    known = MetaRow(
        patient="CXR7",
        study="CXR7",
        labels={"Cardiomegaly": 1},
        reports={"en": "FINDINGS: Clear.\nIMPRESSION: Normal."},
    )
    assert list(read_table(path)) == [("CXR7_1.png", known), ("CXR7_2.png", known)]


@pytest.mark.parametrize(
    "content", [REPORT.format('<!DOCTYPE x [<!ENTITY a "b">]>'), "<eCitation>", "x" * 2**21]
)
def test_xml_that_is_no_report_is_refused(tmp_path: Path, content: str):
    (tmp_path / "x.xml").write_text(content)
    with pytest.raises(ValueError, match=r"x\.xml"):
        list(read_table(tmp_path / "x.xml"))


@pytest.mark.realdata
def test_the_real_reports_are_read(cxr: Path):
    rows = dict(read_table(cxr / "iu_reports_xml.tgz"))
    assert len({row.study for row in rows.values()}) > 2000
    first = rows["CXR1_1_IM-0001-3001.png"]
    assert first.patient == "CXR1" and first.labels == {"normal": 1}
    assert (
        first.reports["en"].startswith("FINDINGS: The cardiac silhouette")
        and "Normal chest" in first.reports["en"]
    )
    listed = dict(read_table(cxr / "reports.json"))
    assert len(listed) > 30 and {language for row in listed.values() for language in row.reports} == {
        "en",
        "zh",
    }
