from pathlib import Path

import cv2
import numpy as np
import pytest

from shards_tool.build import build
from shards_tool.preview import CELL, contact_sheet, write_contact_sheet
from tests.shards_tool.archive import FILMS, SMALL


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


def test_no_data_set_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="no data set"):
        contact_sheet(tmp_path)
