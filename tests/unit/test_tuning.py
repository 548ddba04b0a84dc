"""The search job around its trials: what it refuses before they start, and what follows when they end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from searching import small_search

from ham_ray import cluster
from ham_ray.errors import UserError
from ham_ray.search import ownership
from ham_ray.search.space import Space
from ham_ray.search.study import Study, open_study
from ham_ray.training import activations
from ham_ray.workflows.steps import tuning
from ham_ray.workflows.steps.baselines import Finished
from ham_ray.workflows.tune import Options

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("cpus", "trials"), [([2], 1), ([8], 2), ([2, 2], 2), ([8, 2, 0], 3), ([0], 1), ([0.5], 1)])
def test_every_node_has_a_trial(cpus: list[float], trials: int):
    assert tuning._trials_at_once(cpus) == trials


SPACE = Space(
    family="simple_cnn",
    scheduler={"name": "none"},
    parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}},
)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return open_study("s", f"sqlite:///{tmp_path / 'study.db'}", SPACE, 4, {"images": "abc"})


@pytest.fixture
def search(study: Study, tmp_path: Path) -> SimpleNamespace:
    """A search of four trials, without what runs them."""
    return SimpleNamespace(
        name="s",
        place=str(tmp_path / "s"),
        url=f"sqlite:///{tmp_path / 'study.db'}",
        options=Options(trials=4, finalists=1),
        space=SPACE,
        resources=None,
        images=SimpleNamespace(dataset=SimpleNamespace(noise=None)),
        time_left=None,
        study=lambda ownership: study,
        shared=lambda: None,
        trainable=lambda shared: None,
    )


def test_an_interrupted_search_says_so_and_trains_no_finals(monkeypatch, study, search):
    def interrupted(*arguments) -> None:
        study.report(number := study.ask().number, 1, 0.5)
        study.complete(number)
        study.ask()

    monkeypatch.setattr(tuning, "_prepared", lambda options: search)
    monkeypatch.setattr(tuning.tuner, "run", interrupted)
    monkeypatch.setattr(tuning, "finals", lambda *arguments: pytest.fail("the test fold was opened"))
    with pytest.raises(UserError, match="'s' was interrupted: 1 of 4 trials finished; the same command goes on"):
        tuning.run(None)
    assert (Path(search.place) / "trials.csv").exists()


def test_checkpoints_of_finished_trials_go_even_where_nothing_is_left_to_run(monkeypatch, study, search):
    study.report(number := study.ask().number, 1, 0.5)
    study.complete(number)
    study.trials = 1
    checkpoints = Path(search.place) / "trial-0000" / "checkpoints"
    checkpoints.mkdir(parents=True)
    monkeypatch.setattr(tuning, "_prepared", lambda options: search)
    monkeypatch.setattr(tuning.search_report, "write", lambda *arguments: None)
    search.page = lambda *arguments: None
    search.options = Options(finalists=0)
    tuning.run(None)
    assert checkpoints.parent.exists() and not checkpoints.exists()


def test_a_second_search_of_the_study_in_another_folder_is_refused(monkeypatch, study, search, tmp_path):
    monkeypatch.setattr(ownership, "EVERY", 0.1)
    monkeypatch.setattr(tuning, "_prepared", lambda options: search)
    monkeypatch.setattr(tuning.tuner, "run", lambda *arguments: pytest.fail("a trial was run"))
    with (
        ownership.owned("s", search.url, "/another/folder"),
        pytest.raises(UserError, match="'s' is in use by process .* in /another/folder"),
    ):
        tuning.run(None)


def test_what_another_program_did_to_the_study_is_one_line(monkeypatch, study, search):
    def ended_elsewhere(*arguments) -> None:
        number = study.ask().number
        optuna.load_study(study_name="s", storage=search.url).tell(number, state=TrialState.FAIL)
        study.note(number, seconds=1.0)

    monkeypatch.setattr(tuning, "_prepared", lambda options: search)
    monkeypatch.setattr(tuning.tuner, "run", ended_elsewhere)
    with pytest.raises(UserError, match="study 's': UpdateFinishedTrialError.*the same command goes on"):
        tuning.run(None)


def test_where_all_fail_alike_the_remedy_is_named(monkeypatch, study, search):
    def failing(*arguments) -> None:
        for _ in range(3):
            study.fail(study.ask().number, "no space left")

    monkeypatch.setattr(tuning, "_prepared", lambda options: search)
    monkeypatch.setattr(tuning.tuner, "run", failing)
    with pytest.raises(UserError, match="same reason.*: no space left; once its cause is mended the same command"):
        tuning.run(None)


def options(folder: Path, **changes) -> Options:
    path = folder / "space.yaml"
    path.write_text(
        "family: simple_cnn\nrecipe: {epochs: 4}\nfinals: {epochs: 9, dropout: 0.2}\n"
        "parameters: {learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}}\n"
    )
    return small_search(folder, path, **{"finalists": 1, **changes})


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two CPUs, and images that need not be there."""
    monkeypatch.setattr(tuning, "alive_nodes", lambda: [cluster.Node("id", "10.0.0.1", 2.0, 0)])
    monkeypatch.setattr(tuning, "shares", lambda count: cluster.process_shares(count, [{"CPU": 2.0}]))
    monkeypatch.setattr(tuning, "cluster_resources", lambda workers, cpus: cluster.plan(workers, [2.0], 0, cpus))
    monkeypatch.setattr(tuning, "check_shared", lambda place: None)
    monkeypatch.setattr(tuning, "check_visible", lambda place, option: None)
    monkeypatch.setattr(tuning.choices, "images", lambda *given: None)
    monkeypatch.setattr(Options, "check_images", lambda *given: None)
    monkeypatch.setattr(tuning.choices, "weights", lambda *given: {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "--trials 0: at least 1"),
        ({"ensemble": 0}, "--ensemble 0: at least 1"),
        ({"ensemble": 2}, "--ensemble 2: more trials than --finalists 1 trains again"),
        ({"finalists": -1}, "--finalists -1: at least 0; 0 trains none again"),
        ({"seeds": 0}, "--seeds 0: at least 1; without finals: --finalists 0"),
        ({"max_concurrent": -1}, "--max-concurrent -1: at least 1"),
        ({"max_concurrent": 3}, "--max-concurrent 3: more than the cluster has CPUs for"),
        ({"max_failures": -1}, "--max-failures -1: at least 0"),
        ({"workers_per_trial": 0}, "--workers-per-trial 0: at least 1"),
        ({"cpus_per_worker": 5.0}, "1 worker\\(s\\) × 5 CPU do not fit"),
        ({"views": 9}, "--views 9: from 1"),
        ({"epochs": 0}, "--epochs 0: at least 1"),
    ],
)
def test_options_that_cannot_be_met_are_refused_before_anything_starts(two_cpus, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        tuning._prepared(options(tmp_path, **changes))


def test_no_finals_need_no_seeds(two_cpus, tmp_path):
    tuning._prepared(options(tmp_path, finalists=0, seeds=0))


def test_the_finals_are_as_long_as_the_space_says_unless_the_command_says_otherwise(two_cpus, tmp_path):
    own = tuning._prepared(options(tmp_path))
    assert (own.base.epochs, own.longer.epochs, own.longer.model.dropout) == (4, 9, 0.2)
    asked = tuning._prepared(options(tmp_path, epochs=25))
    assert (asked.base.epochs, asked.longer.epochs, asked.longer.model.dropout) == (25, 25, 0.2)


def a_table(size: int, folds: tuple[int, ...] = (0, 1)) -> SimpleNamespace:
    rows = pd.DataFrame({"image_id": ["a", "b"], "label": [0, 1], "fold": folds})
    return SimpleNamespace(size=size, rows=rows, fingerprint="f" * 20)


def test_finals_on_larger_images_have_a_folder_of_their_own_and_say_who_looked_before(
    two_cpus, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tuning.choices, "images", lambda *given: a_table(128))
    monkeypatch.setattr(tuning, "open_images", lambda place: a_table(192))
    monkeypatch.setattr(tuning.baselines, "finished", lambda *given: Finished({"simple_cnn": None}, {}))
    search = tuning._prepared(options(tmp_path, finals_data="large"))
    (tmp_path / "s" / "finals").mkdir(parents=True)
    assert search.earlier_finals() == ()  # killed before it named a winner
    assert search.ranked() == []
    (tmp_path / "s" / "finals" / "winner.json").write_text(json.dumps({"scores": {"7": 0.5, "12": 0.7}}))
    assert search.ranked() == [12, 7]
    assert search.images.size == 128 and search.final_setting().images.size == 192
    assert search.final_setting().out == str(tmp_path / "s" / "finals-192")
    assert search.earlier_finals() == ("finals",) and [*search.beside()] == ["baseline simple_cnn at 128 px"]
    same = tuning._prepared(options(tmp_path))
    assert same.final_setting().out == str(tmp_path / "s" / "finals") and same.earlier_finals() == ()
    assert same.ranked() == []  # a search that was extended ranks anew
    assert [*same.beside()] == ["baseline simple_cnn"]


def test_finals_on_images_dealt_otherwise_are_refused(two_cpus, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning.choices, "images", lambda *given: a_table(128))
    monkeypatch.setattr(tuning, "open_images", lambda place: a_table(192, folds=(1, 0)))
    with pytest.raises(UserError, match="--finals-data large: other images, labels or folds"):
        tuning._prepared(options(tmp_path, finals_data="large"))


def test_the_disk_that_activations_need_in_all_is_told_before_any_is_computed(
    two_cpus, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Two depths fit, of which one is there already; the depths' validation tables are others, the views share one."""
    space = Space(
        family="resnet50_finetuned",
        parameters={
            "unfreeze_depth": {"type": "int", "low": 0, "high": 2},
            "augmentation": {"type": "choice", "choices": ["off", "light"], "when": {"unfreeze_depth": [0]}},
        },
    )
    search = replace(tuning._prepared(options(tmp_path)), space=space, base=space.base())
    monkeypatch.setattr(activations, "_build", lambda *given: pytest.fail("built before all was told"))
    promises = []

    def planned(images, rows, recipe, weights, folder, budget, promised):
        promises.append(promised)
        depth, views = recipe.model.unfreeze_depth, 8 if recipe.augmentation.name == "light" else 1
        tables = {
            "training": activations._Table(Path(f"{depth}-{views}"), 64, views, np.arange(64)),
            "validation": activations._Table(Path(f"{depth}-validation"), 64, 1, np.arange(64)),
        }
        missing = {name: table.blocks if depth == 0 else [] for name, table in tables.items()}
        return activations.Planned(images, recipe, weights, tables, missing, 2**20, "bfloat16") if depth < 2 else None

    monkeypatch.setattr(activations, "planned", planned)
    found = search._planned({"training": pd.DataFrame(index=range(64)), "validation": pd.DataFrame(index=range(64))})
    assert len(found) == 3 and promises == [0, 2 * 64 * 2**20, 10 * 64 * 2**20, 10 * 64 * 2**20]
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith("activations: 0.75 GiB on disk in all, 0.62 GiB of it to be computed now")
    )
