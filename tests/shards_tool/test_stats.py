import json
import re
import shutil
from pathlib import Path

import pytest

from shards_tool.build import build
from shards_tool.schema import MANIFEST
from shards_tool.stats import MAX_ROWS, Section, shortened, stats_of, write_page
from tests.shards_tool.archive import FILMS, INPUTS, SMALL, write_archive, write_key


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stats")
    write_archive(root / "archive")
    meta = [root / "archive" / "table.csv"]
    build([root / "archive"], root / "data", SMALL, meta=meta, key_file=write_key(root / "key"), workers=0)
    return root / "data"


def test_everything_is_counted_once(data: Path):
    sections = {section.title: section for section in stats_of(data)}
    counts = {title: section.counts for title, section in sections.items()}
    assert sections["Input files"].note == f"{INPUTS} in all"
    assert sum(counts["Input files"].values()) == INPUTS
    every_film = ("Samples by split", "Bits stored", "View", "Age, years", "Sex", "Window", "Contour")
    assert all(sum(counts[title].values()) == FILMS for title in every_film)
    assert counts["Bits stored"] == {"8": 4, "12": 3} and counts["Contour"] == {"rect": FILMS}
    assert counts["Age, years"] == {"30-39": 1, "40-49": 3, "90-99": 1, "unknown": 2}
    assert counts["Labels present"] == {"Edema": 1, "Effusion": 1, "Nodule": 1}
    assert counts["Labels uncertain"] == {"Nodule": 1}
    assert sum(counts["Chest's share of the film"].values()) == FILMS
    assert set(counts["Chest's share of the film"]) <= {
        "20-29%",
        "30-39%",
    }  # 50% of the rows, 62.5% of the columns
    assert counts["Left out: duplicate"] == {"duplicate of ...": 1}


def test_the_page_stands_alone_and_shows_every_count(data: Path, tmp_path: Path):
    sections = [*stats_of(data), Section(title="<b>&", counts={"<script>": 3})]
    path = write_page(data, sections, tmp_path)
    page = path.read_text()
    assert path == tmp_path / "stats.html" and write_page(data, sections, tmp_path / "x.html").exists()
    assert not re.search(r"(src|href)=|https?:|<script", page) and "&lt;b&gt;&amp;" in page
    for section in sections:
        for text, count in section.counts.items():
            assert f"<td>{count}</td>" in page and (text in page or "<" in text)


def test_a_long_tail_is_summed_up():
    counts = {f"reason {i}": 1 for i in range(MAX_ROWS + 7)}
    rows = shortened(Section(title="", counts=counts))
    assert len(rows) == MAX_ROWS + 1 and rows["7 others"] == 7 and sum(rows.values()) == len(counts)


def test_an_empty_split_is_no_trouble_and_no_data_set_is_an_error(data: Path, tmp_path: Path):
    one = Path(shutil.copytree(data, tmp_path / "one"))
    assert json.loads((one / MANIFEST).read_bytes())["counts"]["samples"] == FILMS
    with pytest.raises(ValueError, match="no data set"):
        stats_of(tmp_path)
