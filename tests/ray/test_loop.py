"""The epoch loop in one process, on a network small enough to train in a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight

from ham_ray.errors import UserError
from ham_ray.models.network import Network
from ham_ray.recipe import Recipe, make_recipe
from ham_ray.training import loop
from ham_ray.training.callbacks import Callback
from ham_ray.training.checkpoints import Checkpoints
from ham_ray.training.input_pipeline import Shard
from ham_ray.training.sampler import Sampler
from ham_ray.training.schedule import Phase, learning_rate, phases
from ham_ray.training.step import PREDICT_BATCH, Replica, Trainer, predict

pytestmark = pytest.mark.model
ROWS, SIZE = 70, 8
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 7, ROWS).astype(np.int32)
PIXELS = (RANDOM.integers(0, 90, (ROWS, SIZE, SIZE, 3)) + 23 * LABELS[:, None, None, None]).astype(np.uint8)


def recipe(**changes: Any) -> Recipe:
    fields = {"family": "simple_cnn", "epochs": 4, "batch_size": 16, "learning_rate": 3e-3, "augmentation": "light"}
    return make_recipe(**{**fields, **changes})


def network() -> Network:
    """A convolution with BatchNorm, and a head."""
    keras.utils.set_random_seed(0)
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.BatchNormalization(momentum=0.5)(keras.layers.Conv2D(8, 3)(x))
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    inputs = keras.Input((8,))
    head = keras.Model(inputs, keras.layers.Dense(7)(inputs))
    nothing = keras.Model(images, keras.layers.Identity(dtype="float32")(images))
    body = keras.Model(images, features)
    return Network(nothing, body, head, full_model=body, trains_statistics=True)


COUNTS = np.array([3, 10, 20, 5, 10, 100, 2])  # of the classes, where weights are to differ


def task(recipe: Recipe) -> loop.WorkerData:
    sampler = Sampler(ROWS, recipe.data.batch_size, recipe.seed)

    def batches(epoch: int, first: int = 0):
        for places in sampler.order(epoch)[first:]:
            yield PIXELS[places], LABELS[places]

    part = Shard(PIXELS[:30], LABELS[:30])
    return loop.WorkerData(batches, sampler.steps, part, np.ones(7, int))


class Report(Callback):
    """Calls a function with each new row of HISTORY."""

    def __init__(self, report: Callable[[dict], None]) -> None:
        self.on_epoch = report  # type: ignore[method-assign]


def run(
    recipe: Recipe,
    folder: Path,
    report: Callable[[dict], None] = lambda row: None,
    net: Network | None = None,
    steps_a_call: int = 1,
):
    net = net or network()
    replica = Replica(tf.distribute.get_strategy())
    said: list[str] = []
    data = dataclasses.replace(task(recipe), steps_a_call=steps_a_call)
    progress = loop.train(recipe, net, data, replica, Checkpoints(str(folder)), said.append, [Report(report)])
    return progress, net, said


def losses(progress: loop.Progress) -> list[float]:
    return [row["train_loss"] for row in progress.history]


class Killed(Exception):
    pass


@pytest.mark.parametrize("changes", [{}, {"head_epochs": 2}, {"averaging": 0.9}], ids=str)
@pytest.mark.parametrize("after", [1, 2, 3])
def test_resumed_equals_uninterrupted(tmp_path: Path, after: int, changes: dict[str, Any]):
    chosen = recipe(**changes)
    whole, kept, _ = run(chosen, tmp_path / "whole")

    def kill(row: dict) -> None:
        if row["epoch"] == after:
            raise Killed

    with pytest.raises(Killed):
        run(chosen, tmp_path / "killed", kill)
    resumed, again, said = run(chosen, tmp_path / "killed")
    assert said == [f"going on after epoch {after}"]
    assert losses(resumed) == losses(whole)
    assert resumed.best_epoch == whole.best_epoch
    for a, b in zip(kept.learned_variables, again.learned_variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("changes", [{}, {"head_epochs": 1}], ids=str)
@pytest.mark.parametrize("after", [1, 5, 7])  # steps; an epoch has four
def test_it_goes_on_in_the_middle_of_a_long_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, changes: dict[str, Any]
):
    chosen = recipe(**changes)
    whole, kept, _ = run(chosen, tmp_path / "whole")
    monkeypatch.setattr(loop, "SAVED_EVERY", 0.0)  # each epoch is a long one
    step, done = Trainer.step, []

    def killed(self: Trainer, *arguments):
        if len(done) == after:
            raise Killed
        done.append(arguments)
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "step", killed)
        run(chosen, tmp_path / "killed")
    resumed, again, said = run(chosen, tmp_path / "killed")
    assert said == [f"going on after epoch {after // 4}, step {after % 4} of the next"]
    assert losses(resumed) == losses(whole) and resumed.losses == []
    for a, b in zip(kept.learned_variables, again.learned_variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("steps", [3, 256])
def test_many_steps_in_a_call_are_those_one_after_the_other(tmp_path: Path, steps: int):
    """With all that depends on the step: dropout, decay, learning rate with its warm-up, moving averages."""
    chosen = recipe(dropout=0.3, weight_decay=0.01, warmup_epochs=0.6, averaging=0.9, head_epochs=1)
    one, net, _ = run(chosen, tmp_path / "one")
    many, other, _ = run(chosen, tmp_path / "many", steps_a_call=steps)
    assert losses(many) == pytest.approx(losses(one), rel=1e-6)
    assert [row["learning_rate"] for row in many.history] == [row["learning_rate"] for row in one.history]
    for a, b in zip(net.learned_variables, other.learned_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_not_finite_is_named_by_its_step_within_a_call(tmp_path: Path):
    with pytest.raises(loop.NonFiniteLossError, match=r"loss is (nan|inf) at epoch 1, step [234], learning rate"):
        run(recipe(learning_rate=1e30, epochs=1), tmp_path, steps_a_call=4)


def test_a_finished_training_is_not_trained_again(tmp_path: Path):
    first, _, _ = run(recipe(), tmp_path)
    second, _, _ = run(recipe(), tmp_path, report=lambda row: pytest.fail("trained an epoch"))
    assert second.history == first.history


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path):
    run(recipe(), tmp_path)
    with pytest.raises(UserError, match="checkpoint is of another recipe"):
        run(recipe(epochs=5), tmp_path)


def keras_model(net: Network) -> keras.Model:
    """The test's network as one plain Keras model of logits."""
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    return keras.Model(images, net.head(net.body(images)))


def test_two_epochs_are_those_of_keras_fit(tmp_path: Path):
    """Three steps each, with class weights and a cosine, by `fit` on the same batches: it shares no code with the loop.

    The class weights are scikit-learn's, of the training labels.
    """
    learned, held_out = slice(0, 48), slice(48, ROWS)
    chosen = recipe(
        epochs=2,
        augmentation="off",
        dropout=0.0,
        label_smoothing=0.0,
        warmup_epochs=0,
        class_weight_scale=0.5,
        weight_decay=0.5,
    )
    labels = {"training": LABELS[learned], "validation": LABELS[held_out]}

    batches = [(PIXELS[start : start + 16], LABELS[start : start + 16]) for start in (0, 16, 32)]
    shards = [Shard(PIXELS[rows], LABELS[rows]) for rows in (learned, held_out)]
    ours = network()
    trainer_task = dataclasses.replace(
        loop.worker_data(chosen, labels, 7, None, lambda: tuple(shards)), batches=lambda epoch, first=0: iter(batches)
    )
    replica = Replica(tf.distribute.get_strategy())
    progress = loop.train(chosen, ours, trainer_task, replica, Checkpoints(str(tmp_path)), print)

    theirs = keras_model(network())
    decay = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(chosen.optimizer.learning_rate, 6),
        weight_decay=chosen.optimizer.weight_decay,
    )
    decay.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    theirs.compile(decay, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    present = np.unique(LABELS[learned])
    balanced = compute_class_weight("balanced", classes=present, y=LABELS[learned]) ** 0.5
    fitted = theirs.fit(
        PIXELS[learned],
        LABELS[learned],
        batch_size=16,
        epochs=2,
        shuffle=False,
        class_weight=dict(zip(present.tolist(), balanced.tolist(), strict=True)),
        validation_data=(PIXELS[held_out], LABELS[held_out]),
        verbose=0,
    ).history
    assert losses(progress) == pytest.approx(fitted["loss"], rel=1e-4)
    assert [row["validation_loss"] for row in progress.history] == pytest.approx(fitted["val_loss"], rel=1e-4)
    last = progress.history[-1]
    called = theirs.predict(PIXELS[held_out], verbose=0).argmax(axis=1)
    truth = LABELS[held_out]
    assert last["validation_macro_f1"] == pytest.approx(
        f1_score(truth, called, labels=range(7), average="macro", zero_division=0)
    )
    assert last["validation_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, called))


def test_a_task_counts_the_training_labels_and_no_others():
    labels = {"training": np.repeat(np.arange(7), range(2, 16, 2)), "validation": np.repeat(np.arange(7), 7)}
    made = loop.worker_data(recipe(), labels, 7, None, lambda: (Shard(PIXELS, LABELS), None))
    assert made.counts.tolist() == [2, 4, 6, 8, 10, 12, 14]
    assert made.steps == 56 // 16


def test_it_learns(tmp_path: Path):
    progress, _, _ = run(recipe(epochs=30, dropout=0.0, warmup_epochs=0, learning_rate=3e-2), tmp_path)
    assert progress.history[-1]["train_loss"] < 0.6 * progress.history[0]["train_loss"]
    assert progress.best_score > 0.5


def test_the_head_phase_leaves_the_body_alone(tmp_path: Path):
    net, bodies = network(), []
    bodies.append(net.body.get_weights())
    run(recipe(head_epochs=2), tmp_path, lambda row: bodies.append(net.body.get_weights()), net)
    for untouched in bodies[1:3]:
        assert all(np.array_equal(a, b) for a, b in zip(bodies[0], untouched, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(bodies[0], bodies[3], strict=True) if a.size > 8)


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Validation scores of the coming epochs, whatever is predicted."""
    coming = iter(scores)
    monkeypatch.setattr(loop.metrics, "macro_f1", lambda truth, p: next(coming))


def test_the_best_epoch_is_kept_and_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, [0.2, 0.6, 0.4, 0.6, 0.5])
    net = network()
    weights = {0: net.head.get_weights()}
    progress, _, _ = run(
        recipe(epochs=5), tmp_path, lambda row: weights.update({row["epoch"]: net.head.get_weights()}), net
    )
    assert (progress.best_epoch, progress.epoch, progress.best_score) == (2, 5, 0.6)
    assert [row["best"] for row in progress.history] == [True, True, False, False, False]
    for kept, best, last in zip(net.head.get_weights(), weights[2], weights[5], strict=True):
        np.testing.assert_array_equal(kept, best)
        assert not np.array_equal(kept, last)


def test_the_best_epoch_of_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, [0.2, 0.6, 0.4])
    weights = {}

    def interrupt(row: dict) -> None:
        weights[row["epoch"]] = net.head.get_weights()
        if row["epoch"] == 3:
            raise Killed

    net = network()
    with pytest.raises(Killed):
        run(recipe(epochs=5), tmp_path, interrupt, net)
    scripted(monkeypatch, [0.5, 0.1])
    progress, again, _ = run(recipe(epochs=5), tmp_path)
    assert (progress.best_epoch, progress.epoch) == (2, 5)
    for kept, best in zip(again.head.get_weights(), weights[2], strict=True):
        np.testing.assert_array_equal(kept, best)


def test_without_validation_the_last_epoch_is_kept_and_training_is_the_same(tmp_path: Path):
    chosen = recipe(averaging=0.9, validation_fold=None)
    net = network()
    alone = dataclasses.replace(task(chosen), validation=None)
    replica, kept = Replica(tf.distribute.get_strategy()), Checkpoints(str(tmp_path / "alone"))
    progress = loop.train(chosen, net, alone, replica, kept, lambda text: None)
    assert [row["best"] for row in progress.history] == [True] * 4 and progress.best_epoch == 4
    assert not any(name.startswith("validation") for row in progress.history for name in row)
    validated, *_ = run(recipe(averaging=0.9), tmp_path / "validated")
    assert losses(progress) == losses(validated)
    last = kept.latest(lambda text: None)
    assert last is not None
    best = [last.arrays[name] for name in sorted(last.arrays) if name.startswith("best-")]
    for variable, value in zip(net.learned_variables, best, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_early_stopping_waits_for_patience(tmp_path: Path):
    # a learning rate that changes nothing: the first epoch stays the best
    progress, _, _ = run(recipe(epochs=9, learning_rate=1e-12, weight_decay=0.0, patience=3), tmp_path)
    stale = progress.epoch - progress.best_epoch
    assert progress.epoch < 9 and stale == 3


def test_patience_begins_after_the_epochs_of_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2, 0.1])
    progress, _, _ = run(recipe(epochs=5, head_epochs=2, patience=2), tmp_path)
    assert (progress.best_epoch, progress.epoch) == (1, 4)


def test_selection_by_balanced_accuracy(tmp_path: Path):
    progress, _, _ = run(recipe(select_by="balanced_accuracy"), tmp_path)
    assert progress.best_score == max(row["validation_balanced_accuracy"] for row in progress.history)


def test_a_loss_that_is_not_finite_stops_with_place_and_rate(tmp_path: Path):
    with pytest.raises(
        loop.NonFiniteLossError, match=r"loss is (nan|inf) at epoch \d, step \d, learning rate 9.62e\+29"
    ):
        run(recipe(learning_rate=1e30, warmup_epochs=0), tmp_path)


class Recorder(Callback):
    """Notes what it is called with; leaves after the second epoch where it may."""

    def __init__(self, stop: bool = False) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.stop = stop

    def _note(self, name: str, history: list[dict[str, Any]]) -> None:
        self.calls.append((name, [row["epoch"] for row in history]))

    def on_start(self, history: list[dict[str, Any]]) -> None:
        self._note("start", history)

    def on_epoch(self, row: dict[str, Any]) -> None:
        self._note("epoch", [row])

    def on_end(self, history: list[dict[str, Any]]) -> None:
        self._note("end", history)

    def may_go_on(self, history: list[dict[str, Any]]) -> bool:
        self._note("ask", history)
        return not self.stop or len(history) < 2


def watched(folder: Path, *callbacks: Callback) -> loop.Progress:
    replica = Replica(tf.distribute.get_strategy())
    return loop.train(recipe(), network(), task(recipe()), replica, Checkpoints(str(folder)), print, callbacks)


def test_callbacks_hear_of_each_epoch_once_also_after_an_interruption(tmp_path: Path):
    def kill(row: dict) -> None:
        if row["epoch"] == 3:
            raise Killed

    before, after = Recorder(), Recorder()
    with pytest.raises(Killed):
        watched(tmp_path, before, Report(kill))
    watched(tmp_path, after)
    assert [call for call in before.calls if call[0] != "ask"] == [("start", []), *(("epoch", [n]) for n in (1, 2, 3))]
    told = [call for call in after.calls if call[0] != "ask"]
    assert told == [("start", [1, 2, 3]), ("epoch", [4]), ("end", [1, 2, 3, 4])]


def test_one_callback_stops_a_training_and_all_are_asked(tmp_path: Path):
    stopping, other = Recorder(stop=True), Recorder()
    assert watched(tmp_path, stopping, other).stopped
    asked = [("ask", []), ("ask", [1]), ("ask", [1, 2])]
    for callback in (stopping, other):
        assert [call for call in callback.calls if call[0] == "ask"] == asked
        assert "end" not in dict(callback.calls)
    again = Recorder(stop=True)
    assert watched(tmp_path, again).stopped  # asked before an epoch is trained
    assert again.calls == [("start", [1, 2]), ("ask", [1, 2])]


def test_workers_that_disagree_are_found():
    class Other(Replica):
        def gather(self, local: np.ndarray) -> np.ndarray:
            return np.concatenate([local, local * 1.01])

    with pytest.raises(loop.WorkersDisagreeError, match="the workers disagree on"):
        loop._check_agreement(network(), Other(tf.distribute.get_strategy()))


@pytest.mark.parametrize("behind", [[1, 0], [0, 1]], ids=["epochs", "steps"])
def test_workers_at_different_epochs_or_steps_are_refused(tmp_path: Path, behind: list[int]):
    class Behind(Replica):
        def gather(self, local: np.ndarray) -> np.ndarray:
            return np.concatenate([local, local - [behind]]) if local.shape == (1, 2) else local

    task = loop.WorkerData(lambda epoch, first=0: iter([]), 4, Shard(PIXELS[:30], LABELS[:30]), np.ones(7, int))
    replica, folder = Behind(tf.distribute.get_strategy()), Checkpoints(str(tmp_path))
    with pytest.raises(loop.WorkersDisagreeError, match="different checkpoints: is --out"):
        loop.train(recipe(), network(), task, replica, folder, lambda line: None)


def test_padding_never_reaches_the_predictions():
    def forward(batch: np.ndarray) -> tf.Tensor:
        assert len(batch) == PREDICT_BATCH
        return tf.reshape(tf.cast(batch, tf.float32), [len(batch), -1])[:, :7]

    many = np.concatenate([PIXELS] * 4)  # 280 images: two whole batches and a padded one
    np.testing.assert_array_equal(predict(forward, many), many.reshape(280, -1)[:, :7])


def test_the_learning_rate_by_hand():
    rates = [learning_rate(1.0, step, warmup=2, total=6) for step in range(6)]
    cosine = [0.5 * (1 + np.cos(np.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([1 / 3, 2 / 3, *cosine])
    assert learning_rate(1.0, 0, warmup=0, total=10) == 1


def test_phases_of_a_recipe():
    assert phases(recipe()) == [Phase("all", 0, 4, 3e-3)]
    with_head = recipe(head_epochs=1, head_learning_rate=1e-2)
    assert phases(with_head) == [Phase("head", 0, 1, 1e-2), Phase("all", 1, 3, 3e-3)]


def test_each_epoch_augments_anew(tmp_path: Path):
    """The same batch twice, by weights that do not move: what differs are the random numbers of its step."""
    chosen = recipe(epochs=2, learning_rate=1e-12, weight_decay=0.0, augmentation="strong", dropout=0.0)
    same = dataclasses.replace(task(chosen), batches=lambda epoch, first=0: iter([(PIXELS[:16], LABELS[:16])]), steps=1)
    replica, kept = Replica(tf.distribute.get_strategy()), Checkpoints(str(tmp_path))
    first, second = losses(loop.train(chosen, network(), same, replica, kept, print))
    assert abs(first - second) > 1e-4


def test_dropout_keeps_the_mean_of_the_features():
    """4,096 features of 1 whose mean is the logit of class 0: the loss of that class is log(1 + 6 / e)."""
    features = keras.Input((4096,))
    kernel = np.zeros((4096, 7), np.float32)
    kernel[:, 0] = 1 / 4096
    head = keras.Model(
        features, keras.layers.Dense(7, kernel_initializer=keras.initializers.Constant(kernel))(features)
    )
    nothing = keras.Model(features, keras.layers.Identity()(features))
    net = Network(nothing, nothing, head, full_model=nothing, trains_statistics=False)
    chosen = recipe(dropout=0.5, augmentation="off", label_smoothing=0.0)
    trainer = Trainer(chosen, net, Replica(tf.distribute.get_strategy()), np.ones(7, int), cached=True)
    trainer.enter(phases(chosen)[0])
    loss, _ = trainer.step(np.ones((16, 4096), np.float32), np.zeros(16, np.int32), 0).numpy()
    assert loss == pytest.approx(np.log1p(6 / np.e), rel=0.01)


def test_a_seed_changes_the_order_of_training(tmp_path: Path):
    a, b = (run(recipe(seed=seed), tmp_path / str(seed))[0] for seed in (0, 1))
    assert losses(a) != losses(b)
    assert dataclasses.asdict(a)["epoch"] == 4


def test_a_trainer_used_again_trains_as_a_fresh_one(tmp_path: Path):
    """Another learning rate, dropout, decay, smoothing and class weights, with the steps compiled for the first."""
    changes = {"learning_rate": 1e-2, "dropout": 0.1, "weight_decay": 0.3, "label_smoothing": 0.2, "head_epochs": 1}
    other, counts = recipe(**changes, class_weight_scale=0.7), np.arange(3, 10)
    fresh = Trainer(other, network(), Replica(tf.distribute.get_strategy()), counts)
    used = Trainer(recipe(), network(), Replica(tf.distribute.get_strategy()), np.ones(7, int))
    trained(used, recipe(), tmp_path / "before")
    used.restart(other, counts)
    assert losses(trained(used, other, tmp_path / "used")) == losses(trained(fresh, other, tmp_path / "fresh"))


@pytest.mark.parametrize("knob", ["dropout", "weight_decay", "label_smoothing", "learning_rate", "class_weight_scale"])
def test_each_argument_of_a_compiled_step_matters(tmp_path: Path, knob: str):
    trainer = Trainer(recipe(), network(), Replica(tf.distribute.get_strategy()), COUNTS)
    before = losses(trained(trainer, recipe(), tmp_path / "before"))
    other = recipe(**{knob: 0.4 if knob != "learning_rate" else 0.1})
    trainer.restart(other, COUNTS)
    assert losses(trained(trainer, other, tmp_path / "after"))[-1] != before[-1]


def test_validation_sees_the_average_of_the_weights_and_training_does_not(tmp_path: Path):
    chosen = recipe(averaging=0.2, epochs=1)
    trainer = Trainer(chosen, network(), Replica(tf.distribute.get_strategy()), np.ones(7, int))
    trainer.enter(phases(chosen)[0])
    trainer.optimizer.learning_rate = 3e-3  # which the epoch loop sets; without it nothing would move
    average: list[np.ndarray] = []
    for step, (inputs, labels) in enumerate(task(chosen).batches(0)):
        trainer.step(inputs, labels, step)
        current = [variable.numpy() for variable in trainer.variables]
        decay = [0.0, 2 / 11, 0.2, 0.2][step]  # min(averaging, (1 + step) / (10 + step)), from the first weights on
        average = [decay * a + (1 - decay) * c for a, c in zip(average or current, current, strict=True)]
    assert step == 3
    with trainer.averaged():
        for variable, expected in zip(trainer.variables, average, strict=True):
            np.testing.assert_allclose(variable, expected, rtol=1e-5, atol=1e-7)
    for variable, expected in zip(trainer.variables, current, strict=True):
        np.testing.assert_array_equal(variable, expected)
    assert not any(np.allclose(a, c, rtol=1e-4) for a, c in zip(average, current, strict=True))


def test_averaging_changes_what_is_kept_and_not_how_it_is_trained(tmp_path: Path):
    (plain, _, _), (averaged, _, _) = (run(recipe(averaging=a), tmp_path / str(a)) for a in (0.0, 0.9))
    assert losses(averaged) == losses(plain)
    assert averaged.history[-1]["validation_loss"] != plain.history[-1]["validation_loss"]


def trained(trainer: Trainer, recipe: Recipe, folder: Path) -> loop.Progress:
    training = loop.Training(trainer, task(recipe), Checkpoints(str(folder)), print)
    while not training.finished:
        training.run_epoch()
    return training.progress


def test_the_unweighted_loss_is_the_cross_entropy_that_validation_has():
    """Of the same logits by hand: class weights and smoothing are in the first loss alone, which is what is learned."""
    chosen = recipe(augmentation="off", dropout=0.0, label_smoothing=0.2, class_weight_scale=1.0)
    weights = COUNTS.sum() / (7 * COUNTS)
    trainer = Trainer(chosen, network(), Replica(tf.distribute.get_strategy()), COUNTS)
    trainer.enter(phases(chosen)[-1])
    inputs, labels = next(iter(task(chosen).batches(0)))
    logits = trainer.network.head(trainer.network.body(inputs, training=True)).numpy().astype(float)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    plain = -logs[np.arange(16), labels]
    smoothed = -(0.8 * logs[np.arange(16), labels] + 0.2 * logs.mean(axis=1)) * weights[labels]
    np.testing.assert_allclose(trainer.step(inputs, labels, 0).numpy(), [smoothed.mean(), plain.mean()], rtol=1e-5)


def test_an_epoch_has_both_losses(tmp_path: Path):
    progress, _, _ = run(recipe(epochs=1, label_smoothing=0.0), tmp_path)
    (row,) = progress.history
    assert row["train_loss_unweighted"] == pytest.approx(row["train_loss"], rel=1e-6)  # all class weights are 1
