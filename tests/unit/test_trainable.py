"""Images that are too few for a training are refused before it, with the counts and a remedy that works."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pandas as pd
import pytest

from ham_ray.data.terms import FOLDS
from ham_ray.errors import UserError
from ham_ray.recipe import baseline
from ham_ray.training.trainable import check_trainable

pytestmark = pytest.mark.unit
RECIPE = baseline("simple_cnn").changed(batch_size=4)


def images(**folds: list[int]) -> SimpleNamespace:
    """A table with an image of each class in each of these folds."""
    rows = [(dx, fold) for dx, listed in folds.items() for fold in listed]
    return SimpleNamespace(uri="images", size=32, rows=pd.DataFrame(rows, columns=["dx", "fold"]))


EVERYWHERE = [*range(FOLDS)] * 4


def test_two_classes_in_every_fold_are_enough():
    check_trainable(images(nv=EVERYWHERE, mel=EVERYWHERE), RECIPE, "simple_cnn", 1)
    check_trainable(images(nv=EVERYWHERE, mel=[2, -1, -1]), RECIPE, "simple_cnn", 1)
    check_trainable(images(nv=EVERYWHERE, mel=EVERYWHERE), RECIPE.refit(), "simple_cnn", 1)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ({"nv": EVERYWHERE}, "images cannot be trained on: all 20 images in its folds are nv; add images of other"),
        ({"nv": EVERYWHERE, "mel": [-1, -1]}, "all 20 images in its folds are nv"),
        ({"nv": [-1, -1]}, "no image is in a fold"),
        ({"nv": [0, 2, 3, 4], "mel": [0, 2, 3, 4]}, "its validation fold 1 is empty .images by fold: 0: 2, 1: 0, 2: 2"),
        ({"nv": [1, 2, 3, 4], "mel": [1, 2, 3, 4]}, "its test fold 0 is empty"),
        (
            {"nv": EVERYWHERE, "df": [0, 0, 1]},
            "no training image of df .2 df in fold 0, 1 df in fold 1.; with test_fold",
        ),
        ({"nv": [0], "mel": [1]}, "no training image of mel, nv .*; add images of more lesions"),
        ({"nv": EVERYWHERE[:5], "mel": [3]}, "batch_size 5 is more than the 4 training images; at most 4"),
    ],
    ids=["one class", "official only", "no fold", "no validation", "no test", "not learned", "two images", "batch"],
)
def test_too_few_images_are_refused_with_counts_and_remedy(folds: dict, message: str):
    recipe = RECIPE.changed(batch_size=5) if "batch" in message else RECIPE
    with pytest.raises(UserError, match=message):
        check_trainable(images(**folds), recipe, "simple_cnn", 1)


def test_images_of_a_size_that_the_network_does_not_take_are_refused():
    table = images(nv=EVERYWHERE, mel=EVERYWHERE)
    table.size = 28
    recipe = baseline("resnet50_frozen").changed(batch_size=4)
    with pytest.raises(UserError, match="resnet50 takes images of 32 to 1024 pixels, not 28; ingest them with another"):
        check_trainable(table, recipe, "resnet50_frozen", 1)
    check_trainable(table, baseline("dinov2_small_frozen").changed(batch_size=4), "dinov2_small_frozen", 1)


def test_the_folds_named_as_remedy_are_accepted():
    table = images(nv=EVERYWHERE, df=[0, 0, 1])
    with pytest.raises(UserError) as error:
        check_trainable(table, RECIPE, "simple_cnn", 1)
    found = re.search(r"test_fold=(\d) and validation_fold=(\d)", str(error.value))
    assert found
    chosen = RECIPE.changed(test_fold=int(found[1]), validation_fold=int(found[2]))
    check_trainable(table, chosen, "simple_cnn", 1)
    with pytest.raises(UserError, match="df in fold 1.; add images of more lesions"):
        check_trainable(table, RECIPE, "simple_cnn with test fold 0", 1, other_folds=False)


def test_each_fold_of_a_cross_validation_tests_once_and_the_next_validates():
    assert [(one.data.test_fold, one.data.validation_fold) for one in RECIPE.crossed()] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 0),
    ]
