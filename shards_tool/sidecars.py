"""Tables that public data sets come with, told by their columns and turned into rows of our own form.

A row of our own names its film in `file`, or, with a slash at its end, a folder: what it says then holds
for all films in it.
"""

import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from shards_tool.schema import SPLITS
from shards_tool.study_texts import findings_and_impression, is_study_text, patient_and_study

Row = Mapping[str, object]
OwnRow = dict[str, object]

_CHEXPERT_LABELS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
_NIH_LABELS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
_RSNA_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_MAX_REPORT_BYTES = 2**20
_NIH_NAME = re.compile(r"(\d{8})_\d{3}\.png")


def own_rows(row: Row) -> list[OwnRow]:
    """Rows of our own form for a row of a table; [] for one that says nothing about any film.

    - ours: it has `file`
    - CheXpert: `Path`, `Frontal/Lateral`, `AP/PA`, `Sex`, `Age`, its 14 labels; the path names the split
      (its test set has no more than paths and labels)
    - MIMIC-CXR-JPG: films by `dicom_id`, `subject_id`, `study_id`, with `ViewPosition` or `split`; studies by
      `subject_id`, `study_id` and the 14 labels, or by `study` with `findings` and `impression`
    - RSNA Pneumonia: `patientId` with `class` or `Target`
    - NIH ChestX-ray14: `Image Index`, `Finding Labels`, `Patient ID`, ...
    - R2Gen's annotation.json, and lists like it: `image_path` (one or more), `report`

    Each may have a column `split`.
    """
    if "file" in row:
        return [dict(row)]
    said = _text(row, "split")
    return [own if own.get("split") else own | {"split": said} for own in _translated(row)]


def _translated(row: Row) -> list[OwnRow]:
    if "Path" in row and ("Frontal/Lateral" in row or "Enlarged Cardiomediastinum" in row):
        return _chexpert(row)
    if "Image Index" in row and "Finding Labels" in row:
        return [_nih(row)]
    if "patientId" in row and ("class" in row or "Target" in row):
        return [_rsna(row)]
    if "dicom_id" in row and "subject_id" in row:
        return _mimic_films(row)
    if "subject_id" in row and "study_id" in row and "image_path" not in row:
        return [_mimic_study(row)]
    if "study" in row and ("findings" in row or "impression" in row) and "image_path" not in row:
        return [{"file": _study_folder(row["study"]), **_report(_sections(row))}]
    if "image_path" in row:
        return _with_images(row)
    return []


def annotation_rows(content: object) -> list[Row]:
    """The rows in the parsed content of a JSON file: a list, or R2Gen's lists by split.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(content, dict) and content and set(content) <= set(SPLITS):
        lists = {split: content.get(split, []) for split in SPLITS}
    elif isinstance(content, list):
        lists = {"": content}
    else:
        raise ValueError("wanted a list of objects, or an object of train, val and test")
    rows: list[Row] = []
    for split, listed in lists.items():
        for row in listed:
            if not isinstance(row, dict):
                raise ValueError(f"wanted an object per row, got {type(row).__name__}")
            rows.append({"split": split} | row if split else row)
    return rows


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value).strip()


def _labels(row: Row, names: tuple[str, ...]) -> OwnRow:
    return {f"label:{name}": _text(row, name) for name in names if _text(row, name)}


def _report(text: str) -> OwnRow:
    if not text:
        return {}
    return {"report_zh" if _HAN.search(text) else "report_en": text}


def _sections(row: Row) -> str:
    return _with_headings(_text(row, "findings"), _text(row, "impression"))


def _with_headings(findings: str, impression: str) -> str:
    """One text of both sections, each under its heading, so that they can be told apart again."""
    headings = (
        ("影像所见：", "影像诊断：") if _HAN.search(findings + impression) else ("FINDINGS: ", "IMPRESSION: ")
    )
    parts = zip(headings, (findings, impression), strict=True)
    return "\n".join(heading + text for heading, text in parts if text)


def listed_rows(lines: Iterable[str], split: str) -> Iterator[OwnRow]:
    """Of a list of NIH ChestX-ray14's films, whose names begin with the patient."""
    for name in filter(None, map(str.strip, lines)):
        match = _NIH_NAME.fullmatch(name)
        # As Data_Entry_2017.csv spells it.
        yield {"file": name, "split": split, "patient": str(int(match[1])) if match else ""}


def _chexpert(row: Row) -> list[OwnRow]:
    # CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg; the table lies in the first folder.
    path = PurePosixPath(_text(row, "Path"))
    parts = path.parts[1:] if path.parts and path.parts[0].lower().startswith("chexpert") else path.parts
    patient = next((part for part in parts if part.startswith("patient")), "")
    study = next((part for part in parts if part.startswith("study")), "")
    is_lateral = _text(row, "Frontal/Lateral").lower() == "lateral" or "lateral" in "".join(parts[-1:])
    known = {
        "patient": patient,
        "study": f"{patient}/{study}" if patient and study else "",
        "view": "LATERAL" if is_lateral else _text(row, "AP/PA"),
        "sex": _text(row, "Sex"),
        "age": _text(row, "Age"),
        "split": parts[0] if parts and parts[0] in ("train", "valid", "test") else "",
        **_labels(row, _CHEXPERT_LABELS),
    }
    # The training films of the full resolution come in folders of other names: batch 2 (train 1), ...
    files = [parts, parts[1:]] if known["split"] == "train" else [parts]
    return [{"file": "/".join(file), **known} for file in files]


def _nih(row: Row) -> OwnRow:
    present = {name.strip() for name in _text(row, "Finding Labels").split("|")}
    # Every film was searched for all fourteen, so what is not named is absent.
    labels = {f"label:{name}": str(int(name in present)) for name in _NIH_LABELS}
    return {
        "file": _text(row, "Image Index"),
        "patient": _text(row, "Patient ID"),
        "view": _text(row, "View Position"),
        "sex": _text(row, "Patient Gender") or _text(row, "Patient Sex"),
        "age": _text(row, "Patient Age"),
        "label:No Finding": str(int("No Finding" in present)),
        **labels,
    }


def _rsna(row: Row) -> OwnRow:
    # stage_2_train_labels.csv has a row per box and says Target; stage_2_detailed_class_info.csv says class.
    patient, said = _text(row, "patientId"), _text(row, "class")
    labels = {f"label:{name}": str(int(name == said)) for name in _RSNA_CLASSES} if said else {}
    target = {"label:Pneumonia": _text(row, "Target")} if _text(row, "Target") else {}
    return {"file": f"{patient}.dcm", "patient": patient, **labels, **target}


def _study_folder(study: object) -> str:
    name = str(study).strip()
    return f"{name}/" if name.startswith("s") else f"s{name}/"


def _mimic_films(row: Row) -> list[OwnRow]:
    known = {
        "patient": _text(row, "subject_id"),
        "study": _text(row, "study_id"),
        "view": _text(row, "ViewPosition"),
    }
    # The JPEG and the DICOM edition share their tables.
    return [{"file": f"{_text(row, 'dicom_id')}{suffix}", **known} for suffix in (".jpg", ".dcm")]


def _mimic_study(row: Row) -> OwnRow:
    return {
        "file": _study_folder(row["study_id"]),
        "patient": _text(row, "subject_id"),
        "study": _text(row, "study_id"),
        **_labels(row, _CHEXPERT_LABELS),
    }


def _with_images(row: Row) -> list[OwnRow]:
    images = row["image_path"]
    files = [images] if isinstance(images, str) else images if isinstance(images, list) else []
    study = _text(row, "study_id") or _text(row, "id")
    # Without a patient, the films of one study are of one: they must not fall into different splits.
    patient = _text(row, "subject_id") or _text(row, "patient") or study
    known = {"patient": patient, "study": study, **_report(_text(row, "report"))}
    return [{"file": str(file), **known} for file in files]


def report_rows(path: Path) -> Iterator[OwnRow]:
    """Rows for the films of reports that are files: Open-i's XML (one, or a tar or zip of them), and
    MIMIC-CXR's texts (a tar, zip or folder of them).

    Raises:
        ValueError: no reports, or not of that form, or larger than a report can be.
    """
    is_empty = True
    for name, content in _report_files(path):
        is_empty = False
        if len(content) > _MAX_REPORT_BYTES:
            raise ValueError(f"{name} is no report: it has more than {_MAX_REPORT_BYTES} bytes")
        yield from [_study_text(name, content)] if is_study_text(name) else _openi(name, content)
    if is_empty:
        raise ValueError(f"no reports in {path}: wanted Open-i's XML files, or MIMIC-CXR's s50414267.txt")


def _is_report(name: str) -> bool:
    return name.endswith(".xml") or is_study_text(name)


def _report_files(path: Path) -> Iterator[tuple[str, bytes]]:
    kind = path.name.lower()
    if path.is_dir():
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in filter(is_study_text, sorted(names)):
                with Path(folder, name).open("rb") as file:
                    yield str(Path(folder, name)), file.read(_MAX_REPORT_BYTES + 1)
    elif kind.endswith(".xml"):
        yield path.name, path.read_bytes()
    elif kind.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if _is_report(info.filename):
                    with archive.open(info) as file:
                        yield info.filename, file.read(_MAX_REPORT_BYTES + 1)
    else:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isreg() and _is_report(member.name):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, file.read(_MAX_REPORT_BYTES + 1)


def _study_text(name: str, content: bytes) -> OwnRow:
    patient, study = patient_and_study(name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no UTF-8 text: {error}") from error
    report = _report(_with_headings(*findings_and_impression(text)))
    return {"file": _study_folder(study), "patient": patient, "study": study, **report}


def _openi(name: str, content: bytes) -> Iterator[OwnRow]:
    # Entities are all that makes small XML large; no report has a document type.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError(f"{name} is no Open-i report")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"{name}: {error}") from error
    identifier = root.find("uId")
    study = identifier.get("id", "") if identifier is not None else ""
    said = {
        (part.get("Label") or "").upper(): (part.text or "").strip() for part in root.iter("AbstractText")
    }
    report = _with_headings(said.get("FINDINGS", ""), said.get("IMPRESSION", ""))
    headings = [(major.text or "").strip() for major in root.iter("major")]
    labels = {f"label:{heading.split('/')[0].strip()}": "1" for heading in headings if heading}
    for image in root.iter("parentImage"):
        if image_name := image.get("id"):
            yield {"file": f"{image_name}.png", "patient": study, "study": study, **labels, **_report(report)}
