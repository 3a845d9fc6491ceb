from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.encoding import QUALITIES, losses, main, psnr


def test_psnr_of_rounding_to_8_bits_is_that_of_theory():
    original = np.random.default_rng(0).integers(0, 65536, (256, 256)).astype(np.uint16)
    rounded = np.rint(original / 257).astype(np.uint8)
    # A uniform error of one step has a variance of 1/12 of its square.
    assert psnr(original, rounded) == pytest.approx(20 * np.log10(255 * np.sqrt(12)), abs=0.1)


def test_less_is_lost_at_a_higher_quality(tmp_path: Path):
    coarse = np.random.default_rng(0).integers(0, 256, (12, 10)).astype(np.uint8)
    film = cv2.resize(coarse, (300, 360), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "film.png"), film)
    rows = losses([tmp_path / "film.png"])
    assert [row.name for row in rows][:2] == ["PNG, 16 bits", "8 bits, no JPEG"]
    assert rows[0].median_db == np.inf
    jpegs = [row.median_db for row in rows[2:]]
    assert len(jpegs) == len(QUALITIES)
    assert jpegs[:-1] == sorted(jpegs[:-1])  # at 100, what is left is the transform's own rounding
    assert max(jpegs) < rows[1].median_db + 0.1


def test_the_command_writes_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cv2.imwrite(str(tmp_path / "film.png"), np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16)
    main((tmp_path,), phantoms=0, json_file=tmp_path / "loss.json")
    printed = capsys.readouterr().out
    assert printed.startswith("oracle") and "JPEG, quality 95" in printed
    assert (tmp_path / "loss.json").stat().st_size > 100
