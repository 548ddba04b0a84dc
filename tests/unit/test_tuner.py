"""What Ray Tune's trials tell the study, without Ray: every epoch, every end with its reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from ray import cloudpickle

from ham_ray.search import tuner
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
        told = tuner._Told(self.study, shared)
        self.asker, self.stopper = tuner._Asker(self.study, told), tuner._Stopper(self.study, told)

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


def test_what_ends_a_trial_without_scores_is_kept_as_its_reason(tune: Tune, tmp_path: Path):
    told = {"scores": [], "finished": False, "failed": "loss is nan", "seconds": 0.0}
    tune.start("diverged")
    assert tune.stopper.on_trial_result(None, SimpleNamespace(trial_id="diverged"), told) == tune.stopper.CONTINUE
    tune.asker.on_trial_complete("diverged", told)
    tune.start("died")
    error = SimpleNamespace(cause=MemoryError("no memory left\nfor 3 GiB"))
    (tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(error))
    trial: Any = SimpleNamespace(trial_id="died", pickled_error_file=str(tmp_path / "error.pkl"))
    tune.stopper.on_trial_error(None, trial)
    tune.asker.on_trial_complete("died", None, error=True)
    assert tune.states() == [TrialState.FAIL, TrialState.FAIL]
    assert tune.study.table()["reason"].tolist() == ["loss is nan", "MemoryError: no memory left"]
