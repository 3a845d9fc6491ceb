"""Sections by their headings, in both languages."""

import pytest

from xpt.text.sections import section_of, without_headings

ENGLISH = "FINDINGS: Nodule: 12 mm. IMPRESSION: 1. Nodule."
CHINESE = "影像所见：右肺结节，所见骨质正常。影像诊断：结节。"


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        (ENGLISH, "Nodule: 12 mm.", "1. Nodule."),
        (CHINESE, "右肺结节，所见骨质正常。", "结节。"),
        ("Impression: Normal. Findings: Clear.", "Clear.", "Normal."),
        ("检查所见: 正常 诊断意见: 无", "正常", "无"),
        ("Clear lungs.", "Clear lungs.", ""),
    ],
)
def test_a_section_is_what_stands_under_its_heading(report: str, findings: str, impression: str):
    assert section_of(report, "findings") == findings
    assert section_of(report, "impression") == impression
    assert section_of(report, "both") == report


def test_headings_are_not_compared():
    assert without_headings(ENGLISH) == "Nodule: 12 mm. 1. Nodule."
    assert without_headings(CHINESE) == "右肺结节，所见骨质正常。 结节。"
