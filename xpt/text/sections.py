"""Which part of a report a text is: what is seen, or what it means."""

import re
from typing import Literal

Section = Literal["findings", "impression", "both"]

_HEADINGS = {
    "findings": r"\b(?:findings?|description)\s*[:：]"
    r"|(?:影像学?|检查|放射学?|X线|胸片)?(?:所见|表现)\s*[:：]",
    "impression": r"\b(?:impressions?|conclusions?)\s*[:：]"
    r"|(?:影像学?|检查|放射学?|X线)?(?:诊断(?:意见|印象)?|印象|结论|意见|提示)\s*[:：]",
}
_HEADING = re.compile("|".join(f"(?P<{name}>{form})" for name, form in _HEADINGS.items()), re.IGNORECASE)


def section_of(report: str, section: Section) -> str:
    """The text under the section's headings, without them; "" where there is none.

    `both` is the report as it is. A report without any heading counts as findings.
    """
    if section == "both":
        return report
    headings = list(_HEADING.finditer(report))
    if not headings:
        return report if section == "findings" else ""
    ends = [heading.start() for heading in headings[1:]] + [len(report)]
    parts = [
        report[heading.end() : end].strip()
        for heading, end in zip(headings, ends, strict=True)
        if heading.lastgroup == section
    ]
    return " ".join(part for part in parts if part)


def without_headings(report: str) -> str:
    """What is compared: headings are the same in every report, and would only raise the scores by words."""
    return " ".join(_HEADING.sub(" ", report).split())
