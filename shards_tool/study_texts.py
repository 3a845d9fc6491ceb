"""MIMIC-CXR's reports: a text per study, `files/p10/p10000032/s50414267.txt`, with headed sections.

Findings and impression pass, each under its heading. What the other sections say (indication, history,
comparison, technique, notification) is not in the film.
"""

import re
from pathlib import PurePosixPath

_NAME = re.compile(r"s\d+\.txt")
_PATIENT = re.compile(r"p\d{3,}")
_HEADING = re.compile(
    # Headings stand in capitals at the beginning of a line; those of the two sections in any case.
    r"^[ \t]*(?:(?P<name>[A-Z][A-Z /,()&-]+)|(?P<part>(?i:findings?|impressions?|conclusions?))) *:(?!\S)",
    re.MULTILINE,
)
_IMPRESSIONS = {"IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS", "OPINION"}
_FILM_WORDS = {
    *("AP", "PA", "AND", "LATERAL", "LAT", "CHEST", "RADIOGRAPH", "RADIOGRAPHS", "XRAY", "X-RAY", "FILM"),
    *("SINGLE", "ONE", "TWO", "VIEW", "VIEWS", "OF", "THE", "PORTABLE", "FRONTAL", "UPRIGHT", "SUPINE"),
}


def is_study_text(name: str) -> bool:
    """Whether a file, or a member of an archive, is a study's report by its name."""
    return _NAME.fullmatch(PurePosixPath(name).name) is not None


def patient_and_study(name: str) -> tuple[str, str]:
    """The numbers in its path, as the data set's tables have them; "" for a patient that it does not name."""
    path = PurePosixPath(name)
    patient = path.parent.name.removeprefix("p") if _PATIENT.fullmatch(path.parent.name) else ""
    return patient, path.stem.removeprefix("s")


def findings_and_impression(text: str) -> tuple[str, str]:
    """Both sections on one line each; "" for one that is not there.

    FINDINGS AND IMPRESSION, and what stands under the name of the film (PORTABLE CHEST RADIOGRAPH), counts
    as findings. Where there is neither section, the last paragraph is the findings: old reports are so
    written, and the section table of the data set takes it too.
    """
    starts = list(_HEADING.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    parts: dict[str, list[str]] = {"findings": [], "impression": []}
    for start, end in zip(starts, ends, strict=False):
        if section := _section((start["name"] or start["part"]).upper()):
            parts[section].append(_one_line(text[start.end() : end]))
    findings, impression = (" ".join(filter(None, parts[name])) for name in ("findings", "impression"))
    if not findings and not impression:
        # What stands right after a heading belongs to it.
        paragraphs = re.split(r"\n\s*\n", text[starts[-1].end() if starts else 0 :])[bool(starts) :]
        findings = next((words for part in reversed(paragraphs) if (words := _one_line(part))), "")
    return findings, impression


def _section(heading: str) -> str:
    if heading in _IMPRESSIONS:
        return "impression"
    words = set(re.findall(r"[A-Z-]+", heading))
    is_film = "CHEST" in words and words <= _FILM_WORDS
    return "findings" if heading.startswith("FINDING") or is_film else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
