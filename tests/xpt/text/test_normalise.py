"""One spelling of a report, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpt.text.normalise import MAX_CHARACTERS, checked_report, normalise


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("  The heart\r\n is\tnormal. ", "The heart is normal."),
        ("右肺 下野 见 １２ｍｍ 结节 。", "右肺下野见12mm结节。"),
        ("建议　ＣＴ　检查，心胸比０.５６。", "建议CT检查，心胸比0.56。"),
        ("A 1.5 cm nodule, 8 mm; T8-T9 (50%)", "A 1.5 cm nodule, 8 mm; T8-T9 (50%)"),
        ("影像所见：双肺清晰；心影不大（正常）。", "影像所见：双肺清晰；心影不大（正常）。"),
        ("\ufeffno\u200b effusion\x00", "no effusion"),
        ("Ro\u0308ntgen", "R\u00f6ntgen"),
        (" \n\t\u3000", ""),
    ],
)
def test_one_spelling(raw: str, wanted: str):
    assert normalise(raw) == wanted


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_twice_is_once(text: str):
    assert normalise(normalise(text)) == normalise(text)


def test_a_report_of_ten_thousand_characters_passes_and_one_more_does_not():
    assert len(checked_report("a" * MAX_CHARACTERS, "en", "study 7")) == MAX_CHARACTERS
    with pytest.raises(ValueError, match=r"study 7: .*'en' has 10,001 characters, wanted at most 10,000"):
        checked_report("a" * (MAX_CHARACTERS + 1), "en", "study 7")


@pytest.mark.parametrize("text", ["", " \n", "\u200b"])
def test_an_empty_report_is_refused(text: str):
    with pytest.raises(ValueError, match="study 7: the report in 'zh' is empty"):
        checked_report(text, "zh", "study 7")


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match=r"study 7: language 'fr' is unknown, wanted one of en, zh"):
        checked_report("poumons clairs", "fr", "study 7")
