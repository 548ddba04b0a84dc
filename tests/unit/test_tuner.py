"""What Ray Tune's trials tell the study, without Ray: every epoch, every end with its reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.exceptions import OutOfMemoryError

from ham_ray.errors import UserError
from ham_ray.recipe import baseline
from ham_ray.search import trial, tuner
from ham_ray.search.controller import LostProcessError, reason
from ham_ray.search.database import StudyError
from ham_ray.search.space import Space
from ham_ray.search.study import Study, open_study

pytestmark = pytest.mark.unit
SPACE = Space(
    family="simple_cnn",
    scheduler={"name": "asha", "grace": 2, "reduction": 2},
    parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}},
)


class Tune:
    """The hooks that Ray Tune calls, on a study of some trials in a folder."""

    def __init__(self, folder: Path, trials: int = 9) -> None:
        self.study: Study = open_study("s", f"sqlite:///{folder / 'study.db'}", SPACE, trials, {})
        base = SimpleNamespace(epochs=4)
        shared: Any = SimpleNamespace(base=base, folder=lambda number: str(folder / f"trial-{number}"))
        told = tuner.TrialReporter(self.study, shared)
        self.asker, self.stopper = tuner._Asker(told), tuner._Stopper(told)

    def start(self, name: str) -> int:
        return self.asker.suggest(name)["trial"]

    def tell(self, name: str, scores: list[float], finished: bool = False) -> None:
        """A result with the scores of the epochs so far."""
        result = {"scores": [*enumerate(scores, 1)], "finished": finished, "failed": "", "seconds": 1.0 * len(scores)}
        trial: Any = SimpleNamespace(trial_id=name)
        if finished or self.stopper.on_trial_result(None, trial, result) == self.stopper.STOP:
            self.asker.on_trial_complete(name, result)

    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.study.study.get_trials()]


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    return Tune(tmp_path)


def finish(tune: Tune, name: str, scores: list[float]) -> None:
    tune.start(name)
    for count in range(1, len(scores)):
        tune.tell(name, scores[:count])
    tune.tell(name, scores, finished=True)


def test_a_trial_is_stopped_for_the_epoch_at_which_it_should_have_been(tune: Tune):
    """After a kill two epochs may be new at once: the first of them decides, once."""
    finish(tune, "good", [0.5, 0.6, 0.7, 0.8])
    tune.start("bad")
    tune.tell("bad", [0.1])
    tune.tell("bad", [0.1, 0.1, 0.2])
    assert tune.states() == [TrialState.COMPLETE, TrialState.PRUNED]
    assert tune.study.table()["seconds"].tolist() == [4.0, 3.0]


def test_nor_does_it_complete_where_the_new_epochs_were_its_last(tune: Tune):
    finish(tune, "good", [0.5, 0.6, 0.7, 0.8])
    tune.start("bad")
    tune.tell("bad", [0.1, 0.1, 0.2, 0.2], finished=True)
    assert tune.states() == [TrialState.COMPLETE, TrialState.PRUNED]


@pytest.mark.parametrize(("objective", "expected"), [("macro_f1", 0.1), ("balanced_accuracy", 0.4)])
def test_a_trial_is_scored_by_the_objective_of_its_search(objective: str, expected: float):
    row = {"epoch": 3, "validation_macro_f1": 0.1, "validation_balanced_accuracy": 0.4, "validation_accuracy": 0.9}
    assert trial.scores([row], baseline("simple_cnn").changed(select_by=objective)) == [(3, expected)]


def test_the_last_epoch_stops_nothing(tune: Tune):
    finish(tune, "good", [0.5, 0.6, 0.7, 0.8])
    finish(tune, "second", [0.5, 0.6, 0.7, 0.1])
    assert tune.states() == [TrialState.COMPLETE, TrialState.COMPLETE]


def test_a_kill_after_the_schedulers_word_does_not_unsay_it(tune: Tune, tmp_path: Path, monkeypatch):
    finish(tune, "good", [0.5, 0.6, 0.7, 0.8])
    tune.start("bad")
    monkeypatch.setattr(tune.asker, "on_trial_complete", lambda *arguments: None)
    tune.tell("bad", [0.1, 0.1])
    assert tune.states() == [TrialState.COMPLETE, TrialState.RUNNING]
    again = Tune(tmp_path, trials=2)
    assert again.states() == [TrialState.COMPLETE, TrialState.PRUNED] and not again.study.open()
    assert again.study.table()["seconds"].tolist() == [4.0, 2.0]


def test_what_ends_a_trial_without_scores_is_kept_as_its_reason(tune: Tune):
    told = {"scores": [], "finished": False, "failed": "loss is nan", "seconds": 0.0}
    tune.start("diverged")
    assert tune.stopper.on_trial_result(None, SimpleNamespace(trial_id="diverged"), told) == tune.stopper.CONTINUE
    tune.asker.on_trial_complete("diverged", told)
    tune.start("died")
    controller: Any = SimpleNamespace(failure=SimpleNamespace(cause=MemoryError("no memory left\nfor 3 GiB")))
    trial: Any = SimpleNamespace(trial_id="died")
    tune.stopper.on_trial_error(controller, trial)
    tune.asker.on_trial_complete("died", None, error=True)
    assert tune.states() == [TrialState.FAIL, TrialState.FAIL]
    assert tune.study.table()["reason"].tolist() == ["loss is nan", "MemoryError: no memory left"]


class FailingTuner:
    """Tune that runs what it asks for in the way of the test, and then ends as `ends` say, one after the other."""

    ends: list[Exception | None]
    asked: list[list[int]]

    def __init__(self, trainable, tune_config, run_config) -> None:
        self.asker, self.stopper = tune_config.search_alg, tune_config.scheduler

    def fit(self) -> None:
        self.asked.append([self.asker.suggest(str(place))["trial"] for place in range(2)])
        if (error := self.ends.pop(0)) is not None:
            raise error
        for place in range(2):
            self.asker.on_trial_complete(
                str(place), {"scores": [(1, 0.5)], "finished": True, "failed": "", "seconds": 1}
            )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[FailingTuner]:
    monkeypatch.setattr(tuner.tune, "Tuner", FailingTuner)
    monkeypatch.setattr(tuner.ray, "is_initialized", lambda: True)
    FailingTuner.asked = []
    return FailingTuner


def run(tune: Tune, folder: Path, max_failures: int) -> None:
    base = SimpleNamespace(epochs=4)
    shared: Any = SimpleNamespace(base=base, folder=lambda number: str(folder / f"trial-{number}"), place=str(folder))
    tuner.run(tune.study, shared, tuner.TrialResources(2, 1.0, 0.0, max_failures), tuner.tune.Trainable)


def test_what_tune_stumbles_over_costs_its_trials_a_failure_and_the_search_goes_on(failing, tmp_path: Path, capsys):
    tune = Tune(tmp_path, trials=2)
    failing.ends = [RuntimeError("lost"), RuntimeError("lost again"), None]
    run(tune, tmp_path, max_failures=2)
    assert failing.asked == [[0, 1], [0, 1], [0, 1]]
    assert tune.states() == [TrialState.COMPLETE] * 2
    assert "trial 1: RuntimeError: lost again; restart 2 of at most 2" in capsys.readouterr().out


def test_nor_more_failures_than_are_allowed(failing, tmp_path: Path):
    tune = Tune(tmp_path, trials=4)
    failing.ends = [RuntimeError("lost"), RuntimeError("lost again"), None]
    run(tune, tmp_path, max_failures=1)
    assert failing.asked == [[0, 1], [0, 1], [2, 3]]
    assert tune.states() == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 2
    assert tune.study.table()["reason"].tolist() == ["RuntimeError: lost again"] * 2 + [""] * 2


def test_tune_that_ends_before_any_trial_is_not_started_again(failing, tmp_path: Path, monkeypatch):
    def no_trial(self) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(FailingTuner, "fit", no_trial)
    with pytest.raises(UserError, match="Ray Tune ended: OSError: no space left on device; the same command goes on"):
        run(Tune(tmp_path), tmp_path, max_failures=9)


def test_an_error_of_the_study_ends_the_search_as_it_is(failing, tmp_path: Path, monkeypatch):
    """Tune wraps what our hooks raise, or takes it for a failure of the trial."""
    tune = Tune(tmp_path, trials=2)
    failing.ends = [RuntimeError("Tune wraps it")]
    monkeypatch.setattr(tune.study, "ask", lambda: (_ for _ in ()).throw(StudyError("database is locked")))
    with pytest.raises(StudyError, match="database is locked"):
        run(tune, tmp_path, max_failures=9)


def test_restarts_that_an_earlier_run_of_tune_used_up_are_not_allowed_again(tune: Tune):
    told = tune.stopper.reporter
    told.max_failures = 3
    tune.start("a")
    told.failed(0, RuntimeError("lost"))
    told.begin()
    told.study.interrupted(0)
    tune.start("b")
    trial: Any = SimpleNamespace(trial_id="b", max_failures=3)
    tune.stopper.on_trial_add(None, trial)
    assert trial.max_failures == 2


def test_folders_that_a_killed_start_left_are_removed_and_nothing_else(tmp_path: Path):
    left = ["ray-17", "trial-0000/ray-18"]
    kept = ["trial-0000/checkpoints", "finals/ray-5", "rays"]
    for name in (*left, *kept):
        (tmp_path / name).mkdir(parents=True)
    tuner.remove_leftovers(str(tmp_path))
    assert [name for name in (*left, *kept) if (tmp_path / name).exists()] == kept


def test_the_memory_monitors_reason_is_short_and_has_the_memory():
    told = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: f) was "
        "7.44GB used / 23.54GB limit (0.316066) OOM kill reason: Memory usage 7979315200B exceeded threshold of\nmore"
    )
    short = (
        "OutOfMemoryError: 1 worker(s) were killed due to the node running low on memory (7.44GB used / 23.54GB limit)"
    )
    assert reason(OutOfMemoryError(told)) == reason(LostProcessError(short)) == short


def test_of_an_error_that_is_a_traceback_its_last_line_is_the_reason():
    wrapped = 'Traceback (most recent call last):\n  File "x.py", line 1, in y\nOSError: no space left on device\n'
    assert reason(RuntimeError(wrapped)) == "OSError: no space left on device"
