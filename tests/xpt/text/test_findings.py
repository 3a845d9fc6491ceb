"""The rules find what a report asserts and leave what it denies."""

import numpy as np
import pytest

from benchmarks.report_wordings import ASSERTED, DENIED
from shards_tool.phantom import findings as phantom
from shards_tool.phantom.report import write_report
from xpt.text.findings import FINDINGS, asserted_findings, label_findings

BOTH = {"Hydropneumothorax", "液气胸"}
"""Words that assert fluid too."""


def f1(pairs: list[tuple[set[str] | frozenset[str], set[str]]]) -> float:
    """Micro-averaged over (found, wanted)."""
    hits = sum(len(found & wanted) for found, wanted in pairs)
    return 2 * hits / sum(len(found) + len(wanted) for found, wanted in pairs)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_phantom_reports_are_read_exactly(language):
    for seed in range(300):
        drawn = phantom.draw_findings(phantom.LABELS[seed % 6], np.random.default_rng(seed))
        report = write_report(drawn, seed, language)
        assert asserted_findings(report, language) == {f.name for f in drawn}, report


@pytest.mark.parametrize("language", ["en", "zh"])
def test_wordings_that_no_phantom_uses(language):
    pairs = []
    for name in phantom.FINDINGS:
        for sentence in ASSERTED[language][name]:
            fluid = {phantom.EFFUSION} if any(word in sentence for word in BOTH) else set()
            pairs.append((asserted_findings(sentence, language), {name} | fluid))
        for sentence in DENIED[language][name]:
            pairs.append((asserted_findings(sentence, language), set()))
    assert f1(pairs) >= 0.90, [pair for pair in pairs if pair[0] != pair[1]]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_denial_beside_an_assertion_keeps_its_own(language):
    """Every asserted wording before and behind every denied one of another finding."""
    pairs = []
    for name in phantom.FINDINGS:
        others = [n for n in phantom.FINDINGS if n != name]
        for k, sentence in enumerate(ASSERTED[language][name]):
            if any(word in sentence for word in BOTH):
                continue
            denied = DENIED[language][others[k % len(others)]][0]
            for text in (f"{sentence} {denied}", f"{denied} {sentence}"):
                pairs.append((asserted_findings(text, language), {name}))
    assert f1(pairs) >= 0.90


@pytest.mark.parametrize(
    ("text", "language", "wanted"),
    [
        ("No effusion, consolidation or pneumothorax.", "en",
         {"Pleural Effusion": False, "Consolidation": False, "Pneumothorax": False}),
        ("No pneumothorax, small left effusion.", "en", {"Pneumothorax": False, "Pleural Effusion": True}),
        ("No consolidation but a large effusion.", "en", {"Consolidation": False, "Pleural Effusion": True}),
        ("No change in the effusion.", "en", {"Pleural Effusion": True}),
        ("Pneumothorax cannot be excluded.", "en", {"Pneumothorax": True}),
        ("Small pericardial effusion.", "en", {}),
        ("FINDINGS: Effusion. IMPRESSION: No effusion.", "en", {"Pleural Effusion": True}),
        ("未见气胸、实变及胸腔积液。", "zh",
         {"Pneumothorax": False, "Consolidation": False, "Pleural Effusion": False}),
        ("未见气胸，左侧胸腔积液。", "zh", {"Pneumothorax": False, "Pleural Effusion": True}),
        ("右侧气胸较前未见明显变化。", "zh", {"Pneumothorax": True}),
        ("不除外肺炎。", "zh", {"Consolidation": True}),
        ("心包积液。", "zh", {}),
        ("", "en", {}),
    ],
)  # fmt: skip
def test_how_far_a_denial_reaches(text: str, language, wanted: dict[str, bool]):
    assert label_findings(text, language) == wanted


@pytest.mark.parametrize("language", ["en", "zh"])
def test_long_reports_are_read_in_time(language):
    """Patterns that backtrack would take minutes here."""
    sentence = {"en": "no blunting of the heart and the cardiac ", "zh": "心影肋膈角未见"}[language]
    assert not asserted_findings((sentence * 2000)[:10_000], language)


@pytest.mark.realdata
def test_open_i_reports_agree_with_their_mesh_tags(cxr):
    from benchmarks.reports import mesh_agreement, read_open_i

    rows = {row.finding: row for row in mesh_agreement(read_open_i(cxr / "iu_reports_text.json"))}
    assert set(rows) == {*FINDINGS, "micro"}
    assert rows["Cardiomegaly"].f1 > 0.94
    assert rows["Atelectasis"].f1 > 0.85
    assert rows["Pleural Effusion"].f1 > 0.85
    assert all(row.recall > 0.85 for row in rows.values() if row.finding != "Edema")
