"""Report texts without what looks like names, dates and numbers, by rules for English and Chinese.

Rules find what is written the way such things are written: after a title or a label, in the form of a
date, as a long number. They miss a name that stands alone in a sentence. Measurements stay.
"""

import re
from collections.abc import Iterable

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_YEAR = r"(?:19[2-9]\d|20[0-3]\d)"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_NO_UNIT = r"(?!\s*(?:mm|cm|ml|cc|mg|g|kv|mas?|%|hu|x|×|毫米|厘米|毫升)\b)(?!\s*(?:mm|cm|ml|毫米|厘米|毫升))"

_LABEL_END = r"\s*(?:number|no\.?|nr\.?|id|#)?\s*[:：#=]?\s*"
_HAN = r"\u4e00-\u9fff"

_STOP = r"(?!(?:AT|ON|BY|AND|OF|THE|WITH|FROM|IN|TO|FOR|WHO|IS|WAS|AGE|SEX|DOB|MRN|ID|ICU|ED|ER|MD|DO)\b)"
_NAME = (
    rf"(?:{_STOP}[A-Z][A-Z'’-]{{2,}}(?![a-z])|{_STOP}(?:[A-Z]['’])?[A-Z][a-z'’]+(?:-[A-Z][a-z'’]+)?|"
    r"[A-Z]\.|[A-Z](?=\s[A-Z][a-z]))"
)
_PERSON = rf"{_NAME}(?:\s+(?:(?:van|von|de|der|del|la|bin|al)\s+)*{_NAME}){{0,3}}"

_SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴"
    "夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文欧阳"
)
_SURNAME = rf"[{_SURNAMES}]"
_TITLE_ZH = "(?:医生|医师|大夫|主任|教授|先生|女士|小姐|护士|护师|技师)"
_LABEL_ZH = (
    "(?:患者姓名|病人姓名|姓名|报告医师|报告医生|报告者|审核医师|审核医生|审核者|诊断医师|书写医师|申请医师|申请医生|"
    "送检医师|检查技师|签名|签字|记录者|联系人)"
)
_NUMBER_LABEL_ZH = (
    "(?:住院号|门诊号|检查号|病历号|病案号|影像号|登记号|放射号|X线号|片号|床号|就诊卡号|医保号|身份证号?码?|"
    "电话号?码?|手机号?码?|联系电话|联系方式|编号)"
)

_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    # Addresses on the net
    ("[number]", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b|https?://\S+")),
    # Names
    ("[name]", re.compile(r"\b[A-Za-z'’.-]+\^[A-Za-z'’.^-]*")),
    ("[name]", re.compile(rf"\b(?i:dr|doctor|prof|professor|mr|mrs|ms|miss|sr|nurse)\b\.?\s+{_PERSON}")),
    ("[name]", re.compile(rf"\b{_PERSON},?\s+(?:M\.?D\.?|MBBS|FRCR|D\.O\.|DO|Ph\.?D\.?|R\.?N\.?)(?![a-z])")),
    (
        r"\1[name]",
        re.compile(
            r"\b((?i:patient(?:'s)? name|name|patient|pt|radiologist|physician|technologist|resident|signed|"
            rf"transcriptionist)\s*[:=]\s*){_PERSON}(?:,\s*{_PERSON})?"
        ),
    ),
    (
        r"\1[name]",
        re.compile(
            r"\b((?i:(?:signed|dictated|read|reported|reviewed|interpreted|approved|verified|transcribed|"
            r"performed|requested|ordered|called|communicated)\s+(?:by|to)|discussed with|notified)\s*:?\s+)"
            rf"{_PERSON}"
        ),
    ),
    (
        "[name]",
        re.compile(
            r"\b(?:[A-Z][\w.'’-]+\s+){1,4}(?:Hospital|Clinic|Infirmary|Medical\s+Cent(?:er|re)|Health\s+System)\b"
        ),
    ),
    (r"\1[name]", re.compile(rf"({_LABEL_ZH}\s*[:：]\s*)[{_HAN}·]{{2,5}}")),
    ("[name]", re.compile(rf"{_SURNAME}(?!级)[{_HAN}]{{0,2}}?{_TITLE_ZH}")),
    ("[name]", re.compile(rf"{_SURNAME}某+")),
    (
        r"\1[name]",
        re.compile(rf"((?:患者|病人|患儿)\s*[:：]?\s*){_SURNAME}[{_HAN}]{{1,2}}(?=\s*[,，(（]\s*[男女\d])"),
    ),
    (
        "[name]",
        re.compile(
            rf"[{_HAN}]{{2,6}}(?:省|市|县|区|州|大学)第?[{_HAN}]{{0,8}}医院|"
            rf"第[一二三四五六七八九十]+[{_HAN}]{{0,6}}医院"
        ),
    ),
    # Numbers with a label, before their digits look like a date
    (
        r"\1[number]",
        re.compile(
            r"\b((?i:mrn|accession|acc|medical record|record|patient id|case|exam|study|order|account|ssn|"
            rf"phone|tel(?:ephone)?|pager|fax|ext|id){_LABEL_END})"
            r"(?=(?:[\w+()-]*\d){3})[\w+()-]*(?:[ -]\d{2,})*"
        ),
    ),
    (r"\1[number]", re.compile(rf"({_NUMBER_LABEL_ZH}\s*[:：]?\s*)[A-Za-z]*[\d][\w-]*")),
    (r"\1[number]", re.compile(r"\b((?i:bed|room|ward)\s+(?i:no\.?\s*)?)\d+[A-Za-z]?\b")),
    # Dates and times
    ("[date]", re.compile(rf"\b{_YEAR}\s?[-/.]\s?\d{{1,2}}\s?[-/.]\s?\d{{1,2}}(?:T[\d:.]+)?\b")),
    ("[date]", re.compile(rf"\b\d{{1,2}}[-/.]\d{{1,2}}[-/.](?:{_YEAR}|\d\d)\b{_NO_UNIT}")),
    (
        "[date]",
        re.compile(rf"\b{_DAY}[\s-]+(?:of\s+)?{_MONTH}(?:,?[\s-]+(?:{_YEAR}|\d\d))?\b", re.IGNORECASE),
    ),
    (
        "[date]",
        re.compile(
            rf"\b{_MONTH}\s+{_DAY}(?:,?\s+{_YEAR})?\b{_NO_UNIT}|\b{_MONTH},?\s+{_YEAR}\b", re.IGNORECASE
        ),
    ),
    (
        r"\1[date]",
        re.compile(r"\b((?:on|from|dated|since)\s+)\d{1,2}/(?:\d{1,2}|\d{4})\b(?!/)", re.IGNORECASE),
    ),
    (
        "[date]",
        re.compile(r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\s*[ap](?:\.m\.|m\b))?", re.IGNORECASE),
    ),
    ("[date]", re.compile(rf"(?:{_YEAR}|\d\d)\s*年(?:\s*\d{{1,2}}\s*月)?(?:\s*\d{{1,2}}\s*[日号])?")),
    ("[date]", re.compile(r"\d{1,2}\s*月\s*\d{1,2}\s*[日号]")),
    ("[date]", re.compile(r"(?:上午|下午|晚上|凌晨)?\d{1,2}\s*[时点]\s*\d{1,2}\s*分")),
    ("[date]", re.compile(rf"(?<![\d.,-]){_YEAR}(?![\d,-]|\.\d){_NO_UNIT}")),
    # Numbers without a label
    ("[number]", re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)")),
    (
        "[number]",
        re.compile(
            r"(?<![\d.])(?:\+\d{1,3}[\s.-]?)?(?:\(\d{2,4}\)\s?|\d{3,4}[\s.-])\d{3,4}[\s.-]\d{4}(?!\d)"
        ),
    ),
    ("[number]", re.compile(r"(?<![\d.])(?:\(\d{3}\)\s?|0\d{2,3}-)\d{3,8}(?:-\d{4})?(?!\d)|\b\d{3}-\d{4}\b")),
    ("[number]", re.compile(r"\b[A-Za-z]{1,5}[-_]?\d{4,}[\w-]*|(?<![\d.])\d{5,}(?!\.\d)\w*")),
    # Ages of 90 and more, which the record does not tell either
    ("90", re.compile(r"(?<![\d.])(?:9[1-9]|1[0-2]\d)(?=[\s-]*(?:years?|yrs?|y/?o|岁))", re.IGNORECASE)),
)


def scrub(text: str, identities: Iterable[str] = ()) -> tuple[str, int]:
    """The text with [name], [date] and [number] in place of what looks like one, and how many there were.

    Args:
        identities: strings that are known to identify the patient, to be replaced wherever they stand.
    """
    count = 0
    for identity in sorted(set(identities), key=len, reverse=True):
        if len(identity) >= 3:  # shorter ones are within ordinary words and numbers
            text, found = re.subn(
                rf"(?<!\w){re.escape(identity)}(?!\w)", "[number]", text, flags=re.IGNORECASE
            )
            count += found
    for replacement, rule in _RULES:
        text, found = rule.subn(replacement, text)
        count += found
    return text, count
