"""Recipes: refused before anything starts, with the culprit, the value and the remedy."""

from __future__ import annotations

import pytest

from ham_ray import recipe as module
from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.recipe import BASELINES, FIELDS, Recipe, baseline, digest, make_recipe

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("family", BASELINES)
def test_every_baseline_is_a_valid_recipe_of_a_registered_architecture(family: str):
    assert family in registry.architecture(baseline(family).family).recipes


def test_an_unknown_family_names_the_near_ones():
    with pytest.raises(UserError, match="unknown family 'resnet50_frozn'; did you mean resnet50_frozen"):
        baseline("resnet50_frozn")


def test_an_unknown_field_names_the_near_one():
    with pytest.raises(UserError, match="unknown recipe field 'learning_rat'; did you mean learning_rate"):
        baseline("simple_cnn").changed(learning_rat=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate: .*greater than 0, got -1.0"),
        ({"unfreeze_depth": -1}, "unfreeze_depth: .*greater than or equal to 0, got -1"),
        ({"dropout": "much"}, "dropout: .*valid number"),
        ({"augmentation": "wild"}, "augmentation: .*'off', 'light' or 'strong'"),
        ({"test_fold": 1, "validation_fold": 1}, "both 1: choosing on the test fold"),
        ({"epochs": 2, "head_epochs": 2}, "leaves no epoch"),
    ],
)
def test_a_bad_value_is_refused_with_the_reason(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        baseline("simple_cnn").changed(**changes)


def test_words_of_the_command_line_become_the_fields_types():
    recipe = baseline("simple_cnn").changed(learning_rate="2e-4", seed="3")
    assert (recipe.optimizer.learning_rate, recipe.seed) == (2e-4, 3)


@pytest.mark.parametrize("name", ["optimizer.learning_rate", "learning_rate"])
def test_a_field_goes_by_its_dotted_name_and_by_its_own(name: str):
    assert baseline("simple_cnn").changed(**{name: 2e-4}).optimizer.learning_rate == 2e-4


@pytest.mark.parametrize("name", ["augmentation", "augmentation.name"])
def test_a_sections_name_stands_for_its_field_called_name(name: str):
    assert baseline("simple_cnn").changed(**{name: "off"}).augmentation.name == "off"


@pytest.mark.parametrize("name", ["optimizer", "optimizer.learning_rat", "model.learning_rate", "recipe.epochs"])
def test_no_other_name_is_a_field(name: str):
    with pytest.raises(UserError, match=f"unknown recipe field '{name}'"):
        baseline("simple_cnn").changed(**{name: 1})


def test_a_recipe_is_made_of_its_flat_fields():
    recipe = baseline("resnet50_finetuned").changed(validation_fold=3, class_weight_scale=0.3)
    assert make_recipe(**recipe.flat()) == recipe
    assert [*recipe.flat()] == [*FIELDS] and recipe.flat()["class_weight_scale"] == 0.3


def test_training_folds_are_the_others():
    assert baseline("simple_cnn").changed(test_fold=2, validation_fold=4).training_folds == [0, 1, 3]


def test_a_digest_names_content_and_not_its_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_a_recipe_survives_json():
    recipe = baseline("resnet50_finetuned")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("name", "expected"),
    [("simple_cnn", "0bd184a1"), ("resnet50_frozen", "e3fb34b1"), ("resnet50_finetuned", "cb1ec6bc")],
)
def test_a_record_stays_what_earlier_code_made_of_it(name: str, expected: str):
    """Names of folders and facts of studies are digests of records: these were made before `record` existed."""
    assert digest(baseline(name).record()) == expected


class Newer(Recipe):
    """A recipe of later code, with one more field."""

    mixing: float = 0.0


def test_a_new_field_counts_only_where_it_differs_from_its_default(monkeypatch: pytest.MonkeyPatch):
    recipe = baseline("simple_cnn")
    record = recipe.record()
    monkeypatch.setattr("ham_ray.recipe.Recipe", Newer)
    monkeypatch.setattr("ham_ray.recipe._PATHS", {**module._PATHS, "mixing": ("mixing",)})
    assert Newer(**recipe.model_dump()).record() == record
    assert Newer(**recipe.model_dump(), mixing=0.2).record() == {**record, "mixing": 0.2}


def test_another_version_is_other_work(monkeypatch: pytest.MonkeyPatch):
    recipe = baseline("simple_cnn")
    before = recipe.record()
    monkeypatch.setattr("ham_ray.recipe.VERSION", 2)
    assert recipe.record() != before and recipe.record() == recipe.record()
