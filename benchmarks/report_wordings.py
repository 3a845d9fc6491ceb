"""How other readers would say what the phantoms' reports say: written before the labeller's rules.

Findings asserted and findings denied, none of them a template of `shards_tool.phantom.report`.
"""

from shards_tool.phantom.findings import CARDIOMEGALY, CONSOLIDATION, EFFUSION, NODULE, PNEUMOTHORAX

ASSERTED = {
    "en": {
        NODULE: (
            "A rounded 9 mm pulmonary nodule is noted in the right upper lobe.",
            "Nodular density overlying the left mid lung, which was not present previously.",
            "Two subcentimeter nodules are again seen at the left base.",
            "Coin lesion, right apex, measuring 14 mm.",
        ),
        CONSOLIDATION: (
            "Dense consolidation of the left lower lobe without volume loss.",
            "Confluent airspace disease is present in the right mid lung.",
            "Patchy alveolar opacities at the right base are concerning for pneumonia.",
            "Lobar consolidation is again demonstrated, no longer improving.",
        ),
        EFFUSION: (
            "Small bilateral pleural effusions have developed.",
            "There is pleural fluid on the left, layering posteriorly.",
            "Interval increase in the moderate right effusion.",
            "The left costophrenic angle is blunted.",
        ),
        PNEUMOTHORAX: (
            "Tiny left apical pneumothorax, not seen on the prior study.",
            "A large right pneumothorax with mediastinal shift.",
            "Hydropneumothorax on the right without tension.",
            "Persistent small pneumothorax despite the chest tube.",
        ),
        CARDIOMEGALY: (
            "Stable cardiomegaly without failure.",
            "Heart size is moderately enlarged.",
            "There is mild enlargement of the cardiac silhouette.",
            "The cardiomediastinal silhouette is enlarged.",
        ),
    },
    "zh": {
        NODULE: (
            "左上肺可见直径8mm小结节，边缘光滑。",
            "右肺中叶结节灶，较前未见明显变化。",
            "双肺散在多发小结节。",
            "右下肺见一枚圆形小结节影。",
        ),
        CONSOLIDATION: (
            "左下肺大片实变。",
            "右肺中叶可见斑片状高密度影，考虑感染性病变。",
            "右上肺实变，无明显容积缩小。",
            "左肺下野片状渗出影，提示肺炎。",
        ),
        EFFUSION: (
            "双侧少量胸腔积液。",
            "左侧胸水，较前增多。",
            "右侧肋膈角变浅变钝，提示少量积液。",
            "右侧胸腔可见液体密度影，为中等量积液。",
        ),
        PNEUMOTHORAX: (
            "左侧少量气胸，肺压缩约10%。",
            "右侧液气胸，无纵隔移位。",
            "右肺尖气胸较前未见吸收。",
            "左侧张力性气胸。",
        ),
        CARDIOMEGALY: (
            "心脏增大，以左心室为主。",
            "心影饱满、增大，心胸比0.58。",
            "全心扩大。",
            "心影向左扩大，未见肺淤血。",
        ),
    },
}

DENIED = {
    "en": {
        NODULE: (
            "No suspicious pulmonary nodules or masses.",
            "Lungs are free of nodules.",
            "Previously described nodule is no longer seen.",
        ),
        CONSOLIDATION: (
            "No focal consolidation, effusion, or pneumothorax.",
            "The lungs are well expanded and free of consolidation.",
            "Consolidation is not identified.",
            "Negative for pneumonia.",
        ),
        EFFUSION: (
            "Neither pleural effusion nor pneumothorax is present.",
            "Pleural effusion has resolved.",
            "There is no evidence for effusion on either side.",
            "No blunting of the costophrenic angles.",
        ),
        PNEUMOTHORAX: (
            "No pleural line to suggest pneumothorax.",
            "Pneumothorax is absent.",
            "The lungs are clear without effusion or pneumothorax.",
        ),
        CARDIOMEGALY: (
            "The heart is not enlarged.",
            "No cardiomegaly.",
            "Heart size upper limits of normal, without definite enlargement.",
        ),
    },
    "zh": {
        NODULE: ("双肺未发现结节及肿块。", "原右肺结节已消失。", "肺内无结节影。"),
        CONSOLIDATION: (
            "未见实变、气胸及胸腔积液。",
            "肺野内没有片状实变影。",
            "右下肺实变已完全吸收。",
        ),
        EFFUSION: ("无胸腔积液。", "胸腔积液未见。", "双侧肋膈角未见变钝。"),
        PNEUMOTHORAX: ("未发现气胸。", "气胸已吸收。", "不伴气胸。"),
        CARDIOMEGALY: ("心影未见增大。", "心脏无增大。", "心脏大小正常，无明显扩大。"),
    },
}
