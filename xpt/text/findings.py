"""Which findings a report asserts and which it denies: rules in English and Chinese.

A finding is mentioned where one of its patterns matches a sentence. The mention is denied if a cue of
negation reaches it: one before it with no turn of the sentence between ("no effusion or pneumothorax"),
one inside it ("the heart is not enlarged"), or one after it ("effusion has resolved"). Phrases that only
look like negation ("no change in", "未见吸收") go first. The idea is NegEx's (Chapman et al., J Biomed
Inform 2001); patterns and cues are ours.

A report that both asserts and denies a finding asserts it. Hedged mentions ("possible", "cannot be
excluded", "不除外") count as asserted, as in the MeSH tags of Open-i. History and comparison are not
understood beyond "resolved" and "no longer seen".
"""

import re
from dataclasses import dataclass

from xpt.text.normalise import Language, normalise

PATTERNS: dict[str, dict[Language, str]] = {
    "Nodule": {
        "en": r"nodul(?:es?|ar)\b|coin lesion|round(?:ed)? (?:opacity|density)",
        "zh": r"结节",
    },
    "Pleural Effusion": {
        "en": r"(?<!pericardial )effusions?|pleural fluid|h(?:a?e)?mothorax|hydropneumothorax"
        r"|blunt\w*[^.;,]{0,50}costophrenic|costophrenic[^.;,]{0,40}blunt|meniscus",
        "zh": r"(?<!心包)积液|胸水|液气胸|血胸|肋膈角[^，。；]{0,8}?(?:变钝|变浅|消失|圆钝|模糊|不清)",
    },
    "Consolidation": {
        "en": r"consolidat\w+|(?:air ?-?space|alveolar) (?:diseases?|opacit\w+|infiltrat\w+|process)"
        r"|infiltrates?\b|infiltration|pneumonia|air bronchogram",
        "zh": r"实变|渗出|浸润|肺炎|炎症|炎性|充气支气管征|感染性",
    },
    "Cardiomegaly": {
        "en": r"cardiomegaly|(?:heart|cardi\w+)(?:(?!normal|aort|arter|hil)[^.;]){0,60}?enlarge\w*"
        r"|enlarge\w*(?: \w+){0,3} (?:heart|cardiac|cardiomediastinal)",
        "zh": r"(?:心影|心脏|全心|心室|心房)[^，。；]{0,10}?(?:增大|扩大|肥大|肿大)",
    },
    "Pneumothorax": {
        "en": r"pneumothora(?:x|ces)",
        "zh": r"气胸",
    },
    "Atelectasis": {
        "en": r"atelecta\w+|\bcollapse of",
        "zh": r"肺不张|膨胀不全",
    },
    "Edema": {
        "en": r"(?:pulmonary|interstitial|alveolar|lung) o?edema|vascular congestion|pulmonary congestion",
        "zh": r"肺水肿|肺淤血|肺瘀血|肺充血",
    },
    "Emphysema": {
        "en": r"emphysema\w*",
        "zh": r"肺气肿",
    },
    "Fracture": {
        "en": r"fractures?\b|fractured",
        "zh": r"骨折",
    },
}
FINDINGS = tuple(PATTERNS)


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """How one language denies. All are regular expressions on lower-case text."""

    sentence_end: str
    seeming: str
    """Phrases that look like a denial and are none: replaced by a space."""
    before: str
    """Denies what follows."""
    turn: str
    """Ends the reach of `before`."""
    after: str
    """Denies what precedes."""
    halt: str
    """Ends the reach of `after`."""


_ENGLISH = Grammar(
    sentence_end=r"[.!?;](?!\d)|\b(?:findings|impression)\s*:",
    seeming=r"\bno (?:(?:significant|substantial|interval|definite|appreciable|real|large) )*"
    r"(?:change|increase|decrease|improvement|progression|difference)\b(?: in\b)?"
    r"|\bno longer improving|\bnot (?:significantly |substantially )?(?:changed|only|improved)"
    r"|\bnot (?:seen|present|visible|noted|identified)(?: \w+){0,2} (?:prior|previous)\w*"
    r"|\b(?:cannot|can not|could not|not|difficult to) (?:be )?(?:completely |entirely )?"
    r"(?:excluded?|ruled? out)",
    before=r"\b(?:no|not|without|neither|nor|never|free of|clear of|negative for|absence of|lack of|absent"
    r"|rather than|resolution of|resolved|clearing of|rule out|exclude|excluding|evaluate for|obscures?"
    r"|limits? evaluation|no longer)\b",
    turn=r"\b(?:but|however|although|though|except|which|there (?:is|are)|otherwise|consistent with"
    r"|in keeping with)\b|,(?= (?:and )?"
    r"(?:small|tiny|trace|minimal|mild|moderate|large|stable|persistent|unchanged|new)\b(?!.*\bn?or\b))",
    after=r"\b(?:not|no longer) (?:\w+ )?(?:seen|identified|present|evident|visible|visuali[sz]ed|noted"
    r"|demonstrated|appreciated|detected|observed|found|apparent|suspected)\b"
    r"|\b(?:absent|resolved|excluded|ruled out|unlikely|cleared)\b",
    halt=r"[,:]|\b(?:and|with|but|however|although)\b",
)
_CHINESE = Grammar(
    sentence_end=r"[。；;！？\n：]|\.(?!\d)",
    seeming=r"(?:未见|无|没有)(?:明显|显著)?(?:变化|改变|吸收|增多|减少|缩小|好转|消散)"
    r"|无肺纹理|不能?(?:除外|排除)",
    before=r"未见|未发现|未及|未显示|未出现|未提示|未伴|不伴|没有|并无|无|排除|否认|不支持|未",
    turn=r"[，,]|但|然而|除",
    after=r"未见|未发现|不明显|(?:已|完全|基本)(?:经)?(?:完全|基本)?(?:消失|吸收|排除|消散)",
    halt=r"[，,]|但|伴",
)
_GRAMMAR: dict[Language, Grammar] = {"en": _ENGLISH, "zh": _CHINESE}


def label_findings(report: str, language: Language) -> dict[str, bool]:
    """Findings that the report mentions: True where asserted, False where only denied."""
    grammar = _GRAMMAR[language]
    said: dict[str, bool] = {}
    for sentence in re.split(grammar.sentence_end, normalise(report).lower()):
        plain = re.sub(grammar.seeming, " ", sentence)
        for finding, patterns in PATTERNS.items():
            for mention in re.finditer(patterns[language], plain):
                said[finding] = said.get(finding, False) or not _is_denied(plain, mention, grammar)
    return said


def asserted_findings(report: str, language: Language) -> frozenset[str]:
    return frozenset(
        finding for finding, is_asserted in label_findings(report, language).items() if is_asserted
    )


def mentions(report: str, language: Language) -> list[tuple[int, int]]:
    """Where the report first names each finding that it asserts: characters, the end excluded, in order."""
    found = []
    for finding in asserted_findings(report, language):
        mention = re.search(PATTERNS[finding][language], report.lower())
        if mention is not None:
            found.append(mention.span())
    return sorted(found)


def _is_denied(sentence: str, mention: re.Match[str], grammar: Grammar) -> bool:
    if re.search(grammar.before, mention.group()):
        return True
    turns = [turn.end() for turn in re.finditer(grammar.turn, sentence) if turn.end() <= mention.start()]
    if re.search(grammar.before, sentence[max(turns, default=0) : mention.start()]):
        return True
    rest = re.split(grammar.halt, sentence[mention.end() :], maxsplit=1)[0]
    return re.search(grammar.after, rest) is not None
