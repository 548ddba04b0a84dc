"""The durable study: resumed and extended from its database alone, without zombies, repeats or forgotten reasons."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from ham_ray.errors import UserError
from ham_ray.search.space import Space
from ham_ray.search.study import STOPPED, Study, make_sampler, open_study, startup_trials

pytestmark = pytest.mark.unit
FACTS = {"images": "abc at 128 px", "space": "01234567"}
SPACE = Space(
    family="resnet50_finetuned",
    scheduler={"name": "asha", "grace": 1, "reduction": 2},
    parameters={
        "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
        "unfreeze_depth": {"type": "int", "low": 0, "high": 5},
    },
    points=[{"learning_rate": 1e-3, "unfreeze_depth": 5}, {"unfreeze_depth": 0}],
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def opened(
    url: str,
    trials: int = 10,
    facts: dict = FACTS,
    other_ok: bool = False,
    space: Space = SPACE,
    details: dict | None = None,
) -> Study:
    return open_study("s", url, space, trials, facts, other_ok, details)


def objective(values: dict) -> float:
    return 0.8 - 0.1 * abs(values["unfreeze_depth"] - 4) - values["learning_rate"]


def complete(study: Study, number: int, score: float) -> None:
    study.report(number, 9, score)
    study.complete(number)


def finish(study: Study, count: int | None = None) -> list[dict]:
    """Run that many trials one after the other; all that are open where None. Returns their values."""
    asked = []
    while (count is None or len(asked) < count) and (ask := study.ask()):
        asked.append(ask.values)
        complete(study, ask.number, objective(ask.values))
    return asked


def test_prior_points_come_first_and_missing_values_are_drawn(url: str):
    first, second = finish(opened(url), 2)
    assert first == {"learning_rate": 1e-3, "unfreeze_depth": 5}
    assert second["unfreeze_depth"] == 0 and 1e-5 <= second["learning_rate"] <= 1e-2


def test_the_budget_counts_finished_trials_and_an_extension_adds_to_it(url: str):
    assert len(finish(opened(url, 6))) == 6
    assert opened(url, 6).ask() is None and opened(url, 6).open() == 0
    assert len(finish(opened(url, 9))) == 3
    assert opened(url, 9).finished() == 9
    assert len(opened(url, 9).table()) == 9


def test_points_are_queued_once(url: str):
    finish(opened(url, 4), 1)
    for _ in range(3):
        opened(url, 4)
    asked = finish(opened(url, 8))
    assert sum(values["unfreeze_depth"] == 5 and values["learning_rate"] == 1e-3 for values in asked) == 0
    assert len(optuna.load_study(study_name="s", storage=url).get_trials(states=[TrialState.WAITING])) == 0


def test_a_trial_cut_off_goes_on_under_its_number_before_any_new_one(url: str):
    killed = opened(url, 4)
    finish(killed, 1)
    running = [killed.ask(), killed.ask()]
    killed.report(running[0].number, 1, 0.3)
    again = opened(url, 4)
    assert [again.ask(), again.ask()] == running
    complete(again, running[0].number, 0.4)
    complete(again, running[1].number, 0.5)
    assert len(finish(again)) == 1
    states = [trial.state for trial in again.study.get_trials()]
    assert states == [TrialState.COMPLETE] * 4
    assert again.study.get_trials()[running[0].number].intermediate_values == {1: 0.3, 9: 0.4}


@pytest.mark.parametrize("drawn", [0, 1])
def test_a_kill_while_a_trial_is_drawn_leaves_no_trial_without_its_values(tmp_path: Path, drawn: int):
    url, spaces = f"sqlite:///{tmp_path / 'cut.db'}", SPACE.model_copy(update={"points": []})
    whole = finish(opened(f"sqlite:///{tmp_path / 'whole.db'}", 4, space=spaces), 1)[0]
    killed = opened(url, 4, space=spaces)
    killed._seed(0)
    trial = killed.study.ask()
    for name in [*spaces.parameters][:drawn]:
        spaces.parameters[name].suggest(trial, name)
    ask = opened(url, 4, space=spaces).ask()
    assert ask.number == 0 and ask.values.keys() == whole.keys()
    assert ask.values["learning_rate"] == whole["learning_rate"]
    assert opened(url, 4, space=spaces).study.get_trials()[0].params == ask.values


def test_a_kill_before_a_queued_point_is_drawn_does_not_lose_it(url: str):
    opened(url, 4).study.ask()
    assert opened(url, 4).ask().values == SPACE.points[0]


def test_each_trial_has_draws_of_its_own(url: str):
    points = [{"unfreeze_depth": 0}, {"unfreeze_depth": 1}]
    asked = finish(opened(url, 4, space=SPACE.model_copy(update={"points": points})), 3)
    assert len({values["learning_rate"] for values in asked}) == 3


def test_a_resumed_search_asks_for_what_an_uninterrupted_one_asks_for(tmp_path: Path):
    whole = finish(opened(f"sqlite:///{tmp_path / 'whole.db'}", 16))
    url = f"sqlite:///{tmp_path / 'cut.db'}"
    assert finish(opened(url, 16), 5) + finish(opened(url, 16), 6) + finish(opened(url, 16)) == whole
    other = SPACE.model_copy(update={"sampler": SPACE.sampler.model_copy(update={"seed": 1})})
    assert finish(opened(f"sqlite:///{tmp_path / 'other.db'}", 16, space=other)) != whole


def test_the_search_learns(tmp_path: Path):
    """After twenty trials the model's points are better than random ones, on average."""

    def last(name: str) -> float:
        sampler = SPACE.sampler.model_copy(update={"name": name})
        space = SPACE.model_copy(update={"sampler": sampler, "points": []})
        asked = finish(opened(f"sqlite:///{tmp_path / name}.db", 40, space=space))
        return sum(map(objective, asked[20:])) / 20

    assert last("tpe") > last("random") + 0.03


def test_a_small_budget_is_not_spent_at_random():
    assert [startup_trials(trials, 0) for trials in (4, 10, 24, 100)] == [2, 2, 6, 10]
    assert startup_trials(30, 9) == 9 and startup_trials(10, 9) == 5


def test_running_trials_count_as_bad_ones():
    assert make_sampler(SPACE, 30, 3)._constant_liar


def test_other_facts_are_refused_with_the_difference_or_continued_and_remembered(url: str, capsys):
    finish(opened(url, 2))
    other = {**FACTS, "images": "xyz at 64 px"}
    with pytest.raises(UserError, match="images: abc at 128 px there, xyz at 64 px now.*--mixed"):
        opened(url, 4, other)
    finish(opened(url, 4, other, other_ok=True))
    assert "not comparable" in capsys.readouterr().out
    study = optuna.load_study(study_name="s", storage=url)
    assert study.user_attrs["facts"] == other and "abc" in study.user_attrs["mixed"][0]
    opened(url, 4, other)


def test_stopped_trials_are_pruned_and_failed_ones_keep_their_reason(url: str):
    study = opened(url, 3)
    good, stopped, failed = (study.ask() for _ in range(3))
    assert not study.report(good.number, 1, 0.9)
    complete(study, good.number, 0.9)
    assert study.report(stopped.number, 1, 0.1)  # the worse half ends at the first rung
    study.prune(stopped.number)
    study.fail(failed.number, "loss is nan at epoch 1")
    table = study.table()
    assert table["state"].tolist() == ["complete", "pruned", "fail"]
    assert table["balanced_accuracy"].tolist()[:2] == [0.9, 0.1]
    assert table["reason"].tolist() == ["", "", "loss is nan at epoch 1"]
    assert study.ask() is None and study.failing_alike() is None


def test_a_trials_value_is_that_of_its_best_epoch(url: str):
    study = opened(url, 1)
    number = study.ask().number
    for epoch, score in enumerate((0.2, 0.7, 0.5), start=1):
        study.report(number, epoch, score)
    assert study.complete(number) == 0.7
    assert study.table()["balanced_accuracy"][number] == 0.7


def test_nobody_is_stopped_before_the_grace_or_without_a_scheduler(tmp_path: Path):
    for name, scheduler in (("grace", {"name": "asha", "grace": 3}), ("none", {"name": "none"})):
        space = Space(**{**SPACE.model_dump(), "scheduler": scheduler})
        study = opened(f"sqlite:///{tmp_path / name}.db", 3, space=space)
        for score in (0.9, 0.1):
            number = study.ask().number
            assert not any(study.report(number, epoch, score) for epoch in (1, 2))
            complete(study, number, score)


def test_an_epoch_told_twice_counts_once(url: str):
    study = opened(url)
    number = study.ask().number
    study.report(number, 1, 0.4)
    study.report(number, 1, 0.7)
    assert study.study.get_trials()[number].intermediate_values == {1: 0.4}


def fail(study: Study, *reasons: str) -> None:
    for reason in reasons:
        study.fail(study.ask().number, reason)


def test_when_all_fail_alike_the_search_ends(url: str):
    study = opened(url, 30)
    fail(study, "out of memory", "out of memory")
    assert study.failing_alike() is None
    fail(study, "out of memory")
    assert study.ask() is None and study.failing_alike() == "out of memory"


def test_reasons_that_differ_in_numbers_are_alike(url: str):
    study = opened(url, 30)
    for loss, step, rate in (("nan", 3, "1.2e+30"), ("inf", 41, "0.5"), ("nan", 7, "9e-05")):
        fail(study, f"loss is {loss} at epoch 1, step {step}, learning rate {rate}")
    assert study.failing_alike() == "loss is nan at epoch 1, step 7, learning rate 9e-05"


def test_a_search_that_ended_so_goes_on_when_it_is_started_again(url: str):
    fail(opened(url, 30), "out of memory", "out of memory", "out of memory")
    mended = opened(url, 30)
    assert mended.failing_alike() is None
    fail(mended, "disk full", "disk full", "disk full")
    assert mended.failing_alike() == "disk full"
    assert len(finish(opened(url, 8))) == 2


def test_different_reasons_do_not_end_it(url: str):
    study = opened(url, 30)
    fail(study, "nan", "nan", "out of memory")
    assert study.ask() is not None


def test_a_database_that_cannot_be_opened_is_told(tmp_path: Path):
    with pytest.raises(
        UserError,
        match="cannot use the study at sqlite:////.*unable to open.*folder is missing.*the same command goes on",
    ):
        opened(f"sqlite:///{tmp_path / 'no' / 'folder' / 'study.db'}")
    (tmp_path / "text.db").write_text("this is no database, though long enough to be looked at\n" * 50)
    with pytest.raises(UserError, match="cannot use the study.*not a database; it is damaged"):
        opened(f"sqlite:///{tmp_path / 'text.db'}")


def test_a_trial_the_scheduler_stopped_stays_stopped_after_a_kill(url: str):
    killed = opened(url, 3)
    good, stopped, cut_off = (killed.ask() for _ in range(3))
    killed.report(good.number, 1, 0.9)
    assert killed.report(stopped.number, 1, 0.1)
    killed.note(stopped.number, **{STOPPED: True})
    again = opened(url, 3)
    assert again.study.get_trials()[stopped.number].state == TrialState.PRUNED
    assert [again.ask(), again.ask()] == [good, cut_off] and again.ask() is None


def test_fields_that_differ_are_told_by_name(url: str):
    details = {"space": {"parameters": {"dropout": {"low": 0.0, "high": 0.5}}}}
    opened(url)  # by older code: digests alone
    opened(url, details=details)
    details["space"]["parameters"]["dropout"]["high"] = 0.6
    with pytest.raises(UserError, match=r"\(space: parameters.dropout.high 0.5 there, 0.6 now\)"):
        opened(url, facts={**FACTS, "space": "89abcdef"}, details=details)


def test_a_digest_of_which_nobody_knows_more_is_told_itself(url: str):
    opened(url)
    with pytest.raises(UserError, match=r"\(space: 01234567 there, 89abcdef now\)"):
        opened(url, facts={**FACTS, "space": "89abcdef"}, details={"space": {}})


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("learning_rate", {"type": "float", "low": 1e-5, "high": 1e-2}),
        ("unfreeze_depth", {"type": "choice", "choices": [0, 1]}),
    ],
)
def test_what_no_study_can_hold_is_refused_even_when_mixed(url: str, name: str, parameter: dict):
    finish(opened(url, 2))
    dump = SPACE.model_dump()
    space = Space(**{**dump, "points": [], "parameters": {**dump["parameters"], name: parameter}})
    other = {**FACTS, "space": "89abcdef"}
    with pytest.raises(UserError, match=f"--mixed: {name} was .*Distribution.* in trial 0 and is .*another --name"):
        opened(url, 4, other, other_ok=True, space=space)
    assert opened(url, 4).study.user_attrs["facts"] == FACTS
    assert len(opened(url, 4).study.get_trials()) == 2


def test_other_code_is_told_and_kept(url: str, capsys):
    for code in ("a", "a", "b"):
        opened(url).record_code(code)
    assert capsys.readouterr().out == "code: a at the last start, b now\n"
    assert opened(url).study.user_attrs["code"] == ["a", "b"]


def test_fewer_trials_asked_for_leave_none_running(url: str):
    killed = opened(url, 6)
    finish(killed, 3)
    begun = killed.ask()
    fewer = opened(url, 2)
    assert fewer.open() == 1 and fewer.ask() == begun and fewer.ask() is None
    complete(fewer, begun.number, 0.5)
    assert fewer.open() == 0


def test_trials_ranked_since_come_before_those_of_higher_value(url: str):
    study = opened(url, 4)
    for score in (0.5, 0.8, 0.7, 0.6):
        complete(study, study.ask().number, score)  # type: ignore[union-attr]
    assert [trial.number for trial in study.best(3)] == [1, 2, 3]
    assert [trial.number for trial in study.best(3, [3, 2])] == [3, 2, 1]
