"""Groups and folds: no leak, balanced, the same everywhere."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES
from sklearn.model_selection import StratifiedGroupKFold

from ham_ray.data.datasets import NEAR_DUPLICATES
from ham_ray.data.splits import assign_folds, group_ids, hopeless, own_folds, thin_folds
from ham_ray.errors import UserError

pytestmark = pytest.mark.unit


def table(lesions: int = 200, seed: int = 3) -> tuple[list[str], list[str], list[int]]:
    """Image ids, groups and labels: unbalanced classes, one to three images a lesion."""
    random = np.random.default_rng(seed)
    groups, labels = [], []
    for lesion in range(lesions):
        label = int(random.choice(7, p=[0.05, 0.05, 0.1, 0.05, 0.1, 0.6, 0.05]))
        for _ in range(random.integers(1, 4)):
            groups.append(f"L{lesion:04d}")
            labels.append(label)
    return [f"I{i:05d}" for i in range(len(groups))], groups, labels


def test_known_near_duplicates_are_18_pairs_of_36_images():
    assert len(NEAR_DUPLICATES) == 18
    assert len({image for pair in NEAR_DUPLICATES for image in pair}) == 36


def test_lesions_of_near_duplicates_become_one_group():
    images = ["ISIC_0033481", "ISIC_0033421", "ISIC_0000001", "ISIC_0000002"]
    lesions = ["HAM_9", "HAM_3", "HAM_9", "HAM_5"]
    assert group_ids(images, lesions, list("abcd")) == ["HAM_3", "HAM_3", "HAM_3", "HAM_5"]


def test_one_half_of_a_known_pair_changes_nothing():
    assert group_ids(["ISIC_0033481", "x"], ["HAM_9", "HAM_3"], ["a", "b"]) == ["HAM_9", "HAM_3"]


def test_equal_pixels_merge_groups_along_a_chain():
    lesions = ["L4", "L3", "L3", "L2", "L2", "L1", "L7"]
    pixels = ["a", "a", "b", "b", "c", "c", "z"]
    assert group_ids(list("tuvwxyz"), lesions, pixels) == ["L1"] * 6 + ["L7"]


def test_an_image_without_lesion_is_its_own_group():
    assert group_ids(["i2", "i1", "i3"], [None, None, "L1"], ["a", "b", "c"]) == ["i2", "i1", "L1"]


def test_group_names_do_not_depend_on_row_order():
    lesions, pixels = ["L4", "L3", "L3", "L2", "L2", "L1"], ["a", "a", "b", "b", "c", "c"]
    assert group_ids(list("uvwxyz")[::-1], lesions[::-1], pixels[::-1]) == ["L1"] * 6


def test_folds_are_balanced_and_keep_groups_whole():
    images, groups, labels = table()
    folds = assign_folds(images, groups, labels, ["training"] * len(images))
    assert all(len(set(folds[np.array(groups) == group])) == 1 for group in set(groups))
    counts = np.array([[np.sum((folds == f) & (np.array(labels) == c)) for c in range(7)] for f in range(5)])
    assert counts.sum() == len(images)
    assert (np.ptp(counts, axis=0) <= 4).all(), counts


def test_folds_are_the_stored_ones_for_every_row_order():
    images, groups, labels = table(lesions=12)
    expected = [2, 3, 0, 1, 3, 4, 0, 0, 2, 2, 1, 1, 4, 4, 3, 3, 3, 0]
    assert assign_folds(images, groups, labels, ["training"] * len(images)).tolist() == expected
    order = np.random.default_rng(1).permutation(len(images))
    shuffled = assign_folds(
        *([column[i] for i in order] for column in (images, groups, labels)), ["training"] * len(images)
    )
    assert shuffled[np.argsort(order)].tolist() == expected


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_those_of_scikit_learn(seed):
    _, groups, labels = table(lesions=300, seed=seed)
    dealer = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    images = [f"{i:05d}" for i in range(len(groups))]
    folds = assign_folds(images, groups, labels, ["training"] * len(groups))
    for fold, (_, rows) in enumerate(dealer.split(groups, labels, groups)):
        assert (folds[rows] == fold).all()


def test_official_validation_and_test_images_are_in_no_fold():
    images, groups, labels = table()
    partitions = ["training", "validation", "test"] * len(images)
    folds = assign_folds(images, groups, labels, partitions[: len(images)])
    assert set(folds[0::3]) == {0, 1, 2, 3, 4}
    assert set(folds[1::3]) == set(folds[2::3]) == {-1}


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [0] * 4, [0] * 30 + [1], [1] * 5 + [0] * 2])
def test_small_and_odd_data_work_without_warnings(labels):
    names = [f"i{i:02d}" for i in range(len(labels))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = assign_folds(names, names, labels, ["training"] * len(names))
    assert set(folds) <= {0, 1, 2, 3, 4}
    assert np.ptp(np.bincount(folds, minlength=5)) <= 2


def test_only_official_test_images():
    assert assign_folds(["a", "b"], ["a", "b"], [0, 1], ["test", "test"]).tolist() == [-1, -1]


def rows_of(folds: list[int], dx: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"fold": folds, "dx": dx, "group_id": [f"L{place}" for place in range(len(folds))]})


def test_what_no_folds_could_mend():
    assert hopeless(["nv"] * 50, [f"L{n}" for n in range(50)]) == (
        "all 50 images are nv: nothing can be learned from one class"
    )
    assert hopeless(["nv", "mel", "mel", "mel"], ["a", "b", "b", "b"]) == (
        "4 images of 2 lesions: training, validation and test need one each at least"
    )
    assert hopeless(["nv", "mel", "mel"], ["a", "b", "c"]) is None
    assert hopeless([], []) is None


def test_thin_folds_are_said():
    dx = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    assert thin_folds(rows_of([fold for fold in range(5) for _ in range(14)], dx * 10), CLASSES) == []
    rows = rows_of([fold for fold in range(5) for _ in range(12)], [dx[n % 6] for n in range(60)])
    rows.loc[rows["dx"] == "df", "dx"] = "nv"
    rows.loc[0, ["fold", "dx"]] = [2, "df"]
    rows = rows[rows.index < 54]
    assert thin_folds(rows, CLASSES) == [
        "no image is vasc: a model trained on this table will not predict them",
        "classes that not all folds have: df in 2 (1 images of 1 lesions). A model of the other folds alone cannot "
        "call them, and figures of those folds say nothing of them",
        "54 images are too few for figures that one could believe: fold 4 has 6",
    ]
    assert "not trained on" in thin_folds(rows_of([-1, -1], ["nv", "mel"]), CLASSES)[0]


def test_folds_of_ones_own_are_taken_as_they_are():
    rows = pd.DataFrame({"image_id": list("abc"), "group_id": ["g", "g", "h"], "fold": ["3", "3", "0"]})
    assert own_folds(rows).tolist() == [3, 3, 0] and own_folds(rows).dtype == np.int32


def test_folds_of_ones_own_that_tear_a_group_or_leave_an_image_out_are_refused():
    rows = pd.DataFrame({"image_id": list("abc"), "group_id": ["g", "g", "h"], "fold": ["3", "1", "0"]})
    with pytest.raises(UserError, match=r"1 groups have images in several folds, such as 'g' in 1, 3"):
        own_folds(rows)
    with pytest.raises(UserError, match=r"1 images have no fold, such as b"):
        own_folds(rows.assign(fold=["3", "", "0"]))
