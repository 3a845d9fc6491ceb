"""Every text comes back exactly, and a tokenizer of another run is refused."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shards_tool.phantom.findings import LABELS, draw_findings
from shards_tool.phantom.report import write_report
from xpt.text.normalise import normalise
from xpt.text.tokenizer import EOS, LANGUAGE_TOKEN, PAD, SPECIAL, ReportTokenizer

REPORTS = [
    write_report(draw_findings(LABELS[seed % len(LABELS)], np.random.default_rng(seed)), seed, language)
    for seed in range(200)
    for language in ("en", "zh")
]


@pytest.fixture(scope="module")
def tokenizer() -> ReportTokenizer:
    return ReportTokenizer.train(REPORTS, vocabulary=1024)


@settings(max_examples=300, deadline=None)
@given(text=st.text(), language=st.sampled_from(["en", "zh"]))
@example(text="<en> <pad> </s> [EOS] Ġ Ċ", language="en")
@example(text="右肺下野见12.5mm结节，ＣＴ值约－30HU；𠮷", language="zh")
@example(text=" ".join(str(n) for n in range(1000)), language="en")
def test_round_trip_is_exact(tokenizer: ReportTokenizer, text: str, language):
    ids = tokenizer.encode(text, language)
    assert ids[0] == LANGUAGE_TOKEN[language] and ids[-1] == EOS
    assert all(SPECIAL <= i < len(tokenizer) for i in ids[1:-1])
    assert tokenizer.decode(ids) == normalise(text)


def test_reading_stops_at_the_end_token(tokenizer: ReportTokenizer):
    ids = tokenizer.encode("No pneumothorax.", "en")
    assert tokenizer.decode([*ids, PAD, PAD]) == "No pneumothorax."
    assert tokenizer.decode([*ids, *tokenizer.encode("More.", "en")]) == "No pneumothorax."


def test_half_a_character_is_shown_as_such(tokenizer: ReportTokenizer):
    ids = tokenizer.encode("\U00020bb7", "zh")  # in no report, so four bytes
    assert len(ids) == 6
    assert tokenizer.decode(ids[:-2]) == "\ufffd"


def test_digits_are_tokens_of_their_own(tokenizer: ReportTokenizer):
    lengths = {len(tokenizer.encode(f"{n} mm", "en")) for n in (12, 73, 99)}
    assert len(lengths) == 1
    one, other = (tokenizer.encode(f"{n} mm", "en") for n in (12, 13))
    assert [a != b for a, b in zip(one, other, strict=True)].count(True) == 1


def test_chinese_is_merged_into_words_without_spaces(tokenizer: ReportTokenizer):
    text = "双侧肋膈角锐利。未见气胸征象。"
    assert len(tokenizer.encode(text, "zh")) - 2 < len(text)


def test_the_order_of_reports_does_not_matter(tokenizer: ReportTokenizer):
    shuffled = random.Random(0).sample(REPORTS, len(REPORTS))
    assert ReportTokenizer.train(shuffled, vocabulary=1024).fingerprint == tokenizer.fingerprint


def test_the_vocabulary_is_no_larger_than_asked_for(tokenizer: ReportTokenizer):
    assert len(tokenizer) <= 1024
    assert len(ReportTokenizer.train(["a"], vocabulary=1024)) == SPECIAL + 256


def test_saved_and_loaded_is_the_same(tokenizer: ReportTokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = ReportTokenizer.load(tmp_path / "tokenizer.json", tokenizer.fingerprint)
    assert again.fingerprint == tokenizer.fingerprint
    assert [again.encode(r, "zh") for r in REPORTS[:20]] == [tokenizer.encode(r, "zh") for r in REPORTS[:20]]


def test_a_tokenizer_of_another_run_is_refused(tokenizer: ReportTokenizer, tmp_path: Path):
    ReportTokenizer.train(REPORTS[:100], vocabulary=1024).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=rf"another run's.*wanted {tokenizer.fingerprint[:12]}"):
        ReportTokenizer.load(tmp_path / "tokenizer.json", tokenizer.fingerprint)


@pytest.mark.parametrize("content", ["", "{}", "no JSON", '{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="cannot be read"):
        ReportTokenizer.load(path)
    with pytest.raises(ValueError, match="cannot be read"):
        ReportTokenizer.load(tmp_path / "absent.json")


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="no report with text"):
        ReportTokenizer.train(["", " \n"])
    with pytest.raises(ValueError, match="got 100, wanted at least 260"):
        ReportTokenizer.train(REPORTS, vocabulary=100)
