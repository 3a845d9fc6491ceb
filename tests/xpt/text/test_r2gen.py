"""R2Gen's way of scoring: cleaned, rare words unknown, references cut."""

from xpt.text.r2gen import IU_XRAY, MIMIC_CXR, UNKNOWN, Protocol, as_scored, clean, known_words


def test_cleaning():
    said = " ".join(clean("1. The heart is normal.. 2. No effusion, or (pneumothorax)."))
    assert said == "the heart is normal . no effusion or pneumothorax ."
    said = " ".join(clean("Well-expanded lungs; T8/T9.\nNo change."))
    assert said == "well-expanded lungs t8t9 . no change ."
    assert clean("") == []


def test_rare_words_are_unknown_in_the_reference_too():
    reports = ["Heart normal."] * 3 + ["Heart enlarged."] * 2
    known = known_words(reports, IU_XRAY)
    assert known == {"heart", "normal", "."}
    assert as_scored("Heart enlarged.", known, IU_XRAY) == ["heart", UNKNOWN, "."]
    assert known_words(reports, MIMIC_CXR) == frozenset()


def test_the_reference_is_cut():
    report = " ".join(["lung"] * 200)
    assert [len(as_scored(report, frozenset({"lung"}), p)) for p in (IU_XRAY, MIMIC_CXR)] == [59, 99]
    assert as_scored("a b c", frozenset("abc"), Protocol(least_count=1, length=3)) == ["a", "b"]
