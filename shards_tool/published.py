"""The splits that the tables of public data sets bring along, so that results compare with published ones."""

from shards_tool.schema import SPLITS

TRAIN_VAL = "train_val"
"""A split that a data set leaves to its users to divide, as NIH ChestX-ray14 does."""
STRICTNESS = ("", TRAIN_VAL, *SPLITS)
"""What a table may ask for, from no wish to the split that has to be kept apart most of all."""
LISTS = {"train_val_list.txt": TRAIN_VAL, "test_list.txt": "test"}
"""Files of NIH ChestX-ray14: a film's name, 00000013_005.png for patient 13, in each line."""

_NAMES = {
    **{"train": "train", "training": "train"},
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **{"test": "test", "testing": "test"},
    **dict.fromkeys(("train_val", "trainval", "train+val"), TRAIN_VAL),
}


def clean_split(value: str) -> str:
    """One of `STRICTNESS`.

    Raises:
        ValueError: not the name of a split.
    """
    if not value:
        return ""
    if value.lower() not in _NAMES:
        raise ValueError(f"split is {value!r}; wanted train, val, test or {TRAIN_VAL}")
    return _NAMES[value.lower()]


def without_test(fractions: tuple[float, float, float]) -> tuple[float, float, float]:
    """Of train and val alone, in the same proportion."""
    train, val, _ = fractions
    both = train + val
    return (train / both, val / both, 0.0) if both > 0 else (1.0, 0.0, 0.0)


def may_join(asked: str, strictest: str) -> bool:
    """Whether a film may go where the strictest wish among its patient's films has put that patient."""
    return asked == strictest or (asked == TRAIN_VAL and strictest != "test")
