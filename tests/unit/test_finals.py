"""The finals: validation alone names the winner, and averages are of the same images."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES, PROBABILITIES

from ham_ray.errors import UserError
from ham_ray.evaluation import calibration, metrics
from ham_ray.evaluation.predictions import arrays, of_split, predictions
from ham_ray.recipe import baseline
from ham_ray.report.summary import Run
from ham_ray.workflows.steps import finals as module
from ham_ray.workflows.steps import trainings
from ham_ray.workflows.steps.finals import CALIBRATED, Plan, average, finals

pytestmark = pytest.mark.unit
TRUTH = np.arange(70) % 7
compared: list[tuple[str, str]] = []  # pairs of what was published
# What `calibration.chosen` gives where a calibration lowers cross-fitted scores.
USELESS = calibration.Calibration(1.0, 0.0, (1 / 7,) * 7, {"specificity_90": 0.5}, False, (0.9, 0.4), 0.298, 0.213)
BASE = baseline("resnet50_finetuned").changed(select_by="balanced_accuracy", epochs=3)


def predicted(right: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """PREDICTIONS of which that share is right in each split."""
    tables = []
    for split, share in right.items():
        called = np.where(np.arange(70) < 70 * share, TRUTH, (TRUTH + 1 + seed) % 7)
        p = np.full((70, 7), 0.02)
        p[np.arange(70), called] = 0.88
        names = [f"{split}-{place}" for place in range(70)]
        rows = pd.DataFrame({"image_id": names, "lesion_id": names, "group_id": names, "fold": 1, "label": TRUTH})
        tables.append(predictions(rows, split, p, CLASSES))
    return pd.concat(tables, ignore_index=True)


def run(validation: float, test: float, seed: int = 0) -> Run:
    return Run(predicted({"validation": validation, "test": test}, seed), None, {"weights": "w", "minutes": 2.0})


def trial(number: int, depth: int) -> SimpleNamespace:
    return SimpleNamespace(number=number, params={"unfreeze_depth": depth})


@pytest.fixture
def arranged(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """`finals` without training: runs by name, and what was published."""
    shown: dict[str, Run] = {}
    compared.clear()

    def arrange(
        found: dict[str, Run], seeds: int, beside: dict[str, Run] | None = None, helps: bool = True, **plan: Any
    ) -> dict[str, Run]:
        monkeypatch.setattr(calibration, "chosen", calibration.fit if helps else lambda table, shares: USELESS)
        monkeypatch.setattr(module, "train", lambda recipes, context, remedy: {name: found[name] for name in recipes})
        monkeypatch.setattr(
            module, "publish", lambda trained, *rest: shown.update(trained) or compared.extend(rest[-1])
        )
        labels = pd.DataFrame({"label": TRUTH})
        monkeypatch.setattr(module.input_pipeline, "split_rows", lambda images, recipe: {"training": labels})
        rows = pd.DataFrame(
            {"image_id": [f"{split}-{place}" for split in ("test", "validation") for place in range(70)]}
        )
        context = SimpleNamespace(images=SimpleNamespace(fold=lambda *folds: rows, classes=CLASSES), out=str(tmp_path))
        best = [trial(4, 5), trial(9, 1)]
        finals(best, BASE, Plan(seeds, **plan), context, beside or {})  # type: ignore[arg-type]
        return shown

    return arrange


def test_validation_names_the_winner_and_not_the_test_fold(arranged):
    shown = arranged({"trial-4-seed-0": run(0.8, 0.2), "trial-9-seed-0": run(0.6, 0.99)}, seeds=1)
    assert list(shown) == ["trial 4, one training", "the last one, calibrated"]


def test_the_mean_over_trainings_decides_and_the_first_is_shown(arranged):
    found = {"trial-4-seed-0": run(0.9, 0.5), "trial-4-seed-1": run(0.3, 0.5, 1)}
    found |= {"trial-9-seed-0": run(0.7, 0.5), "trial-9-seed-1": run(0.8, 0.5, 1)}
    shown = arranged(found, seeds=2)
    assert list(shown) == ["trial 9, one training", "trial 9, 2 trainings averaged", "the last one, calibrated"]
    assert shown["trial 9, one training"] is found["trial-9-seed-0"]


def test_an_ensemble_averages_trials(arranged):
    found = {"trial-4-seed-0": run(0.9, 0.5), "trial-9-seed-0": run(0.8, 0.5, 1)}
    shown = arranged(found, seeds=1, ensemble=2)
    expected = average([found["trial-4-seed-0"], found["trial-9-seed-0"]])
    pd.testing.assert_frame_equal(shown["2 trials averaged"].predictions, expected.predictions)


def test_trials_have_equal_weight_however_many_of_their_trainings_ended(arranged):
    found = {"trial-4-seed-0": run(0.9, 0.5), "trial-4-seed-1": run(0.8, 0.9, 1)}
    found |= {"trial-9-seed-0": run(0.7, 0.3, 2), "trial-9-seed-1": Run(None, None, {})}
    shown = arranged(found, seeds=2, ensemble=2)
    first, second, third = (arrays(found[name].predictions)[1] for name in list(found)[:3])
    expected = first / 4 + second / 4 + third / 2
    np.testing.assert_allclose(arrays(shown["2 trials averaged"].predictions)[1], expected, rtol=1e-6)


def test_each_model_predicts_the_views_of_its_own_images(arranged, monkeypatch: pytest.MonkeyPatch, tmp_path):
    asked = []

    def predict_rows(model, images, rows, views):
        asked.append((model, views))
        places = rows["image_id"].str.split("-").str[1].astype(int).to_numpy()
        return np.eye(7)[places % 7]  # each image right, whatever its split and order

    monkeypatch.setattr(module, "predict_rows", predict_rows)
    found = {"trial-4-seed-0": run(0.9, 0.5), "trial-4-seed-1": Run(None, None, {}), "trial-9-seed-0": run(0.8, 0.5)}
    shown = arranged({**found, "trial-9-seed-1": run(0.8, 0.5)}, seeds=2, ensemble=2, views=8)
    names = ["trial-4-seed-0", "trial-9-seed-0", "trial-9-seed-1"]
    assert asked == [(str(tmp_path / name / "model.keras"), 8) for name in names]
    for split in ("validation", "test"):
        assert metrics.accuracy(*arrays(of_split(shown["that in 8 views"].predictions, split))) == 1.0
    assert list(shown)[-3:] == ["2 trials averaged", "that in 8 views", CALIBRATED]


def test_each_training_of_a_trial_validates_on_another_fold_and_none_sees_the_test_fold():
    recipes = module._recipes(trial(4, 5), BASE, 5)
    assert [recipe.data.validation_fold for recipe in recipes.values()] == [1, 2, 3, 4, 1]
    assert [recipe.seed for recipe in recipes.values()] == [0, 1, 2, 3, 4]
    assert all(recipe.data.test_fold == 0 and 0 not in recipe.training_folds for recipe in recipes.values())
    assert all(recipe.model.unfreeze_depth == 5 for recipe in recipes.values())


def test_baselines_stand_beside_and_the_last_is_compared_with_each(arranged):
    found = {"trial-4-seed-0": run(0.9, 0.5), "trial-9-seed-0": run(0.8, 0.5, 1)}
    shown = arranged(found, seeds=1, beside={"baseline simple_cnn": run(0.4, 0.4)})
    assert list(shown) == ["trial 4, one training", CALIBRATED, "baseline simple_cnn"]
    assert compared == [(CALIBRATED, "baseline simple_cnn")]


def test_a_calibration_that_does_not_help_is_not_what_the_finals_name(arranged, tmp_path):
    found = {"trial-4-seed-0": run(0.9, 0.5), "trial-9-seed-0": run(0.8, 0.5, 1)}
    shown = arranged(found, seeds=1, beside={"baseline simple_cnn": run(0.4, 0.4)}, helps=False)
    assert list(shown) == ["trial 4, one training", "baseline simple_cnn"]
    named = shown["trial 4, one training"]
    pd.testing.assert_frame_equal(named.predictions, found["trial-4-seed-0"].predictions)
    told = "not calibrated, it does not help: temperature 0.90, tau 0.40, cross-fitted by lesion, give a score of 0.213"
    assert named.info["warnings"][0].startswith(told) and named.info["minutes"] == 2.0
    assert compared == [("trial 4, one training", "baseline simple_cnn")]
    winner = json.loads((tmp_path / "winner.json").read_text())["calibration"]
    assert (winner["temperature"], winner["tau"], winner["helps"]) == (1.0, 0.0, False)


def test_a_further_look_at_the_test_fold_is_said(arranged):
    found = {"trial-4-seed-0": run(0.9, 0.5), "trial-9-seed-0": run(0.8, 0.5, 1)}
    assert not arranged(found, seeds=1)[CALIBRATED].info["warnings"]
    warned = arranged(found, seeds=1, earlier=("finals",))[CALIBRATED].info["warnings"]
    assert warned == ["not the first look at the test fold: finals of the same search looked before"]


def untold(right: float, seed: int = 0) -> Run:
    """A run without validation images."""
    return Run(predicted({"test": right}, seed), None, {"weights": "w", "minutes": 2.0})


def test_what_was_chosen_is_trained_on_the_validation_folds_too_and_calibrated_as_before(arranged, tmp_path):
    found = {"trial-4-seed-0": run(0.9, 0.5), "trial-9-seed-0": run(0.8, 0.5, 1)}
    plain = arranged(found, seeds=1)
    fitted = json.loads((tmp_path / "winner.json").read_text())["calibration"]
    shown = arranged({**found, "trial-4-refit-0": untold(0.7)}, seeds=1, refit=True)
    name = "trained on the validation folds too, 1 averaged"
    assert name in shown
    winner = json.loads((tmp_path / "winner.json").read_text())
    assert winner["members"] == {"4": ["trial-4-refit-0"]} and winner["calibration"] == fitted
    expected = calibration.Calibration(**fitted).applied(untold(0.7).predictions)
    last = shown[CALIBRATED].predictions
    pd.testing.assert_frame_equal(last[list(PROBABILITIES)], expected[list(PROBABILITIES)])
    calls = expected["p_mel"].to_numpy(float) >= fitted["thresholds"]["specificity_90"]
    assert last["mel_specificity_90"].tolist() == calls.tolist()
    told = "not the first look at the test fold: trial-4-seed-0 looked before"
    assert told in shown[CALIBRATED].info["warnings"] and not plain["trial 4, one training"].info.get("warnings")
    again = arranged({**found, "trial-4-refit-0": untold(0.7)}, seeds=1, refit=True)
    assert again[CALIBRATED].info["warnings"] == [told]
    for refit in (False, True, False, True):
        back = arranged({**found, "trial-4-refit-0": untold(0.7)}, seeds=1, refit=refit)
    assert back[CALIBRATED].info["warnings"] == [told, told.replace("seed", "refit")]


def test_a_winner_named_by_older_code_is_no_other_look(arranged, tmp_path):
    (tmp_path / "winner.json").write_text(json.dumps({"trial": 4}))
    found = {"trial-4-seed-0": run(0.9, 0.5), "trial-9-seed-0": run(0.8, 0.5, 1)}
    assert not arranged(found, seeds=1)[CALIBRATED].info["warnings"]


def test_a_refit_learns_from_all_folds_but_the_test_fold(monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def train(recipes, context, remedy):
        asked.update(recipes)
        return {name: untold(1.0) for name in recipes}

    monkeypatch.setattr(module, "train", train)
    stopping = BASE.changed(patience=2)
    module._trained({4: module._refits(trial(4, 5), stopping, 2)}, SimpleNamespace(out="o"))  # type: ignore[arg-type]
    assert [*asked] == ["trial-4-refit-0", "trial-4-refit-1"]
    assert [
        (r.training_folds, r.data.validation_fold, r.patience, r.seed, r.model.unfreeze_depth) for r in asked.values()
    ] == [
        ([1, 2, 3, 4], None, 0, 0, 5),
        ([1, 2, 3, 4], None, 0, 1, 5),
    ]


def test_a_trial_whose_seeds_all_failed_cannot_win(arranged):
    found = {"trial-4-seed-0": Run(None, None, {"warnings": ["stopped"]}), "trial-9-seed-0": run(0.3, 0.3)}
    assert "trial 9, one training" in arranged(found, seeds=1)
    with pytest.raises(UserError, match="none of the best trials could be trained again"):
        arranged({name: found["trial-4-seed-0"] for name in found}, seeds=1)


def test_a_seed_that_failed_does_not_count(arranged):
    found = {"trial-4-seed-0": Run(None, None, {"warnings": ["stopped"]}), "trial-4-seed-1": run(0.9, 0.5)}
    shown = arranged({**found, "trial-9-seed-0": run(0.3, 0.3), "trial-9-seed-1": run(0.3, 0.3)}, seeds=2)
    assert shown["trial 4, one training"] is found["trial-4-seed-1"]


def test_finals_with_other_settings_are_refused_with_what_to_do(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainings, "_identity", lambda name, recipe, context: recipe.record())
    monkeypatch.setattr(trainings, "_finished", lambda uri: Run(None, None, {}))
    context = SimpleNamespace(out=str(tmp_path))
    with pytest.raises(UserError, match="none of the best trials"):
        module._trained({4: module._recipes(trial(4, 5), BASE, 1)}, context)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="epochs was 3, is 5. .*or move .* away"):
        module._trained({4: module._recipes(trial(4, 5), BASE.changed(epochs=5), 1)}, context)  # type: ignore[arg-type]


def test_no_complete_trial_is_told():
    with pytest.raises(UserError, match="no trial is complete"):
        finals([], BASE, Plan(1), SimpleNamespace(), {})  # type: ignore[arg-type]


def test_an_average_is_the_mean_of_probabilities():
    one, two = run(0.5, 0.5), run(0.9, 0.9, 1)
    mean = average([one, two])
    assert mean.predictions is not None and one.predictions is not None and two.predictions is not None
    expected = (arrays(one.predictions)[1] + arrays(two.predictions)[1]) / 2
    np.testing.assert_allclose(arrays(mean.predictions)[1], expected, rtol=1e-6)
    truth, p = arrays(of_split(mean.predictions, "validation"))
    assert metrics.accuracy(truth, p) >= 0.5 and mean.info["minutes"] == 4.0


def test_an_image_is_averaged_over_the_runs_that_predicted_it():
    one, two = run(0.5, 0.5), run(0.9, 0.9, 1)
    assert one.predictions is not None and two.predictions is not None
    elsewhere = two.predictions.copy()
    validation = elsewhere["split"] == "validation"
    elsewhere.loc[validation, "image_id"] = [f"other-{place}" for place in range(70)]
    elsewhere.loc[validation, "fold"] = 2
    mean = average([one, Run(elsewhere.iloc[::-1], None, {})]).predictions
    assert mean is not None and len(mean) == 210
    by_id = mean.set_index("image_id")[list(PROBABILITIES)]
    before = [table.set_index("image_id")[list(PROBABILITIES)] for table in (one.predictions, elsewhere)]
    for name in ("validation-0", "other-69", "test-65"):
        own = [table.loc[name] for table in before if name in table.index]
        np.testing.assert_allclose(by_id.loc[name], np.mean(own, axis=0), rtol=1e-6)
