import pytest

from shards_tool.views import is_other_body_part, view_of


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PA", "PA"),
        ("p.a.", "PA"),
        ("Chest AP portable", "AP"),
        ("Thorax p.a.", "PA"),
        ("LL", "LATERAL"),
        ("L", "LATERAL"),
        ("W033 Thorax lat.", "LATERAL"),
        ("LAO", "OBLIQUE"),
        ("胸部正位 后前位", "PA"),
        ("胸部侧位片", "LATERAL"),
        ("床旁胸片", "AP"),
        ("LLD", "AP"),  # lying on the left side, taken from the front
        ("left lateral decubitus", "AP"),
        ("Chest PA and lateral", ""),
        ("AP/PA", ""),
        ("Chest L", ""),  # a side marker, or half a word
        ("PATIENT", ""),
        ("Apical", ""),
        ("", ""),
    ],
)
def test_views_in_words(text: str, view: str):
    assert view_of(text) == view


def test_the_first_text_that_tells_wins():
    assert view_of("", "PA and lateral", "Chest AP", "lateral") == "AP"


@pytest.mark.parametrize("text", ["", "CHEST", "PORT CHEST", "Thorax", "CHEST_TO_ABDOMEN", "UNKNOWN", "胸部"])
def test_chests_and_what_says_nothing_are_kept(text: str):
    assert not is_other_body_part(text)


@pytest.mark.parametrize("text", ["HIP", "ABDOMEN", "T-SPINE", "KNEE_L", "腹部"])
def test_other_body_parts_are_told(text: str):
    assert is_other_body_part(text)
