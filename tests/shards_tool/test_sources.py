"""The same films from any place are the same data set; hostile archives cost nothing but their own films."""

import dataclasses
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from shards_tool import archives
from shards_tool.build import build
from shards_tool.schema import QUARANTINE, SAMPLES
from shards_tool.sources import Found, source_of, walk
from tests.shards_tool.archive import SMALL, picture, tree


def found_in(tmp_path: Path, *sources: str | Path) -> dict[str, Found]:
    opened = [source_of(source, tmp_path / "spool") for source in sources]
    return {found.path: found for found in walk(opened, ())}


def content_of(tmp_path: Path, source: str | Path, path: str) -> bytes:
    return source_of(source, tmp_path / "spool").root.read(path)


NAMES = ("a/0.dcm", "a/1.dcm", "a/2.dcm", "a/3.dcm", "b.png")


def pack_zip(films: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in NAMES:
            file.write(films / name, name)
    return path


def pack_tar(films: Path, path: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        file.add(films, ".")
    return path


def packed(films: Path, kind: str) -> Path:
    """A folder that holds the films in an archive of a kind."""
    folder = films.parent / kind
    folder.mkdir()
    modes = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}
    if kind == "zip":
        pack_zip(films, folder / "x.zip")
    elif kind == "zip in tar.gz":
        inner = pack_zip(films, films.parent / "inner.zip")
        with tarfile.open(folder / "x.tar.gz", "w:gz") as file:
            file.add(inner, "deep/inner.zip")
    else:
        pack_tar(films, folder / f"x.{kind}", modes[kind])
    return folder


KINDS = ("zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "zip in tar.gz")


@pytest.mark.parametrize("kind", KINDS)
def test_films_in_archives_have_stable_paths_and_their_bytes(films: Path, tmp_path: Path, kind: str):
    folder = packed(films, kind)
    prefix = "x.tar.gz!/deep/inner.zip!/" if kind == "zip in tar.gz" else f"x.{kind}!/"
    found = found_in(tmp_path, folder)
    assert set(found) == {prefix + name for name in NAMES}
    for name in NAMES:
        assert content_of(tmp_path, folder, prefix + name) == (films / name).read_bytes()
        assert found[prefix + name].size == (films / name).stat().st_size
    (archive,) = folder.iterdir()
    assert set(found_in(tmp_path, archive)) == set(found)  # the archive itself as a source


def test_a_data_set_does_not_depend_on_what_its_films_come_in(films: Path, key_file: Path, tmp_path: Path):
    table = tmp_path / "table.csv"
    table.write_text("file,label:Edema\na/0.dcm,1\nb.png,0\n")
    (tmp_path / "masks" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "masks" / "a" / "0.png"), cv2.circle(picture(0) * 0, (40, 48), 20, 255, -1))
    trees = []
    settings = dataclasses.replace(SMALL, contour=f"masks:{tmp_path / 'masks'}")
    memory = fsspec.filesystem("memory")
    for name in NAMES:
        memory.pipe(f"/bucket/films/{name}", (films / name).read_bytes())
    sources = [films, packed(films, "zip"), packed(films, "zip in tar.gz"), "memory://bucket/films"]
    for number, source in enumerate([*sources, f"file://{films}"]):
        data = tmp_path / f"data{number}"
        summary = build([source], data, settings, meta=[table], key_file=key_file, workers=0)
        assert summary.samples == 5 and summary.contours == {"mask": 1, "rect": 4}
        assert sum(len(row["labels"]) for row in pq.read_table(data / SAMPLES).to_pylist()) == 2
        trees.append(tree(data))
    assert all(other == trees[0] for other in trees)


def test_workers_read_archives_too(films: Path, key_file: Path, tmp_path: Path):
    build([films], tmp_path / "plain", SMALL, key_file=key_file, workers=0)
    build([packed(films, "tgz")], tmp_path / "data", SMALL, key_file=key_file, workers=1)
    assert tree(tmp_path / "data") == tree(tmp_path / "plain")


def test_an_archive_on_another_file_system_is_read_there(films: Path, tmp_path: Path):
    memory = fsspec.filesystem("memory")
    for kind in ("zip", "tar", "tar.gz"):
        (archive,) = packed(films, kind).iterdir()
        memory.pipe(f"/far/{kind}/{archive.name}", archive.read_bytes())
        url = f"memory://far/{kind}"
        found = found_in(tmp_path, url)
        assert set(found) == {f"{archive.name}!/{name}" for name in NAMES}
        assert content_of(tmp_path, url, f"{archive.name}!/b.png") == (films / "b.png").read_bytes()
        assert set(found_in(tmp_path, f"{url}/{archive.name}")) == set(found)


def test_globs_take_what_matches_once(films: Path, tmp_path: Path):
    assert set(found_in(tmp_path, f"{films}/a/[12].dcm")) == {"1.dcm", "2.dcm"}
    assert set(found_in(tmp_path, f"{films}/**/*")) == set(NAMES)
    assert found_in(tmp_path, f"{films}/*.none") == {}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_list_names_the_files(films: Path, tmp_path: Path, suffix: str):
    path = films.parent / f"list{suffix}"
    names = ["films/a/1.dcm", str(films / "b.png"), "films/none.dcm"]
    if suffix == ".parquet":
        pq.write_table(pa.table({"file": names, "more": [1, 2, 3]}), path)
    elif suffix == ".jsonl":
        path.write_text("".join(f'{{"file": "{name}"}}\n' for name in names))
    else:
        path.write_text("file\n" + "\n".join(names))
    found = found_in(tmp_path, path)
    assert set(found) == {"films/a/1.dcm", "films/b.png", "films/none.dcm"}
    assert found["films/none.dcm"].size == -1 and found["films/b.png"].size > 0


def test_a_list_without_files_is_refused(tmp_path: Path):
    (tmp_path / "list.csv").write_text("path\nx.dcm\n")
    with pytest.raises(ValueError, match=r"list\.csv: no column 'file'"):
        found_in(tmp_path, tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("file\ns3://bucket/x.dcm\n")
    with pytest.raises(ValueError, match=r"list\.csv: s3://bucket/x\.dcm: lists name local files"):
        found_in(tmp_path, tmp_path / "list.csv")


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_a_medium_is_read_by_its_directory(films: Path, tmp_path: Path):
    records = []
    for parts in (["A", "IM0"], ["A", "IM1"], ["..", "OUT"]):
        record = pydicom.Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", parts
        records.append(record)
    medium = tmp_path / "cd"
    (medium / "A").mkdir(parents=True)
    for name in ("IM0", "IM1", "stray"):
        (medium / "A" / name).write_bytes((films / "a" / "0.dcm").read_bytes())
    (tmp_path / "OUT").write_bytes((films / "a" / "0.dcm").read_bytes())
    directory = pydicom.Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    directory.DirectoryRecordSequence = records
    directory.save_as(medium / "DICOMDIR", enforce_file_format=True)
    found = found_in(tmp_path, medium / "DICOMDIR")
    assert set(found) == {"A/IM0", "A/IM1"} and all(f.size > 0 for f in found.values())
    assert len(found_in(tmp_path, medium)) == 4  # a folder is walked, whatever its DICOMDIR says


def test_unknown_places_are_refused(tmp_path: Path):
    for source, word in (
        (tmp_path / "none", "no such source"),
        ("memory://nowhere/at/all", "no such source"),
        ("nosuch://x/y", "nosuch"),
        ("memory://x/*.dcm", "local paths only"),
    ):
        with pytest.raises(ValueError, match=word):
            source_of(source, tmp_path)


# Hostile archives


def hostile_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for info, content in members:
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def test_names_that_lead_out_and_links_are_refused(films: Path, tmp_path: Path):
    film = (films / "b.png").read_bytes()
    link = tarfile.TarInfo("link.dcm")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    bad = tmp_path / "bad"
    bad.mkdir()
    hostile_tar(
        bad / "x.tar",
        (tarfile.TarInfo("../up.png"), film),
        (tarfile.TarInfo("/etc/root.png"), film),
        (link, b""),
        (tarfile.TarInfo("good.png"), film),
    )
    with zipfile.ZipFile(bad / "x.zip", "w") as file:
        file.writestr("..\\up.png", film)
        soft = zipfile.ZipInfo("soft.png")
        soft.external_attr = 0o120777 << 16
        file.writestr(soft, "/etc/passwd")
        file.writestr("good.png", film)
    found = found_in(tmp_path, bad)
    fine = {path for path, f in found.items() if not f.refused}
    assert fine == {"x.tar!/good.png", "x.zip!/good.png"} and len(found) == 7
    assert "leads out" in found["x.tar!/../up.png"].refused and "link" in found["x.tar!/link.dcm"].refused


def test_a_member_that_is_larger_than_it_says_is_not_unpacked(films: Path, tmp_path: Path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.dcm", bytes(5_000_000))
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):  # uncompressed size: local header, directory
        place = content.index(magic) + at
        content[place : place + 4] = struct.pack("<I", 1000)
    path.write_bytes(content)
    assert found_in(tmp_path, path)["x.zip!/bomb.dcm"].size == 1000
    with pytest.raises(ValueError, match=r"in x\.zip"):
        content_of(tmp_path, path, "x.zip!/bomb.dcm")


def test_an_encrypted_member_is_refused(films: Path, tmp_path: Path):
    path = pack_zip(films, tmp_path / "x.zip")
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # general purpose flags: local header, directory
        content[content.index(magic) + at] |= 1
    path.write_bytes(content)
    refused = [found.refused for found in found_in(tmp_path, path).values()]
    assert refused.count("encrypted") == 1 and refused.count("") == len(refused) - 1


def test_bombs_and_deep_nests_are_refused(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 100_000)
    monkeypatch.setattr(archives, "MAX_UNPACKED_RATIO", -(2**30) / 1000)
    folder = tmp_path / "bad"
    folder.mkdir()
    with zipfile.ZipFile(folder / "large.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("large.dcm", bytes(200_000))
    with tarfile.open(folder / "bomb.tar.gz", "w:gz") as file:
        info = tarfile.TarInfo("zeros")
        info.size = 2_000_000
        file.addfile(info, io.BytesIO(bytes(info.size)))
    content = pack_zip(films, tmp_path / "inner.zip").read_bytes()
    for _ in range(3):
        nest = io.BytesIO()
        with zipfile.ZipFile(nest, "w") as file:
            file.writestr("inner.zip", content)
        content = nest.getvalue()
    (folder / "nest.zip").write_bytes(content)
    reasons = {path: f.refused for path, f in found_in(tmp_path, folder).items()}
    assert "200000 bytes" in reasons.pop("large.zip!/large.dcm")
    assert "unpacks to more than" in reasons.pop("bomb.tar.gz")
    assert reasons == {
        "nest.zip!/inner.zip!/inner.zip": "archives within 2 others are not opened",
    }


def test_damaged_archives_are_one_file_in_quarantine(films: Path, key_file: Path, tmp_path: Path):
    for kind in ("zip", "tar", "tgz", "tar.xz"):
        (archive,) = packed(films, kind).iterdir()
        (films / archive.name).write_bytes(archive.read_bytes()[: archive.stat().st_size // 3 + 7])
    (films / "empty.zip").write_bytes(b"")
    summary = build([films], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    assert summary.samples == 5
    reasons = {r["path"]: r["reason"] for r in pq.read_table(tmp_path / "data" / QUARANTINE).to_pylist()}
    whole = [path for path in reasons if "!/" not in path]
    assert {"x.zip", "x.tgz", "x.tar.xz", "empty.zip"} <= set(whole)
    assert all("archive that cannot be read" in reasons[path] for path in whole)
    assert not (tmp_path / "data" / ".build").exists()


def test_random_damage_to_archives_never_raises(films: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "bad"
    folder.mkdir()
    for kind in ("zip", "tar", "tgz"):
        (archive,) = packed(films, kind).iterdir()
        content = archive.read_bytes()
        for number in range(12):
            damaged = bytearray(content)
            for at in rng.integers(0, len(damaged), 30):
                damaged[at] = rng.integers(256)
            damaged[-200:] = (
                rng.integers(0, 256, 200, dtype=np.uint8).tobytes() if number % 3 == 0 else damaged[-200:]
            )
            (folder / f"{number}.{kind}").write_bytes(damaged)
    source = source_of(folder, tmp_path / "spool")
    read = 0
    for found in walk([source], ()):
        if not found.refused:
            try:
                source.root.read(found.path)
                read += 1
            except (ValueError, OSError):
                pass
    assert read > 0
