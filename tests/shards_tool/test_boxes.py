"""Boxes from the source's tables onto the stored pictures."""

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from shards_tool.boxes import read_boxes, write_boxes
from shards_tool.build import build
from shards_tool.settings import BuildSettings
from tests.shards_tool.archive import picture, records_of, twelve_bit, write_dicom

KEY = "0123456789abcdef" * 4
TABLES = {
    "nih.csv": "Image Index,Finding Label,Bbox [x,y,w,h],,,\na/film.png,Infiltrate,30,20,60,40,,,\n",
    "labels.csv": 'file,nih_bboxes\nfilm.png,"[[""Infiltration"", 30, 20, 60, 40]]"\nother.png,\n',
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A film of 200 x 120 pixels with one bright rectangle, and its shards of 96 pixels."""
    pixels = np.random.default_rng(0).integers(0, 50, (200, 120), dtype=np.uint8)
    pixels[20:60, 30:90] = 255
    (tmp_path / "films" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "films" / "a" / "film.png"), pixels)
    (tmp_path / "key").write_text(KEY)
    settings = BuildSettings(side=96, fractions=(1.0, 0.0, 0.0), views="all")
    build([tmp_path / "films"], tmp_path / "shards", settings, key_file=tmp_path / "key", workers=0)
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_a_box_lands_on_what_it_frames(archive: Path, name: str):
    (archive / name).write_text(TABLES[name])
    films, shards, out = archive / "films", archive / "shards", archive / "boxes.parquet"
    assert write_boxes(shards, films, archive / name, KEY.encode(), out) == (1, 0)
    (row,) = pq.read_table(out).to_pylist()
    (sample,) = pq.read_table(shards / "samples.parquet").to_pylist()
    assert (row["key"], row["finding"]) == (sample["key"], "Infiltration")
    index = np.load(shards / "train" / "index.npy")[0]
    data = (shards / "train" / "shard-000000.tar").read_bytes()
    first = int(index["image_offset"])
    stored = cv2.imdecode(
        np.frombuffer(data[first : first + int(index["image_size"])], np.uint8), cv2.IMREAD_GRAYSCALE
    )
    assert stored is not None
    ys, xs = np.nonzero(stored > 150)
    edges = [row[edge] for edge in ("top", "left", "bottom", "right")]
    np.testing.assert_allclose(edges, [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1], atol=1.0)


def test_rsnas_and_the_phantoms_tables_are_read(tmp_path: Path):
    (tmp_path / "rsna.csv").write_text("patientId,x,y,width,height,Target\np1,,,,,0\np2,10,20,30,40,1\n")
    (box,) = read_boxes(tmp_path / "rsna.csv")
    assert (box.file, box.finding, box.top, box.left, box.bottom, box.right) == (
        *("p2.dcm", "Lung Opacity"),
        *(20, 10, 60, 40),
    )
    film = {"file": "dicom/x.dcm", "findings": [{"name": "Nodule", "box": [1, 2, 3, 4]}]}
    (tmp_path / "truth.jsonl").write_text(json.dumps(film) + "\n")
    (box,) = read_boxes(tmp_path / "truth.jsonl")
    assert (box.left, box.top, box.right, box.bottom) == (1, 2, 3, 4)


def test_tables_that_cannot_be_used_are_refused(archive: Path):
    (archive / "odd.csv").write_text("name,x\na,1\n")
    with pytest.raises(ValueError, match="no known table of boxes; its columns are name, x"):
        list(read_boxes(archive / "odd.csv"))
    (archive / "nih.csv").write_text(TABLES["nih.csv"])
    with pytest.raises(ValueError, match=r"none of its 1 boxes .*, 1 of films that are not in the data set"):
        write_boxes(
            archive / "shards",
            archive / "films",
            archive / "nih.csv",
            b"another key",
            archive / "boxes.parquet",
        )
    assert not (archive / "boxes.parquet").exists()


def boxed(root: Path, *files: str) -> Path:
    """A table with one box of each file."""
    rows = [f'{file},"[[""Mass"", 8, 8, 16, 16]]"\n' for file in files]
    (root / "boxes.csv").write_text("file,nih_bboxes\n" + "".join(rows))
    return root / "boxes.csv"


def boxes_of(root: Path, table: Path) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """What `write_boxes` counts of the films in `root / "films"`, and the sizes of those that it chose."""
    shards = root / "shards of some"
    settings = BuildSettings(side=96, fractions=(1.0, 0.0, 0.0), views="all", contour="rect")
    (root / "key").write_text(KEY)
    build([root / "films"], shards, settings, key_file=root / "key", workers=0)
    counts = write_boxes(shards, root / "films", table, KEY.encode(), root / "boxes.parquet")
    records = records_of(shards)
    chosen = [records[row["key"]] for row in pq.read_table(root / "boxes.parquet").to_pylist()]
    return counts, [(record["original_height"], record["original_width"]) for record in chosen]


def films_of(root: Path, **sizes: tuple[int, int]) -> None:
    for seed, (name, size) in enumerate(sizes.items()):
        path = root / "films" / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"{path}.png", picture(seed, *size))


def test_a_bare_name_of_several_films_is_none_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    films_of(tmp_path, a_image=(96, 80), b_image=(120, 80), c_other=(160, 80))
    counts, sizes = boxes_of(tmp_path, boxed(tmp_path, "image.png", "b/image.png", "other.png", "none.png"))
    assert counts == (2, 2) and sizes == [(120, 80), (160, 80)]
    assert "left out 1 boxes of films that are not at their place in" in caplog.text
    assert "share their bare name with others" in caplog.text
    assert f"left out 1 boxes of films that are not in {tmp_path / 'films'}" in caplog.text


def test_a_film_is_not_taken_for_its_namesake_that_is_missing(tmp_path: Path):
    films_of(tmp_path, b_image=(120, 80))
    counts, sizes = boxes_of(tmp_path, boxed(tmp_path, "a/image.png", "b/image.png"))
    assert counts == (1, 1) and sizes == [(120, 80)]


def test_films_that_were_turned_or_stretched_have_no_boxes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    films_of(tmp_path, plain=(96, 80))
    write_dicom(tmp_path / "films" / "oblong.dcm", twelve_bit(7), PixelSpacing=[0.2, 0.1])
    write_dicom(tmp_path / "films" / "square.dcm", twelve_bit(8), PixelSpacing=[0.1, 0.1])
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = tmp_path / "films" / f"exif {orientation}.jpg"
        Image.fromarray(picture(20 + orientation, 200, 80)).save(path, exif=exif, quality=95)
    table = boxed(
        tmp_path, *("plain.png", "oblong.dcm", "square.dcm", "exif 1.jpg", "exif 3.jpg", "exif 6.jpg")
    )
    counts, sizes = boxes_of(tmp_path, table)
    assert counts == (3, 3) and sizes == [(96, 80), (96, 80), (200, 80)]
    assert "left out 3 boxes of films that were stretched to square pixels or turned" in caplog.text


def test_a_folder_that_is_no_data_set_or_archive_is_refused(archive: Path):
    table = boxed(archive, "film.png")
    with pytest.raises(ValueError, match=r"films has no manifest.json: it is no data set"):
        write_boxes(archive / "films", archive / "films", table, KEY.encode(), archive / "boxes.parquet")
    with pytest.raises(ValueError, match=r"--archive .*nowhere: no such folder"):
        write_boxes(archive / "shards", archive / "nowhere", table, KEY.encode(), archive / "boxes.parquet")
