"""Scores by words are pycocoevalcap's own, scores by findings are counted by hand."""

import json
import shutil

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from xpt.text import scores
from xpt.text.scores import NO_JAVA, NOT_ENGLISH, finding_scores, variety, word_scores
from xpt.text.words import chinese_characters, chinese_words, english_words


@pytest.mark.realdata
def test_word_scores_equal_pycocoevalcaps_on_500_real_pairs(cxr):
    """Each study's findings beside its neighbour's, whole, called as COCO's evaluation calls them."""
    studies = json.loads((cxr / "iu_reports_text.json").read_text())
    texts = [r["findings"] for r in studies if english_words(r["findings"])][:501]
    references, candidates = texts[:-1], texts[1:]
    ours = word_scores(references, candidates, [str(i) for i in range(500)], english_words, meteor=False)
    order = np.random.default_rng(0).permutation(500)  # COCO's keys come in any order
    wanted = {int(i): [" ".join(english_words(references[i]))] for i in order}
    got = {int(i): [" ".join(english_words(candidates[i]))] for i in order}
    assert ours.bleu == pytest.approx(Bleu(4).compute_score(wanted, got, verbose=0)[0], abs=1e-12)
    assert ours.rouge_l.value == pytest.approx(Rouge().compute_score(wanted, got)[0], abs=1e-12)
    assert ours.cider.value == pytest.approx(Cider().compute_score(wanted, got)[0], abs=1e-12)
    assert ours.cider.low < ours.cider.value < ours.cider.high


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_of_the_same_text_in_other_spelling_is_one():
    references, candidates = ["The heart is normal in size."] * 2, ["the heart is normal in size"] * 2
    ours = word_scores(references, candidates, ["a", "b"], english_words, meteor=True)
    assert ours.meteor == pytest.approx(1.0)


def test_meteor_says_why_it_is_absent(monkeypatch):
    texts = ["no effusion"] * 2
    monkeypatch.setattr(scores.shutil, "which", lambda _: None)
    assert word_scores(texts, texts, ["a", "b"], english_words, meteor=True).meteor == NO_JAVA
    assert word_scores(texts, texts, ["a", "b"], chinese_characters, meteor=False).meteor == NOT_ENGLISH


def test_the_reference_is_scored_whole():
    """A candidate that stops after 60 words is not perfect."""
    long = " ".join(f"word{i}" for i in range(200))
    short = " ".join(f"word{i}" for i in range(60))
    same = word_scores([long, "x y"], [long, "x y"], ["a", "b"], english_words, meteor=False)
    cut = word_scores([long, "x y"], [short, "x y"], ["a", "b"], english_words, meteor=False)
    assert same.bleu[0] == pytest.approx(1)
    assert cut.bleu[0] == pytest.approx(np.exp(1 - 202 / 62), rel=1e-6)  # the brevity penalty


@pytest.mark.parametrize(
    ("words", "text", "wanted"),
    [
        (english_words, "The Heart isn't well-defined (1.5 cm); 50%, and/or T8-T9.",
         ["the", "heart", "isn", "t", "well-defined", "1.5", "cm", "50", "%", "and/or", "t8-t9"]),
        (chinese_characters, "左侧胸腔少量积液，约12.5mm，建议CT。",
         ["左", "侧", "胸", "腔", "少", "量", "积", "液", "约", "12.5", "mm", "建", "议", "ct"]),
        (chinese_words, "左侧胸腔少量积液。", ["左侧", "胸腔", "少量", "积液"]),
    ],
)  # fmt: skip
def test_words(words, text: str, wanted: list[str]):
    assert words(text) == wanted


def test_finding_scores_by_hand():
    references = ["Small effusion.", "Large effusion. Pneumothorax.", "No effusion.", "Cardiomegaly."]
    candidates = ["Effusion.", "Pneumothorax. No effusion.", "Effusion.", "Heart is enlarged."]
    scores = finding_scores(references, candidates, ["a", "b", "c", "d"], "en")
    effusion = scores["Pleural Effusion"]
    assert (effusion.precision.value, effusion.recall.value, effusion.f1.value) == (1 / 2, 1 / 2, 1 / 2)
    assert scores["micro"].f1.value == 2 * 3 / (4 + 4)
    assert scores["micro"].f1.low < 0.75 < scores["micro"].f1.high
    assert np.isnan(scores["Fracture"].f1.value)


def test_intervals_are_by_patient():
    """Ten reports of one patient know no more than one."""
    one = finding_scores(["Effusion."] * 2, ["Effusion.", ""], ["a", "b"], "en")["micro"].recall
    ten = finding_scores(["Effusion."] * 20, ["Effusion.", ""] * 10, ["a", "b"] * 10, "en")["micro"].recall
    assert (one.value, one.low, one.high) == (ten.value, ten.low, ten.high) == (0.5, 0.0, 1.0)


def test_variety_of_a_model_that_always_says_the_same():
    told = variety(["双肺未见异常。"] * 3 + ["左侧气胸。"], "zh")
    assert (told.distinct, told.most_frequent, told.normal) == (0.5, 0.75, 0.75)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="got 2 references, 1 candidates and 2 patients"):
        word_scores(["a", "b"], ["a"], ["p", "q"], english_words, meteor=False)
    with pytest.raises(ValueError, match=r"reference 1 \(patient q\) has no word"):
        word_scores(["a", " . "], ["a", "b"], ["p", "q"], english_words, meteor=False)
    with pytest.raises(ValueError, match="got no report"):
        variety([], "en")
