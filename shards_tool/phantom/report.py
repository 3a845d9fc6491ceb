"""Reports that say what is drawn, in English and in Chinese, each film in its own words."""

import numpy as np

from shards_tool.phantom.findings import CARDIOMEGALY, CONSOLIDATION, EFFUSION, NODULE, PNEUMOTHORAX, Finding

LANGUAGES = ("en", "zh")

_SIDE = {"en": {-1: "right", 1: "left"}, "zh": {-1: "右", 1: "左"}}
_ZONE_ZH = {"upper": "上", "middle": "中", "lower": "下"}
_DEGREE = {
    "en": {
        CONSOLIDATION: ("small", "moderate-sized", "large"),
        EFFUSION: ("small", "moderate", "large"),
        PNEUMOTHORAX: ("small", "moderate", "large"),
        CARDIOMEGALY: ("mildly", "moderately", "markedly"),
    },
    "zh": {
        CONSOLIDATION: ("小片状", "片状", "大片状"),
        EFFUSION: ("少量", "中等量", "大量"),
        PNEUMOTHORAX: ("少量", "中等量", "大量"),
        CARDIOMEGALY: ("轻度", "中度", "明显"),
    },
}

# {side} {zone} {degree} {mm} {cm} {ratio}; the first list describes, the second concludes.
_PRESENT = {
    "en": {
        NODULE: (
            (
                "There is a {mm} mm rounded nodule in the {side} {zone} lung zone.",
                "A well-circumscribed nodule of about {cm} cm projects over the {side} {zone} zone.",
                "Round opacity of about {mm} mm in the {side} {zone} lung field, consistent with a nodule.",
                "Solitary pulmonary nodule in the {side} {zone} zone, {mm} mm in diameter.",
            ),
            (
                "{side} {zone} zone pulmonary nodule, {mm} mm; CT is recommended for further evaluation.",
                "Nodule in the {side} {zone} lung zone. Recommend chest CT.",
                "Solitary {mm} mm nodule, {side} {zone} zone.",
            ),
        ),
        CONSOLIDATION: (
            (
                "There is a {degree} area of airspace consolidation in the {side} {zone} lung zone.",
                "A {degree} airspace opacity with air bronchograms is seen in the {side} {zone} zone.",
                "{degree} consolidation projects over the {side} {zone} lung field.",
                "Patchy opacity in the {side} {zone} zone, in keeping with {degree} consolidation.",
            ),
            (
                "{side} {zone} zone consolidation, suspicious for pneumonia.",
                "{degree} consolidation in the {side} {zone} lung zone, likely infectious.",
                "Airspace consolidation in the {side} {zone} zone.",
            ),
        ),
        EFFUSION: (
            (
                "There is a {degree} {side} pleural effusion with blunting of the costophrenic angle.",
                "Meniscus at the {side} costophrenic angle, in keeping with a {degree} pleural effusion.",
                "{degree} {side}-sided pleural effusion.",
                "Blunting of the {side} costophrenic sulcus consistent with a {degree} effusion.",
            ),
            (
                "{degree} {side} pleural effusion.",
                "{side}-sided pleural effusion, {degree}.",
                "{degree} pleural effusion on the {side}.",
            ),
        ),
        PNEUMOTHORAX: (
            (
                "There is a {degree} {side} pneumothorax with a visible visceral pleural line.",
                "{degree} pneumothorax on the {side}, with no lung markings beyond the pleural line.",
                "{degree} {side} apicolateral pneumothorax is present.",
            ),
            (
                "{degree} {side} pneumothorax.",
                "{side}-sided pneumothorax, {degree}. Clinical team to be informed.",
                "{degree} pneumothorax on the {side}.",
            ),
        ),
        CARDIOMEGALY: (
            (
                "The cardiac silhouette is {degree} enlarged, with a cardiothoracic ratio of about {ratio}.",
                "The heart is {degree} enlarged (cardiothoracic ratio {ratio}).",
                "{degree} enlarged cardiac silhouette; cardiothoracic ratio {ratio}.",
            ),
            (
                "Cardiomegaly.",
                "{degree} enlarged heart.",
                "Enlarged cardiac silhouette, cardiothoracic ratio {ratio}.",
            ),
        ),
    },
    "zh": {
        NODULE: (
            (
                "{side}肺{zone}野见一类圆形结节影，直径约{mm}mm，边界尚清。",
                "{side}{zone}肺野可见结节状高密度影，大小约{cm}cm。",
                "{side}肺{zone}野示孤立性结节，直径约{mm}mm。",
            ),
            ("{side}肺{zone}野结节，建议CT进一步检查。", "{side}{zone}肺野孤立性结节影，建议胸部CT检查。"),
        ),
        CONSOLIDATION: (
            (
                "{side}肺{zone}野见{degree}实变影，边缘模糊，内见充气支气管征。",
                "{side}{zone}肺野可见{degree}密度增高影，边界不清，考虑实变。",
                "{side}肺{zone}野示{degree}模糊实变影。",
            ),
            (
                "{side}肺{zone}野实变，考虑肺炎，建议治疗后复查。",
                "{side}{zone}肺野炎性实变可能，请结合临床。",
            ),
        ),
        EFFUSION: (
            (
                "{side}侧肋膈角变钝，见外高内低弧形液面影，考虑{degree}胸腔积液。",
                "{side}侧胸腔{degree}积液，{side}侧肋膈角显示不清。",
                "{side}侧肋膈角消失，{side}侧胸腔见{degree}积液影。",
            ),
            ("{side}侧胸腔积液（{degree}）。", "{side}侧{degree}胸腔积液。"),
        ),
        PNEUMOTHORAX: (
            (
                "{side}侧胸腔外带见无肺纹理透亮区，可见脏层胸膜线，为{degree}气胸。",
                "{side}侧可见{degree}气胸，肺组织受压，其边缘可见。",
                "{side}肺外侧见气胸带，其内无肺纹理，量为{degree}。",
            ),
            ("{side}侧气胸（{degree}）。", "{side}侧{degree}气胸，请结合临床。"),
        ),
        CARDIOMEGALY: (
            (
                "心影{degree}增大，心胸比约{ratio}。",
                "心脏呈{degree}增大，心胸比率约为{ratio}。",
                "心影向两侧{degree}增大，心胸比{ratio}。",
            ),
            ("心影增大。", "心影{degree}增大，请结合临床。", "心脏增大，建议心脏超声检查。"),
        ),
    },
}

_LUNGS_CLEAR = {
    "en": (
        "The lungs are clear.",
        "Both lungs are clear, without focal opacity.",
        "Lung fields are clear bilaterally.",
        "No focal airspace disease is seen.",
    ),
    "zh": (
        "双肺野清晰，未见明显实质性病变。",
        "两肺纹理清晰，走行自然，肺野未见异常密度影。",
        "双肺透亮度正常，未见异常密度影。",
    ),
}
_ONE_LUNG_CLEAR = {
    "en": ("The {other} lung is clear.", "No abnormality in the {other} lung."),
    "zh": ("{other}肺野清晰。", "{other}肺未见明显异常密度影。"),
}
_NO_EFFUSION = {
    "en": (
        "No pleural effusion.",
        "The costophrenic angles are sharp.",
        "No evidence of pleural effusion.",
        "Both costophrenic angles are clear.",
    ),
    "zh": ("双侧肋膈角锐利。", "两侧肋膈角清晰锐利。", "双侧胸腔未见积液征象。"),
}
_NO_PNEUMOTHORAX = {
    "en": ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax is seen."),
    "zh": ("未见气胸征象。", "双侧胸腔未见气胸。"),
}
_HEART_NORMAL = {
    "en": (
        "The heart size is normal.",
        "Cardiac silhouette is within normal limits.",
        "The cardiomediastinal silhouette is unremarkable.",
        "Heart size and mediastinal contours are normal.",
    ),
    "zh": ("心影大小、形态未见异常。", "心脏大小在正常范围。", "心影不大，形态正常。"),
}
_REST = {
    "en": (
        "The trachea is midline.",
        "Visualized osseous structures are intact.",
        "No acute bony abnormality.",
        "The mediastinal contours are normal.",
        "The hila are unremarkable.",
    ),
    "zh": (
        "气管居中。",
        "纵隔未见增宽。",
        "所见骨质结构未见明显异常。",
        "双侧肺门影未见增大。",
        "胸廓对称，气管居中。",
    ),
}
_NORMAL = {
    "en": (
        "No acute cardiopulmonary abnormality.",
        "Normal chest radiograph.",
        "No active disease of the chest.",
        "No acute cardiopulmonary process.",
    ),
    "zh": ("心肺膈未见明显异常。", "胸部正位片未见明显异常。", "双肺、心、膈未见异常。"),
}
_HEADINGS = {"en": ("FINDINGS:", "IMPRESSION:"), "zh": ("影像所见：", "影像诊断：")}


def write_report(findings: tuple[Finding, ...], seed: int, language: str) -> str:
    """Findings and impression. `language` is "en" or "zh"; the same arguments give the same text."""
    rng = np.random.default_rng((seed, LANGUAGES.index(language)))

    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    positive = [_say(f, pick(_PRESENT[language][f.name][0]), language) for f in findings]
    negative = [pick(choices) for choices in _absent(findings, language)]
    rest = rng.choice(_REST[language], size=int(rng.integers(0, 3)), replace=False)
    negative += [str(sentence) for sentence in rest]
    # Most readers begin with what is wrong; some follow the anatomy.
    body = positive + [negative[i] for i in rng.permutation(len(negative))]
    if rng.random() < 0.35:
        body = [body[i] for i in rng.permutation(len(body))]
    conclusion = [_say(f, pick(_PRESENT[language][f.name][1]), language) for f in findings]
    if not conclusion:
        conclusion = [pick(_NORMAL[language])]
    what, meaning = _HEADINGS[language]
    if language == "zh":
        if len(conclusion) > 1:
            conclusion = [f"{i}．{sentence}" for i, sentence in enumerate(conclusion, 1)]
        return f"{what}{''.join(body)}{meaning}{''.join(conclusion)}"
    if len(conclusion) > 1:
        conclusion = [f"{i}. {sentence}" for i, sentence in enumerate(conclusion, 1)]
    return f"{what} {' '.join(body)} {meaning} {' '.join(conclusion)}"


def _absent(findings: tuple[Finding, ...], language: str) -> list[tuple[str, ...]]:
    """Normal statements about all that no finding contradicts."""
    names = {f.name for f in findings}
    sick_sides = {f.side for f in findings if f.name != CARDIOMEGALY}
    statements = []
    if not sick_sides:
        statements.append(_LUNGS_CLEAR[language])
    elif len(sick_sides) == 1:
        other = _SIDE[language][-sick_sides.pop()]
        statements.append(tuple(t.format(other=other) for t in _ONE_LUNG_CLEAR[language]))
    if EFFUSION not in names:
        statements.append(_NO_EFFUSION[language])
    if PNEUMOTHORAX not in names:
        statements.append(_NO_PNEUMOTHORAX[language])
    if CARDIOMEGALY not in names:
        statements.append(_HEART_NORMAL[language])
    return statements


def _say(finding: Finding, template: str, language: str) -> str:
    degrees = _DEGREE[language].get(finding.name)
    text = template.format(
        side=_SIDE[language].get(finding.side, ""),
        zone=finding.zone if language == "en" else _ZONE_ZH.get(finding.zone, ""),
        degree=degrees[finding.degree()] if degrees else "",
        mm=round(finding.size),
        cm=f"{round(finding.size) / 10:.1f}",
        ratio=f"{finding.size:.2f}",
    )
    return text[0].upper() + text[1:]
