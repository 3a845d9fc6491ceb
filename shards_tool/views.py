"""Which projection of which body part: from the words of headers and tables."""

import re

FRONTAL = ("PA", "AP")
NOT_FRONTAL = ("LATERAL", "OBLIQUE")

_WORDS = {
    "PA": r"pa|p\.a\.?|postero[- ]?anterior|后前位?|後前位?",
    "AP": r"ap|a\.p\.?|antero[- ]?posterior|supine|bedside|portable|前后位?|前後位?|卧位|床旁|床边",
    "LATERAL": r"l|ll|rl|llat|rlat|lat|lateral|left lateral|right lateral|seitlich|profil|侧位?|側位?",
    "OBLIQUE": r"lao|rao|lpo|rpo|llo|rlo|oblique|oblicua|schr[aä]g|斜位?",
}
_LONE_LETTER = re.compile(r"^\s*l\s*$", re.IGNORECASE)
_DECUBITUS = re.compile(r"decub|\blld\b|\brld\b", re.IGNORECASE)
_HAN = r"[\u4e00-\u9fff]"


def _matcher(words: str) -> re.Pattern[str]:
    """Latin words stand alone; Chinese has no spaces to stand between."""
    latin = "|".join(word for word in words.split("|") if not re.match(_HAN, word))
    chinese = "|".join(word for word in words.split("|") if re.match(_HAN, word))
    return re.compile(rf"(?<![a-z])(?:{latin})(?![a-z])" + (f"|{chinese}" if chinese else ""), re.IGNORECASE)


_MATCHERS = {view: _matcher(words) for view, words in _WORDS.items()}


def view_of(*texts: str) -> str:
    """The view that the first text with exactly one meaning names: "PA", "AP", "LATERAL", "OBLIQUE" or "".

    "Chest PA and lateral" names two and so tells nothing about one film. A decubitus film is a frontal
    one of a patient lying on a side, AP or PA: "AP" where neither is said.
    """
    for text in texts:
        named = {view for view, matcher in _MATCHERS.items() if matcher.search(text)}
        if _DECUBITUS.search(text):
            named = (named & set(FRONTAL)) or {"AP"}
        if named >= {"PA", "AP"} and len(named) == 2:  # "AP/PA": frontal at least, and most often PA
            continue
        # A side marker in a longer text ("Chest L") is not a lateral view.
        if named == {"LATERAL"} and re.search(r"(?<![a-z])l(?![a-z])", text, re.IGNORECASE):
            named = named if _LONE_LETTER.match(text) or "lat" in text.lower() else set()
        if len(named) == 1:
            return named.pop()
    return ""


_CHEST = re.compile(r"chest|thora|lung|pulm|cxr|torax|胸|肺", re.IGNORECASE)
_SILENT = {"", "DEFAULT", "UNKNOWN", "OTHER", "NONE", "NA", "N A", "BODY", "TRUNK", "TORSO", "UNDEFINED"}


def is_other_body_part(text: str) -> bool:
    """Whether BodyPartExamined names something, and not the chest."""
    plain = " ".join(re.sub(r"[^\w]+|_", " ", text).upper().split())
    return plain not in _SILENT and not _CHEST.search(plain) and plain not in ("RIB", "RIBS")
