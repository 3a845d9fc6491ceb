"""Phantom reports: they say what is drawn, all of it, and nothing else."""

import re

import numpy as np
import pytest

from shards_tool.phantom.findings import (
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    FINDINGS,
    LABELS,
    NODULE,
    PNEUMOTHORAX,
    Finding,
    draw_finding,
    draw_findings,
    next_findings,
)
from shards_tool.phantom.report import write_report

# Written apart from the templates: how a reader would recognise a finding and its denial.
TERMS = {
    "en": {
        NODULE: r"nodule|round opacity",
        EFFUSION: r"effusion|costophrenic|meniscus",
        CONSOLIDATION: r"consolidation|airspace opacity",
        CARDIOMEGALY: r"enlarged|cardiomegaly",
        PNEUMOTHORAX: r"pneumothorax",
    },
    "zh": {
        NODULE: r"结节",
        EFFUSION: r"积液|肋膈角",
        CONSOLIDATION: r"实变|密度增高",
        CARDIOMEGALY: r"(心影|心脏).*增大",
        PNEUMOTHORAX: r"气胸",
    },
}
DENIAL = {
    "en": r"\bno\b|\bclear\b|\bsharp\b|\bnormal\b|without focal|unremarkable",
    "zh": r"未见|锐利|清晰。|清晰锐利|正常|不大",
}
SIDES = {"en": {-1: "right", 1: "left"}, "zh": {-1: "右", 1: "左"}}
ZONES = {
    "en": {"upper": "upper", "middle": "middle", "lower": "lower"},
    "zh": {"upper": "上", "middle": "中", "lower": "下"},
}


def sentences(text: str, language: str) -> list[str]:
    if language == "zh":
        return [s + "。" for s in re.split(r"[。；]|影像所见：|影像诊断：", text) if s]
    body = text.replace("FINDINGS: ", "").replace("IMPRESSION: ", "")
    return [s for s in re.split(r"(?<=[a-z)0-9])\.(?: |$)", re.sub(r"(?<!\d)\d\. ", "", body)) if s]


def asserted(text: str, name: str, language: str) -> list[str]:
    """Sentences that mention a finding and do not deny it."""
    # Missing vessels beyond the pleural line are a sign of pneumothorax, not a denial.
    plain = text.replace("with no lung markings", "").replace("无肺纹理", "")
    mentions = (s for s in sentences(plain, language) if re.search(TERMS[language][name], s, re.I))
    return [s for s in mentions if not re.search(DENIAL[language], s, re.I)]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", FINDINGS)
def test_a_report_names_the_finding_with_its_side_and_zone(language, name):
    for seed in range(40):
        finding = draw_finding(name, np.random.default_rng(seed))
        text = write_report((finding,), seed, language)
        said = asserted(text, name, language)
        assert len(said) >= 2, text  # in the findings and in the impression
        if finding.side:
            assert all(SIDES[language][finding.side] in s.lower() for s in said), text
        if finding.zone:
            assert all(ZONES[language][finding.zone] in s.lower() for s in said), text
        for other in FINDINGS:
            if other != name:
                assert asserted(text, other, language) == [], (other, text)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_normal_report_asserts_nothing_and_denies_effusion_and_pneumothorax(language):
    for seed in range(40):
        text = write_report((), seed, language)
        for name in FINDINGS:
            assert asserted(text, name, language) == [], text
        for name in (EFFUSION, PNEUMOTHORAX):
            assert re.search(TERMS[language][name], text, re.I), text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_two_findings_are_both_reported(language):
    pairs = 0
    for seed in range(120):
        findings = draw_findings(LABELS[seed % 6], np.random.default_rng(seed))
        text = write_report(findings, seed, language)
        for name in FINDINGS:
            assert bool(asserted(text, name, language)) == (name in {f.name for f in findings}), text
        pairs += len(findings) == 2
    assert pairs > 5


def test_size_words_follow_the_drawn_size():
    def effusion(size: float) -> str:
        return write_report((Finding(name=EFFUSION, side=1, zone="", size=size),), 3, "en").lower()

    assert "small" in effusion(0.1) and "large" in effusion(0.9)
    nodule = write_report((Finding(name=NODULE, side=1, zone="upper", size=12.3),), 0, "zh")
    assert "12mm" in nodule or "1.2cm" in nodule
    heart = Finding(name=CARDIOMEGALY, side=0, zone="", size=0.61)
    assert "0.61" in write_report((heart,), 0, "en") and "0.61" in write_report((heart,), 0, "zh")


def test_wording_varies_between_films():
    finding = (Finding(name=CONSOLIDATION, side=-1, zone="lower", size=0.5),)
    for language in ("en", "zh"):
        assert len({write_report(finding, seed, language) for seed in range(50)}) > 40


def test_chinese_has_full_width_punctuation_and_no_spaces():
    for seed in range(60):
        text = write_report(draw_findings(LABELS[seed % 6], np.random.default_rng(seed)), seed, "zh")
        assert not re.search(r"[\s,;:!?()]", text), text
        assert not re.search(r"\.(?!\d)", text), text
        assert text.startswith("影像所见：") and "影像诊断：" in text and text.endswith("。")


def test_english_has_no_leftover_braces_and_starts_sentences_with_capitals():
    for seed in range(60):
        findings = draw_findings(LABELS[seed % 6], np.random.default_rng(seed))
        text = write_report(findings, seed, "en")
        assert "{" not in text and "  " not in text
        assert all(s[0].isupper() for s in sentences(text, "en") if s[0].isalpha()), text


def test_findings_change_between_studies_but_hearts_and_nodules_stay():
    rng = np.random.default_rng(0)
    cleared = changed = 0
    for i in range(200):
        before = draw_findings(LABELS[i % 6], rng)
        after = next_findings(before, rng)
        names = {f.name for f in after}
        assert len(after) <= 2 and len(names) == len(after)
        for finding in before:
            if finding.name in (CARDIOMEGALY, NODULE):
                assert finding.name in names
            cleared += finding.name not in names
        changed += {f.size for f in after} != {f.size for f in before}
    assert cleared > 10 and changed > 50
