import json
from pathlib import Path

import pytest

from shards_tool.scrub import scrub


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Discussed with Dr. Clara Virtua at 10:33 AM.", "Discussed with [name] at [date]."),
        ("Dictated by: John A. Smith, M.D.", "Dictated by: [name]"),
        ("Electronically signed by MARY O'NEIL on 3/12.", "Electronically signed by [name] on [date]."),
        ("Patient Name: Doe, Jane  MRN: 4471920", "Patient Name: [name]  MRN: [number]"),
        ("Phantomson^Ada was seen.", "[name] was seen."),
        ("Mrs. van der Berg", "Mrs. van der Berg"),  # not every name: see the module's docstring
        ("Compared with 2019-05-02 and March 3, 2019.", "Compared with [date] and [date]."),
        ("Prior from 12/03/1961; earlier one of May 2014.", "Prior from [date]; earlier one of [date]."),
        ("Operated in 2017.", "Operated in [date]."),
        (
            "Call 317-555-0142 or (317) 555-0142 or +00 555 123 4567.",
            "Call [number] or [number] or [number].",
        ),
        ("Accession ACC123000001", "Accession [number]"),
        ("SSN 123-45-6789, jane@example.org", "SSN [number], [number]"),
        ("Transferred from Phantom General Hospital, room 302.", "Transferred from [name], room [number]."),
        ("A 93-year-old woman.", "A 90-year-old woman."),
        ("姓名：赵相艾达，住院号：A1234567。", "姓名：[name]，住院号：[number]。"),
        ("患者张三，男，45岁，2019年5月2日入院。", "患者[name]，男，45岁，[date]入院。"),
        ("报告医师：李虚 审核医师：孙拟", "报告医师：[name] 审核医师：[name]"),
        ("已通知王主任，电话13800138000。", "已通知[name]，电话[number]。"),
        ("与5月2日片比较，上午10时30分。", "与[date]片比较，[date]。"),
        ("模拟市第一人民医院", "[name]"),
        ("95岁女性。", "90岁女性。"),
    ],
)
def test_what_looks_like_an_identity_goes(text: str, scrubbed: str):
    assert scrub(text)[0] == scrubbed
    assert scrub(scrubbed)[0] == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "A 3.2 x 4.5 cm mass in the right upper lobe, 61-year-old male.",
        "Nodule of 12 mm at T12; 4th and 5/6 ribs; tip 2.5 cm above the carina.",
        "The heart may be enlarged. Stable since the prior study.",
        "Trace effusion, grade 2/4, 120 kV and 320 mAs, matrix 2048.",
        "PAIN RT SCAPULAR AREA. Discussed with the ICU team.",
        "Signed out. Chest and lateral views. Unchanged from prior study 3.",
        "双肺纹理增多，右上肺见直径约12mm结节影，心影不大，主动脉钙化。",
        "患者高热3天，于昨日就诊，建议临床医师结合病史，必要时上级医院就诊。",
        "第5、6肋骨陈旧骨折，61岁。",
    ],
)
def test_findings_and_measurements_stay(text: str):
    assert scrub(text) == (text, 0)


def test_findings_are_counted_and_known_identities_go_wherever_they_stand():
    text, count = scrub("PHX-7 was seen by Dr. Otto; phx-7, PHX-77.", ["PHX-7"])
    assert text == "[number] was seen by [name]; [number], PHX-77." and count == 3


@pytest.mark.realdata
def test_deidentified_real_reports_stay_nearly_whole(cxr: Path):
    """Their identities are XXXX already, so nearly all that is found is found wrongly."""
    reports = json.loads((cxr / "iu_reports_text.json").read_text(encoding="utf-8"))
    english = [" ".join(str(r[k] or "") for k in ("findings", "impression", "comparison")) for r in reports]
    chinese = [r["report_zh"] for r in reports if r["report_zh"]]
    assert len(english) == 2433 and len(chinese) == 2035
    changed = [text for text in english if scrub(text.replace("XXXX", ""))[1]]
    assert len(changed) <= 2
    assert sum(scrub(text)[1] for text in chinese) == 0
