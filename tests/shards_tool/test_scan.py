import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards_tool.film import FilmRules
from shards_tool.scan import MAX_FILE_BYTES, Scanned, Scanner
from shards_tool.sources import source_of, walk
from tests.shards_tool.archive import picture, twelve_bit, write_dicom

KEY = b"k" * 32


def scan(*sources: Path, exclude: tuple[Path, ...] = ()) -> dict[str, Scanned]:
    opened = [source_of(source, source.parent / "spool") for source in sources]
    scanner = Scanner(roots=tuple(s.root for s in opened), key=KEY, masks=None, rules=FilmRules())
    found = list(walk(opened, exclude))
    return {scanned.found.path: scanned for scanned in scanner(found, lambda _item: None)}


def test_films_are_told_by_content_not_by_name(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "a.png"), picture(0))
    (tmp_path / "a.png").rename(tmp_path / "odd.txt")
    write_dicom(tmp_path / "sub" / "IM0001", twelve_bit(0), seed=4)
    scanned = scan(tmp_path)
    assert {path: s.state for path, s in scanned.items()} == {"odd.txt": "film", "sub/IM0001": "film"}
    header = scanned["sub/IM0001"]
    assert (header.view, header.sex, header.age) == ("PA", "F", 47)
    assert header.transfer_syntax == "Explicit VR Little Endian"
    assert len(header.patient) == len(header.study) == 16 and header.patient != header.study


def test_dicom_without_its_preamble_is_read(tmp_path: Path):
    write_dicom(tmp_path / "a.dcm", twelve_bit(0))
    (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[132:])
    assert scan(tmp_path)["a.dcm"].state == "film"


def test_the_same_patient_has_the_same_pseudonym_in_every_file(tmp_path: Path):
    for seed, name in ((1, "a.dcm"), (1, "b.dcm"), (2, "c.dcm")):
        write_dicom(tmp_path / name, twelve_bit(seed), seed=seed)
    scanned = scan(tmp_path)
    assert scanned["a.dcm"].patient == scanned["b.dcm"].patient != scanned["c.dcm"].patient
    assert scanned["a.dcm"].digest == scanned["b.dcm"].digest != scanned["c.dcm"].digest


def test_what_is_no_film_says_why(tmp_path: Path):
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "noise.dcm").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "scan.tif").write_bytes(b"II*\0" + b"\0" * 200)
    (tmp_path / "all.zip").write_bytes(b"PK\x03\x04" + b"\0" * 200)
    (tmp_path / "zip").write_bytes(b"PK\x03\x04" + b"\0" * 200)
    damage = b"\x02\0\0\0UL\x04\0\xff\xff\xff\x7f\x08\0\x05"
    (tmp_path / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + damage)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    with (tmp_path / "huge.dcm").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    scanned = scan(tmp_path)
    assert all(s.state == "quarantine" for s in scanned.values())
    words = {
        "empty.dcm": "empty file",
        "noise.dcm": "not a DICOM",
        "scan.tif": "TIFF",
        "all.zip": "archive that cannot be read: File is not a zip",
        "zip": "zip file that is not named .zip",
        "damaged.dcm": "DICOM",
        "pipe": "not a regular file",
        "nothing": "not a regular file",
        "loop": "link to a folder",
        "huge.dcm": "bytes, at most",
    }
    assert set(words) == set(scanned)
    for path, word in words.items():
        assert word in scanned[path].reason, (path, scanned[path].reason)


def test_what_a_rule_leaves_out_is_excluded_with_its_reason(tmp_path: Path):
    write_dicom(tmp_path / "ct.dcm", twelve_bit(0), Modality="CT")
    write_dicom(tmp_path / "hip.dcm", twelve_bit(0), BodyPartExamined="HIP")
    scanned = scan(tmp_path)
    assert {s.state for s in scanned.values()} == {"excluded"}
    assert "modality CT" in scanned["ct.dcm"].reason and "body part HIP" in scanned["hip.dcm"].reason


def test_tables_and_hidden_files_are_ignored_not_quarantined(tmp_path: Path):
    for name in ("table.csv", "notes.txt", ".DS_Store", "DICOMDIR"):
        (tmp_path / name).write_text("x")
    assert {s.state for s in scan(tmp_path).values()} == {"ignored"}


def test_random_damage_to_a_header_never_raises(tmp_path: Path):
    rng = np.random.default_rng(0)
    write_dicom(tmp_path / "whole.dcm", twelve_bit(0))
    content = (tmp_path / "whole.dcm").read_bytes()
    for i in range(150):
        damaged = bytearray(content[: rng.integers(140, 1200)])
        for at in rng.integers(132, len(damaged), 6):
            damaged[at] = rng.integers(256)
        (tmp_path / f"{i}.dcm").write_bytes(damaged)
    states = {s.state for s in scan(tmp_path).values()}
    assert states == {"film", "quarantine"}


def test_excluded_places_are_not_walked(tmp_path: Path):
    for name in ("a/x.png", "out/x.png", "key"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert set(scan(tmp_path, exclude=(tmp_path / "out", tmp_path / "key"))) == {"a/x.png"}


def test_a_source_may_be_a_file_and_names_need_not_be_utf_8(tmp_path: Path):
    name = os.fsdecode(b"r\xf6ntgen.png")
    (tmp_path / name).write_bytes(cv2.imencode(".png", picture(0))[1].tobytes())
    assert scan(tmp_path / name)[name].state == "film"


def test_a_missing_source_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no such source"):
        source_of(tmp_path / "none", tmp_path)
