import json
from pathlib import Path

import pytest

from shards_tool.metadata import MetaRow, clean_age, clean_sex, clean_view, read_table


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("047Y", 47),
        ("62", 62),
        ("62.5", 62),
        ("018M", 1),
        ("006W", 0),
        ("040D", 0),
        ("", None),
        ("x", None),
        ("999", None),
    ],
)
def test_ages(text: str, age: int | None):
    assert clean_age(text) == age


def test_views_and_sexes():
    views = [clean_view(view) for view in ("PA", " ap supine", "LL", "OBLIQUE", "")]
    assert views == ["PA", "AP", "LATERAL", "OBLIQUE", ""]
    assert [clean_sex(s) for s in ("f", "Male", "O", "unknown")] == ["F", "M", "O", ""]


ROW = {
    "file": "a.png",
    "patient": "7",
    "study": "s",
    "view": "AP Supine",
    "sex": "F",
    "age": "93",
    "labels": "Edema|Effusion",
    "label:Nodule": "0",
    "label:Mass": "-1",
    "label:Fracture": "",
    "report_en": "Clear, “normal”.",
    "report_zh": "双肺清晰。",
    "report_id": "5",
}
EXPECTED = MetaRow(
    patient="7",
    study="s",
    view="AP",
    sex="F",
    age=93,
    labels={"Edema": 1, "Effusion": 1, "Nodule": 0, "Mass": -1},
    reports={"en": "Clear, “normal”.", "zh": "双肺清晰。"},
)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_all_forms_of_table_say_the_same(tmp_path: Path, suffix: str):
    path = tmp_path / f"table{suffix}"
    if suffix in (".csv", ".tsv"):
        comma = "," if suffix == ".csv" else "\t"
        lines = [comma.join(ROW), comma.join(f'"{value}"' for value in ROW.values())]
        path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    else:
        row = ROW | {"labels": ["Edema", "Effusion"], "age": 93, "label:Nodule": 0, "label:Fracture": None}
        path.write_text(json.dumps(row) if suffix == ".jsonl" else json.dumps([row]), encoding="utf-8")
    assert list(read_table(path)) == [("a.png", EXPECTED)]


def test_a_later_table_adds_to_an_earlier_one_and_wins():
    merged = EXPECTED.merged(MetaRow(sex="M", labels={"Nodule": 1}, reports={"en": "Nodule."}))
    assert (merged.patient, merged.sex, merged.age) == ("7", "M", 93)
    assert merged.labels == EXPECTED.labels | {"Nodule": 1}
    assert merged.reports == {"en": "Nodule.", "zh": "双肺清晰。"}


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("t.csv", "name,age\nx,3\n", "row 1: no 'file'; it has name, age"),
        ("t.csv", "file,label:Nodule\na.png,maybe\n", "row 1: label:Nodule is 'maybe'"),
        ("t.json", '{"file": "a.png"}', "wanted a list"),
        ("t.jsonl", "[1]", "wanted an object per row"),
        ("t.json", "[{", "Expecting"),
        ("t.xlsx", "", "wanted a .csv"),
        ("t.csv", b"file\n\xff\xfe\n", "codec can't decode"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(tmp_path: Path, name: str, content: str | bytes, word: str):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=word):
        list(read_table(path))


def test_a_missing_table_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no such file"):
        list(read_table(tmp_path / "t.csv"))
