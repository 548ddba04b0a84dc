"""Search spaces: what they say, and each mistake told with its file and line."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import optuna
import pytest

from ham_ray.errors import UserError
from ham_ray.recipe import Recipe
from ham_ray.search import space as space_module
from ham_ray.search.space import load_space

pytestmark = pytest.mark.unit
SHIPPED = sorted(Path(__file__).parents[2].joinpath("search_spaces").glob("*.yaml"))
TEXT = """\
family: resnet50_finetuned
recipe:
  epochs: 3
  head_epochs: 1
parameters:
  learning_rate: {type: float, low: 1.0e-5, high: 1.0e-2, log: true}
  unfreeze_depth: {type: int, low: 0, high: 5}
  hidden_units:
    type: choice
    choices: [0, 128]
    when: {unfreeze_depth: [0, 1]}
points:
  - {learning_rate: 1.0e-3, unfreeze_depth: 5}
"""


@pytest.fixture
def load(tmp_path):
    def loaded(text: str):
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return load_space(path)

    return loaded


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_load_and_suggest_recipes(path):
    space = load_space(path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for point in space.points:
        study.enqueue_trial(point)
    for point in [*space.points, *[{}] * 20]:
        chosen = space.suggest(study.ask())
        assert {name: chosen[name] for name in point} == point
        assert isinstance(space.base().changed(**chosen), Recipe)


def test_the_spaces_that_jobs_and_docs_name_ship():
    assert {"resnet50", "resnet50_wide", "simple_cnn", "smoke"} <= {path.stem for path in SHIPPED}


def test_the_cards_search_holds_the_original_recipe_and_ours_among_its_points():
    points = load_space(next(path for path in SHIPPED if path.stem == "resnet50")).points
    assert {"learning_rate", "unfreeze_depth", "class_weight_scale"} == {name for point in points for name in point}
    assert {point["unfreeze_depth"] for point in points} == {0, 1, 5}


def test_conditions_hold(load):
    space = load(TEXT)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for depth in range(6):
        study.enqueue_trial({"unfreeze_depth": depth})
        assert ("hidden_units" in space.suggest(study.ask())) == (depth in (0, 1))


def test_a_logarithmic_range_is_drawn_evenly_over_its_decades(load):
    space = load(TEXT)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rates = np.array([space.suggest(study.ask())["learning_rate"] for _ in range(300)])
    decades = np.histogram(rates, [1e-5, 1e-4, 1e-3, 1e-2])[0]
    assert decades.sum() == 300 and decades.min() > 70  # evenly between the bounds themselves it would be 3, 27, 270


def test_fixed_fields_and_objective_reach_the_recipe(load):
    recipe = load(TEXT + "objective: macro_f1\n").base()
    assert (recipe.epochs, recipe.head_epochs, recipe.select_by) == (3, 1, "macro_f1")
    assert load(TEXT).base().select_by == "balanced_accuracy"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("family: resnet50_finetuned", "family: resnet50_fine", 1, "unknown family 'resnet50_fine'; did you mean"),
        ("recipe:", "recipes:", 2, "unknown name 'recipes'; did you mean recipe"),
        ("epochs: 3", "epochs: none", 3, "epochs: "),
        ("head_epochs: 1", "head_epoch: 1", 4, "unknown recipe field 'head_epoch'; did you mean head_epochs"),
        ("head_epochs: 1", "head_epochs: 3", 2, "head_epochs=3 leaves no epoch of epochs=3"),
        ("learning_rate: {", "learning_rat: {", 6, "unknown recipe field 'learning_rat'; did you mean learning_rate"),
        ("low: 1.0e-5", "low: 0", 6, "log: true needs low above 0, got 0"),
        ("low: 1.0e-5", "low: 1", 6, "empty range: low 1 is above high 0.01"),
        ("log: true", "log: true, step: 0.1", 6, "log and step exclude each other"),
        ("log: true", "logs: true", 6, "unknown name 'logs'; did you mean log"),
        ("type: float", "type: floats", 6, "floats"),
        ("low: 0, high: 5", "low: 0, high: 6", 7, "unfreeze_depth: resnet50 has 5 stages, got 6"),
        ("low: 0, high: 5", "low: 0.5, high: 5", 7, "type int needs whole numbers"),
        ("[0, 128]", "[0, 0]", 8, "choices are given twice"),
        ("[0, 128]", "[]", 10, "choices"),
        ("{unfreeze_depth: [0, 1]}", "{dropout: 0.1}", 11, "'when' names 'dropout'; known above it: learning_rate"),
        ("{unfreeze_depth: [0, 1]}", "{unfreeze_depth: 7}", 11, "unfreeze_depth never is 7"),
        ("unfreeze_depth: 5}", "unfreeze_depth: 9}", 13, "unfreeze_depth: 9 is outside 0–5"),
        ("unfreeze_depth: 5}", "epochs: 5}", 13, "epochs is a constant in this space"),
        ("unfreeze_depth: 5}", "unfreeze_dept: 5}", 13, "unknown parameter 'unfreeze_dept'; did you mean"),
        ("unfreeze_depth: 5}", "unfreeze_depth: 5, hidden_units: 0}", 13, "hidden_units is not searched at this point"),
        ("  epochs: 3", "  epochs: 3\n  learning_rate: 0.1", 7, "learning_rate is fixed under recipe: and searched"),
        ("learning_rate: {", "seed: {type: int, low: 0, high: 3}\n  learning_rate: {", 6, "seed is no parameter"),
        ("recipe:", "finals: {learning_rate: 0.1}\nrecipe:", 2, "learning_rate is searched: the finals take it"),
        ("recipe:", "finals: {epoch: 9}\nrecipe:", 2, "unknown recipe field 'epoch'; did you mean epochs"),
        ("recipe:", "finals: {epochs: 0}\nrecipe:", 2, "epochs: "),
        ("recipe:", "recipe: ]", 2, "not YAML"),
        ("type: int", "type: float", 7, "unfreeze_depth is a whole number: type: int"),
        ("learning_rate: {", "precision: {type: choice, choices: [float32]}\n  learning_rate: {", 6, "precision is no"),
        ("epochs: 3", "epochs: 3\x07", 3, "not YAML: character"),
    ],
)
def test_mistakes_are_told_with_their_line(load, tmp_path, old, new, line, message):
    assert TEXT.count(old) >= 1
    with pytest.raises(UserError) as error:
        load(TEXT.replace(old, new, 1))
    assert str(error.value).startswith(f"{tmp_path / 'space.yaml'}:{line}: ")
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_file_without_names_is_refused(load, text):
    with pytest.raises(UserError, match="space.yaml:1: expected names and values"):
        load(text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the space .*nothing.yaml: No such file"):
        load_space(tmp_path / "nothing.yaml")


def test_a_file_that_is_no_text_is_refused_with_its_line(tmp_path):
    (tmp_path / "space.yaml").write_bytes(b"family: simple_cnn\n# gr\xfc\xdfe\n")
    with pytest.raises(UserError, match=r"space.yaml:2: not UTF-8 text: byte 0xfc"):
        load_space(tmp_path / "space.yaml")


def test_values_off_the_steps_are_no_points(load):
    text = TEXT.replace("unfreeze_depth: {type: int, low: 0", "unfreeze_depth: {type: int, step: 2, low: 1")
    text = text.replace("[0, 1]", "[1]")
    assert load(text).points[0]["unfreeze_depth"] == 5
    with pytest.raises(UserError, match="unfreeze_depth: 4 is outside 1–5 in steps of 2"):
        load(text.replace("unfreeze_depth: 5}", "unfreeze_depth: 4}"))


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("  epochs: 3", "  epochs: 3\n  head_epochs: 0", 5, "'head_epochs' stands here and in line 4: leave one"),
        ("log: true}", "log: true, low: 0.1}", 6, "'low' stands here and in line 6"),
        ("points:", "family: simple_cnn\npoints:", 12, "'family' stands here and in line 1"),
        ("epochs: 3", "epochs: 2026-11-25", 3, "epochs: Input should be a valid integer"),
        ("epochs: 3", "epochs: !!python/name:os.system x", 3, "'python/name:os.system' is no kind of value"),
        ("epochs: 3", "epochs: !!binary eHh4", 3, "'binary' is no kind of value"),
        ("[0, 128]", "[0, ~]", 10, "nothing is given"),
        ("epochs: 3", "epochs:", 3, "nothing is given"),
        (
            "epochs: 3",
            "epochs: null",
            3,
            "epochs: Input should be a valid integer, unable to parse string as an integer",
        ),
        ("low: 1.0e-5, high", "low: 1.0e-5, step: .inf, high", 6, "finite number"),
        ("low: 0, high: 5", "low: 0, high: .nan", 7, "finite number"),
    ],
)
def test_mistakes_of_yaml_are_told_with_their_line(load, tmp_path, old, new, line, message):
    test_mistakes_are_told_with_their_line(load, tmp_path, old, new, line, message)


BOMB = "a: &a [1, 2, 3]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("family: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (
            "family:\n" + "".join(" " * n + "a:\n" for n in range(1, 400)),
            "nested too deeply|family: Input should be a valid string",
        ),
        (BOMB, "more than 10,000 entries"),
        ("a: &a [*a]", "more than 10,000 entries"),
        ("a: x\n" * 30_000, "larger than 100,000 bytes"),
        ("- a\n" * 20_000, "expected names and values"),
        ("seed: " + "9" * 5000, "a value that cannot be read: Exceeds the limit"),
        ("seed: !!bool maybe", "a value that cannot be read"),
        ("\ufeffnames: 1", "unknown name 'names'"),
    ],
    ids=["brackets", "indents", "aliases", "itself", "size", "list", "digits", "tag", "mark"],
)
def test_hostile_files_are_one_line_and_quick(load, text: str, message: str):
    started = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        load(text)
    assert time.process_time() - started < 20 and len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_what_is_no_file_is_not_read():
    with pytest.raises(UserError, match="cannot read the space /dev/zero: not a file"):
        load_space("/dev/zero")


def test_words_are_words_and_numbers_are_numbers(load):
    text = TEXT + "  - {learning_rate: 1e-3, unfreeze_depth: 5}\n"
    text = text.replace("parameters:", "parameters:\n  augmentation: {type: choice, choices: [off, light]}")
    text = text.replace("{unfreeze_depth: [0, 1]}", "{augmentation: off}").replace("log: true", "log: yes")
    space = load(text.replace("points:", "sampler: {multivariate: off}\npoints:"))
    assert space.parameters["augmentation"].choices == ["off", "light"]  # type: ignore[union-attr]
    assert space.parameters["hidden_units"].when == {"augmentation": "off"}
    assert space.points[1]["learning_rate"] == 0.001
    assert space.parameters["learning_rate"].log is True and space.sampler.multivariate is False  # type: ignore[union-attr]
    assert load(TEXT.replace("epochs: 3", "augmentation: off\n  epochs: 3")).base().augmentation.name == "off"


@pytest.mark.parametrize("word", ["off", "Off", "OFF", "on", "yes", "no", "NO", "y", "n", "null", "Null"])
def test_words_of_older_yaml_name_choices_wherever_a_value_stands(load, monkeypatch: pytest.MonkeyPatch, word: str):
    """YAML 1.1 takes them for true, false or nothing."""
    named = {**space_module.BASELINES, word: space_module.BASELINES["resnet50_finetuned"]}
    monkeypatch.setattr(space_module, "BASELINES", named)
    monkeypatch.setattr(space_module, "_accepted", lambda *given: None)  # no field of a recipe has all these choices
    text = TEXT.replace("family: resnet50_finetuned", f"family: {word}")
    text = text.replace("epochs: 3", f"loss: {word}").replace("recipe:", f"finals: {{seed: {word}}}\nrecipe:", 1)
    text = text.replace("parameters:", f"parameters:\n  augmentation: {{type: choice, choices: [{word}, light]}}")
    text = text.replace("{unfreeze_depth: [0, 1]}", f"{{augmentation: [{word}, light]}}")
    space = load(f"{text}  - {{augmentation: {word}}}\n")
    hidden, augmentation = space.parameters["hidden_units"], space.parameters["augmentation"]
    assert (space.family, space.recipe["loss"], space.finals["seed"]) == (word, word, word)
    assert augmentation.choices == [word, "light"] and hidden.when == {"augmentation": [word, "light"]}
    assert space.points[-1] == {"augmentation": word}


def test_a_choice_of_off_reaches_the_recipe_of_a_trial(load):
    space = load(TEXT.replace("parameters:", "parameters:\n  augmentation: {type: choice, choices: [off]}"))
    chosen = space.suggest(optuna.create_study().ask())
    assert space.base().changed(**chosen).augmentation.name == "off"
    assert space.record()["parameters"]["augmentation"]["choices"] == ["off"]  # as in studies made before


def test_a_step_of_null_is_none(load):
    assert (
        load(TEXT.replace("low: 0, high: 5", "low: 0, high: 5, step: null")).parameters["unfreeze_depth"].step is None
    )  # type: ignore[union-attr]


def test_dotted_names_are_the_same_fields(load):
    text = TEXT.replace("learning_rate:", "optimizer.learning_rate:").replace(
        "unfreeze_depth:", "model.unfreeze_depth:"
    )
    text = text.replace("  epochs: 3", "  epochs: 3\n  loss.label_smoothing: 0.2")
    assert load(text).record() == {
        **load(TEXT).record(),
        "recipe": {"epochs": 3, "label_smoothing": 0.2, "head_epochs": 1},
    }
    assert load(text).points == load(TEXT).points


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("low: 0, high: 5", "low: 0, high: 6", 7, "unfreeze_depth: resnet50 has 5 stages, got 6"),
        (
            "  hidden",
            "  unfreeze_depth: {type: int, low: 0, high: 1}\n  hidden",
            7,
            "unfreeze_depth is here twice, also as model.unfreeze_depth",
        ),
    ],
)
def test_a_mistake_under_a_dotted_name_is_told_with_its_line(load, tmp_path, old, new, line, message):
    text = TEXT.replace("  unfreeze_depth:", "  model.unfreeze_depth:", 1)
    assert text.count(old) >= 1
    with pytest.raises(UserError) as error:
        load(text.replace(old, new, 1))
    assert str(error.value).startswith(f"{tmp_path / 'space.yaml'}:{line}: ") and message in str(error.value)
