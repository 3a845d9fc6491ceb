"""Labels to targets: rules for uncertain and missing ones, patients, and what is refused."""

import numpy as np
import pytest

from xpt.data.labels import (
    LABEL_MAPS,
    LabelMap,
    check_both,
    check_disjoint,
    check_names,
    chosen_patients,
    label_map,
    targets,
)

NAN = np.nan
TWO = LabelMap(findings=("Edema", "Mass"), others=("No Finding",))
FILMS = [{"Edema": 1.0, "Mass": 0.0}, {"Edema": -1.0}, {"Mass": -1.0, "No Finding": 1.0}]
KEYS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("uncertain", "missing", "wanted"),
    [
        (NAN, "ignore", [[1, 0], [NAN, NAN], [NAN, NAN]]),
        (1.0, "ignore", [[1, 0], [1, NAN], [NAN, 1]]),
        (0.0, "zeros", [[1, 0], [0, 0], [0, 0]]),
        (0.7, "zeros", [[1, 0], [0.7, 0], [0, 0.7]]),
    ],
)
def test_uncertain_and_missing_labels_follow_the_rule(uncertain: float, missing, wanted: list):
    found = targets(FILMS, TWO, uncertain=uncertain, missing=missing, keys=KEYS)
    np.testing.assert_array_equal(found, np.array(wanted, float))


def test_classes_are_one_hot_and_a_film_of_two_classes_is_refused():
    classes = LabelMap(findings=("Normal", "Lung Opacity"), kind="multi_class")
    films = [{"Normal": 1.0, "Lung Opacity": 0.0}, {"Normal": 0.0}, {"Lung Opacity": 1.0}]
    found = targets(films, classes, uncertain=NAN, missing="ignore", keys=KEYS)
    np.testing.assert_array_equal(found, [[1, 0], [NAN, NAN], [0, 1]])
    films[1] = {"Normal": 1.0, "Lung Opacity": 1.0}
    with pytest.raises(ValueError, match="film b: has the classes Normal, Lung Opacity"):
        targets(films, classes, uncertain=NAN, missing="ignore", keys=KEYS)


def test_a_misspelt_finding_is_named_with_the_nearest_label():
    films = [{"Edma": 1.0, "Mass": 0.0}]
    with pytest.raises(ValueError, match=r"finding Edema: no film of split train .* Did you mean Edma\?"):
        check_names(films, TWO, split="train", ignore_others=False)


def test_a_label_outside_the_map_is_refused_unless_it_is_ignored():
    films = [{"Edema": 1.0, "Mass": 0.0, "Scar": 1.0}]
    with pytest.raises(ValueError, match=r"label Scar: 1 labels of split val are outside the label map"):
        check_names(films, TWO, split="val", ignore_others=False)
    check_names(films, TWO, split="val", ignore_others=True)
    check_names(FILMS, TWO, split="val", ignore_others=False)


def test_a_map_narrows_to_findings_and_refuses_others():
    narrowed = label_map("nih14", ("Nodule", "Mass"), "auto")
    assert narrowed.findings == ("Nodule", "Mass")
    assert set(narrowed.known) == set(LABEL_MAPS["nih14"].known)
    with pytest.raises(ValueError, match=r"Noduel: not in the label map nih14. Did you mean Nodule\?"):
        label_map("nih14", ("Noduel",), "auto")
    free = label_map("free", ("Anything",), "multi_class")
    assert (free.findings, free.kind) == (("Anything",), "multi_class")


@pytest.mark.parametrize(("column", "what"), [([0.0, NAN, 0.0], "positive"), ([1.0, 1.0, NAN], "negative")])
def test_a_finding_without_positives_or_negatives_is_refused(column: list[float], what: str):
    target_NC = np.stack([[1.0, 0.0, 1.0], column], 1)
    with pytest.raises(ValueError, match=f"finding Mass: no {what} film in split train, of 2 whose"):
        check_both(target_NC, TWO, "train")
    check_both(target_NC[:, :1], LabelMap(findings=("Edema",)), "train")


def test_a_smaller_fraction_of_patients_is_part_of_a_larger_one_and_keeps_patients_whole():
    patients = [f"p{n // 3}" for n in range(600)]
    small, large = (chosen_patients(patients, f, 0) for f in (0.01, 0.1))
    assert (small.sum(), large.sum()) == (6, 60)
    assert (large >= small).all()
    assert (large.reshape(200, 3).sum(1) % 3 == 0).all()
    assert chosen_patients(patients, 1.0, 0).all()
    assert (chosen_patients(patients, 0.1, 1) != large).any()
    order = np.random.default_rng(0).permutation(600)
    shuffled = chosen_patients([patients[n] for n in order], 0.1, 0)
    np.testing.assert_array_equal(shuffled, large[order])
    assert chosen_patients(["a", "b"], 0.01, 0).sum() == 1


def test_a_patient_in_two_splits_is_named():
    check_disjoint({"train": ["a", "b"], "val": ["c"], "test": ["d"]})
    with pytest.raises(ValueError, match="patient b: in the splits train and test, with 0 more"):
        check_disjoint({"train": ["a", "b"], "val": ["c"], "test": ["b"]})
