from pathlib import Path

import cv2
import numpy as np
import pytest

from shards_tool.build import build
from shards_tool.originals import Originals
from shards_tool.preview import CELL, contact_sheet, write_contact_sheet
from shards_tool.schema import INDEX, SPLITS
from tests.shards_tool.archive import FILMS, SMALL, twelve_bit, write_dicom


def test_the_sheet_shows_every_film_with_its_contour(archive: Path, key_file: Path, tmp_path: Path):
    build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    sheet = contact_sheet(tmp_path / "data", count=100, columns=4)
    rows = -(-FILMS // 4)
    assert sheet.shape == (rows * (CELL + 4) + 4, 4 * (CELL + 4) + 4, 3)
    is_coloured = np.ptp(sheet.astype(int), axis=2) > 60
    for i in range(FILMS):
        top, left = 4 + i // 4 * (CELL + 4), 4 + i % 4 * (CELL + 4)
        assert is_coloured[top : top + CELL, left : left + CELL].sum() > 500
    write_contact_sheet(tmp_path / "data", tmp_path / "sheet.png", count=100, columns=4)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "sheet.png")), sheet)


def test_chosen_films_are_shown_in_the_order_of_their_keys(archive: Path, key_file: Path, tmp_path: Path):
    data = tmp_path / "data"
    build([archive], data, SMALL, key_file=key_file, workers=0)
    everything = contact_sheet(data, count=100, columns=1)
    keys = [key.decode() for split in SPLITS for key in np.load(data / split / INDEX)["key"]]
    sheet = contact_sheet(data, columns=1, keys=[keys[2], keys[0]])
    pitch = CELL + 4
    for row, film in enumerate((2, 0)):
        np.testing.assert_array_equal(
            sheet[4 + row * pitch : (row + 1) * pitch], everything[4 + film * pitch : (film + 1) * pitch]
        )
    with pytest.raises(ValueError, match="no film 0123"):
        contact_sheet(data, keys=["0123"])


def test_no_data_set_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="no data set"):
        contact_sheet(tmp_path)


def test_before_and_after_stand_side_by_side(archive: Path, key_file: Path, tmp_path: Path):
    write_dicom(archive / "inverted.dcm", 4095 - twelve_bit(40), PhotometricInterpretation="MONOCHROME1")
    build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    originals = Originals(sources=[archive], key=key_file.read_bytes())
    sheet = contact_sheet(tmp_path / "data", count=100, columns=5, before=originals)
    films = FILMS + 1
    pitch = CELL + 4
    assert sheet.shape == (-(-2 * films // 4) * pitch + 4, 4 * pitch + 4, 3)
    likeness = []
    for i in range(films):
        cells = []
        for k in (0, 1):
            row, column = divmod(2 * i + k, 4)
            cell = sheet[4 + row * pitch :, 4 + column * pitch :][:CELL, :CELL]
            cells.append(cell[60:200, 130:190].mean(axis=2).ravel())
        likeness.append(np.corrcoef(*cells)[0, 1])
    assert sorted(np.sign(likeness).astype(int).tolist()) == [-1] + [1] * FILMS
    elsewhere = Originals(sources=[key_file], key=key_file.read_bytes())
    assert elsewhere.find({"0" * 16}) == {}
