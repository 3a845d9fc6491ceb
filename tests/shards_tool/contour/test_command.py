import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards_tool.cli import main
from shards_tool.phantom.render import render_film
from shards_tool.phantom.study import plan_patient
from tests.shards_tool.archive import picture, write_dicom


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["contour", *map(str, arguments)])
    return int(stopped.value.code or 0)


def lines(out: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in (out / "contours.jsonl").read_text().splitlines()]
    return {Path(row["file"]).name: row for row in rows}


def test_films_of_all_kinds_get_a_mask_and_a_line(tmp_path: Path):
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    phantom = render_film(plan_patient(3, 1, side=1280)[0].spec, scale=0.3)
    grey = (phantom.pixels >> 4).astype(np.uint8)
    write_dicom(films / "dicom.dcm", phantom.pixels)
    cv2.imwrite(str(films / "grey.png"), grey)
    cv2.imwrite(str(films / "colour.png"), cv2.merge([grey, grey, grey]))
    cv2.imwrite(str(films / "negative.png"), 255 - grey)
    cv2.imwrite(str(films / "lying.png"), np.rot90(grey))
    cv2.imwrite(str(films / "blank.png"), np.full((90, 80), 9, np.uint8))
    cv2.imwrite(str(films / "small.png"), picture(1, 50, 50))
    assert run(films, "--out", out) == 0
    found = lines(out)
    assert len(found) == 7 and list(found) == sorted(found)
    for name, line in found.items():
        mask = cv2.imread(str(out / f"{Path(name).stem}.png"), cv2.IMREAD_UNCHANGED)
        assert mask is not None and mask.dtype == np.uint8 and mask.shape == (line["height"], line["width"])
        assert line["areas"] == {"lung": int((mask == 255).sum()), "chest": int((mask >= 128).sum())}
        assert set(np.unique(mask)) <= {0, 128, 255}
        assert 0 <= line["certainty"] <= 1 and (line["method"] == "network") >= bool(line["areas"]["lung"])
    for name in ("dicom.dcm", "grey.png", "colour.png", "negative.png", "lying.png"):
        assert found[name]["method"] == "network" and found[name]["certainty"] > 0.8, found[name]
    assert found["lying.png"]["orientation"] == "rotated90" and found["grey.png"]["orientation"] == "upright"
    for name in ("blank.png", "small.png"):
        assert found[name]["method"] == "mean" and found[name]["reason"], found[name]


def test_a_file_without_a_picture_is_one_line_and_status_1(tmp_path: Path):
    (tmp_path / "text.png").write_text("no picture")
    assert run(tmp_path / "text.png", "--out", tmp_path / "out") == 1
    line = lines(tmp_path / "out")["text.png"]
    assert line["method"] == "" and line["reason"] and not (tmp_path / "out" / "text.png").exists()


def test_films_of_one_stem_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a.png", "a.jpg"):
        cv2.imwrite(str(tmp_path / name), picture(1))
    assert run(tmp_path, "--out", tmp_path / "out") == 2
    assert "both" in capsys.readouterr().err


def test_other_sources(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "a.png"), picture(1))
    for spec, areas in (("none", 0), ("rect", round(0.5 * 96) * round(0.65 * 80))):
        assert run(tmp_path / "a.png", "--out", tmp_path / spec, "--contour", spec) == 0
        line = lines(tmp_path / spec)["a.png"]
        assert line["method"] == spec and line["areas"] == {"lung": 0, "chest": areas}
