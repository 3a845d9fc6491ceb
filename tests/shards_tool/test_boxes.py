"""Boxes from the source's tables onto the stored pictures."""

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from shards_tool.boxes import read_boxes, write_boxes
from shards_tool.build import build
from shards_tool.settings import BuildSettings

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
    with pytest.raises(ValueError, match="none of the films of its 1 boxes"):
        write_boxes(
            archive / "shards",
            archive / "films",
            archive / "nih.csv",
            b"another key",
            archive / "boxes.parquet",
        )
    assert not (archive / "boxes.parquet").exists()
