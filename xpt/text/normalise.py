"""Report texts in one spelling, so that equal reports are equal strings.

What changes: Unicode is composed (NFC); control, zero-width and byte-order characters go; every run of
white space, the full-width space among them, is one space; full-width Latin letters and digits
("ＣＴ", "１２") become ordinary ones; spaces beside a Chinese character or full-width mark go, because
Chinese sets none. What stays: case, numbers, units, decimal points, and all punctuation, full-width or
not. Applying it twice is applying it once.
"""

import re
import unicodedata
from typing import Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

MAX_CHARACTERS = 10_000
"""Of a report: the longest real one at hand has 2,000; what is longer is a whole record or a broken table."""

_HAN_OR_MARK = r"[\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]"
_BESIDE_CHINESE = re.compile(rf"(?<={_HAN_OR_MARK}) | (?={_HAN_OR_MARK})")
# 0-9, A-Z, a-z in the full-width block, which lies 0xFEE0 above ASCII.
_FULL_WIDTH = {
    code + 0xFEE0: code for first, last in ("09", "AZ", "az") for code in range(ord(first), ord(last) + 1)
}


def normalise(text: str) -> str:
    """`text` in the one spelling; empty where nothing but white space is left."""
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs") or c.isspace())
    text = unicodedata.normalize("NFC", text).translate(_FULL_WIDTH)
    return _BESIDE_CHINESE.sub("", " ".join(text.split()))


def checked_report(text: str, language: str, where: str) -> str:
    """The normalised report.

    Args:
        text: as it stands in the data.
        language: a name in LANGUAGES.
        where: what names this report in a message, such as its study.

    Raises:
        ValueError: for another language, an empty report, or one of more than MAX_CHARACTERS.
    """
    if language not in LANGUAGES:
        raise ValueError(f"{where}: language {language!r} is unknown, wanted one of {', '.join(LANGUAGES)}")
    report = normalise(text)
    if not report:
        raise ValueError(
            f"{where}: the report in {language!r} is empty. Leave the study out, or give it a text."
        )
    if len(report) > MAX_CHARACTERS:
        raise ValueError(
            f"{where}: the report in {language!r} has {len(report):,} characters, wanted at most "
            f"{MAX_CHARACTERS:,}. Shorten it, or look whether several reports were joined in one cell."
        )
    return report
