"""The baseline job's options, as far as they need no cluster."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from ham_ray import storage
from ham_ray.errors import UserError
from ham_ray.evaluation.exact import Interval
from ham_ray.recipe import Recipe, baseline
from ham_ray.report.summary import Row, Run, Summary
from ham_ray.workflows.baseline import Options, make_recipes, run
from ham_ray.workflows.steps import baselines

pytestmark = pytest.mark.unit
OPTIONS = Options(data="images", families="simple_cnn,resnet50_finetuned", weights=["none"], precision="float32")


def recipes(**changes):
    return make_recipes(dataclasses.replace(OPTIONS, **changes), "float32")


def test_families_keep_their_own_recipes():
    found = recipes()
    assert list(found) == ["simple_cnn", "resnet50_finetuned"]
    assert found["resnet50_finetuned"].head_epochs > 0 == found["simple_cnn"].head_epochs


def test_epochs_of_the_command_line_leave_one_for_the_rest():
    assert [(r.epochs, r.head_epochs) for r in recipes(epochs=2).values()] == [(2, 0), (2, 1)]
    assert recipes(epochs=1)["resnet50_finetuned"].head_epochs == 0


def test_the_sample_is_trained_in_a_few_small_steps_and_smoke_in_fewer():
    sample, smoke = recipes(data=None)["simple_cnn"], recipes(data=None, smoke=True)["simple_cnn"]
    assert smoke.epochs < sample.epochs < recipes()["simple_cnn"].epochs
    assert sample.data.batch_size == 32


def test_smoke_shortens_training_on_ones_own_images_too_and_leaves_their_batches():
    smoke = recipes(smoke=True)["resnet50_finetuned"]
    assert (smoke.epochs, smoke.head_epochs) == (2, 1)
    assert smoke.data.batch_size == recipes()["resnet50_finetuned"].data.batch_size
    assert recipes(smoke=True, epochs=3)["resnet50_finetuned"].epochs == 3


def test_fields_are_set_for_every_family():
    assert [r.seed for r in recipes(changes=["seed=7", "dropout = 0.1"]).values()] == [7, 7]
    assert recipes(changes=["dropout = 0.1"])["simple_cnn"].model.dropout == 0.1


@pytest.mark.parametrize("name", ["augmentation", "augmentation.name"])
def test_a_value_is_the_word_that_was_set_whatever_yaml_takes_it_for(name: str):
    assert [r.augmentation.name for r in recipes(changes=[f"{name}=off"]).values()] == ["off", "off"]
    for word in ("no", "on", "null"):
        with pytest.raises(UserError, match=f"--set: augmentation: Input should be 'off', .*, got '{word}'"):
            recipes(changes=[f"{name}={word}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": "simple_cnm"}, "unknown family 'simple_cnm'; did you mean simple_cnn"),
        ({"changes": ["epochs"]}, "--set 'epochs': write it as field=value"),
        ({"changes": ["family=simple_cnn"]}, "families are chosen with --families"),
        ({"changes": ["seed=-1"]}, "seed: .*greater than or equal to 0"),
        ({"changes": ["unfreeze_depth=2"], "families": "resnet50_frozen"}, "unfrozen is resnet50_finetuned"),
        ({"changes": ["epoch=3"]}, "unknown recipe field 'epoch'; did you mean epochs"),
        ({"changes": ["optimizer.dropout=3"]}, "--set: unknown recipe field 'optimizer.dropout'"),
        ({"changes": ["seed=1", "model.dropout=.1", "dropout=.2"]}, "--set dropout: given as .1 and as .2"),
        ({"epochs": 0}, "epochs: .*greater than or equal to 1"),
        ({"families": " , "}, "--families: name at least one"),
    ],
)
def test_a_mistake_names_the_remedy(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        recipes(**changes)


def test_a_job_ends_with_1_where_a_training_failed_and_says_where_the_report_is(monkeypatch, tmp_path: Path, capsys):
    made = {"good": {"accuracy": Interval(0.5, 0.4, 0.6)}, "failed": {}}
    rows = {name: Row(name, "model", "test", metrics=metrics) for name, metrics in made.items()}
    monkeypatch.setattr("ham_ray.cluster.connected", nullcontext)
    monkeypatch.setattr("ham_ray.report.summary.show", lambda result: print(len(result.rows), "rows"))
    for names, code in ((["good"], None), (["good", "failed"], 1)):
        result = Summary("data", True, tuple(rows[name] for name in names))
        monkeypatch.setattr(baselines, "run", lambda options, result=result: (result, "a/report.html"))
        with pytest.raises(SystemExit) if code else nullcontext() as end:
            run(Options(weights=["none"], out=str(tmp_path)))
        assert (end and end.value.code) == code
        assert capsys.readouterr().out == f"{len(names)} rows\nreport: a/report.html\n"


def left(folder: Path, recipe: Recipe, fingerprint: str = "f", time: str = "2026-01-01") -> None:
    """A run folder as a finished training leaves it."""
    identity = {"recipe": recipe.record(), "data": {"fingerprint": fingerprint, "size": 128}}
    storage.write_bytes(folder / "recipe.json", json.dumps(identity).encode())
    storage.write_bytes(folder / "environment.json", json.dumps({"starts": [{"time": time}]}).encode())


def test_finished_baselines_are_the_latest_of_the_same_images_and_recipe(tmp_path: Path, monkeypatch):
    chosen, frozen = baseline("simple_cnn"), baseline("resnet50_frozen")
    left(tmp_path / "a" / "simple_cnn", chosen, time="2026-01-02")
    left(tmp_path / "b" / "simple_cnn", chosen, time="2026-01-03")
    left(tmp_path / "c" / "simple_cnn", chosen.changed(epochs=2), time="2026-01-04")
    left(tmp_path / "d" / "simple_cnn", chosen, fingerprint="other", time="2026-01-05")
    left(tmp_path / "a" / "resnet50_frozen", frozen, time="2026-01-06")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(baselines, "read_run", lambda uri: None if "frozen" in uri else Run(None, None, {"uri": uri}))
    images = SimpleNamespace(fingerprint="f", size=128, card={"synthetic": False})
    found = baselines.finished(str(tmp_path), images, "float32")  # type: ignore[arg-type]
    assert {family: run.info["uri"] for family, run in found.runs.items()} == {"simple_cnn": f"{tmp_path}/b/simple_cnn"}
    assert found.passed_over == {
        "c/simple_cnn": f"epochs 2, a baseline has {chosen.epochs}",
        "d/simple_cnn": "other images: fingerprint other at 128 px",
        "a/resnet50_frozen": "not finished",
    }
