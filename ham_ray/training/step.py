"""The training step and prediction, compiled, for one replica and for many.

One worker runs them under TensorFlow's default strategy, several under MultiWorkerMirroredStrategy: the step and the
random numbers are the same, so the losses are too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ham_ray.models.network import Network
from ham_ray.recipe import Recipe
from ham_ray.training.augment import DRAWS, augment, draw
from ham_ray.training.input_pipeline import Inputs
from ham_ray.training.objectives import OBJECTIVES
from ham_ray.training.optimizer import StagedAdamW
from ham_ray.training.schedule import Phase

PREDICT_BATCH = 128


@dataclass(frozen=True)
class Replica:
    """This worker's rank among all, and the strategy that joins them."""

    strategy: tf.distribute.Strategy
    rank: int = 0
    workers: int = 1

    def gather(self, local: np.ndarray) -> np.ndarray:
        """Join the arrays of all workers along the first axis, in the order of ranks."""
        return self.strategy.gather(tf.constant(local), axis=0).numpy() if self.workers > 1 else local


# Of a step, of the learning-rate curve or of the epoch loop: another value needs no other graph.
_ARGUMENTS = frozenset(
    [
        "learning_rate",
        "head_learning_rate",
        "warmup_epochs",
        "epochs",
        "head_epochs",
        "weight_decay",
        "label_smoothing",
        "dropout",
        "class_weight_scale",
        "select_by",
        "patience",
    ]
)


def compile_key(recipe: Recipe) -> str:
    """Name the compiled steps of a recipe: recipes of equal key can use the same ones, by `Trainer.restart`."""
    return json.dumps({name: value for name, value in recipe.flat().items() if name not in _ARGUMENTS})


class Knobs(NamedTuple):
    """What a recipe may change without a step being compiled anew; `_ARGUMENTS` names the fields."""

    loss: dict[str, tf.Tensor]  # the objective's constants
    dropout: tf.Tensor
    weight_decay: tf.Tensor


@dataclass(frozen=True)
class _Compiled:
    """A phase's variables with their optimizer and compiled step."""

    variables: list[keras.Variable]
    optimizer: keras.Optimizer
    step: Callable[..., tf.Tensor]
    steps: Callable[..., tf.Tensor]


class Trainer:
    """A network with its optimizers and compiled steps, on one replica of a strategy.

    The steps take images, or with `cached` what the network's prefix gave for them, already augmented. `counts` are the
    training images of each class, int[K].
    """

    def __init__(self, recipe: Recipe, network: Network, replica: Replica, counts: np.ndarray, cached: bool = False):
        self.network, self.replica, self.cached = network, replica, cached
        self.forward = tf.function(self._forward, autograph=False)  # which would rewrite Keras's code: half the tracing
        self._initial = [variable.numpy() for variable in network.learned_variables]
        self._compiled: dict[str, _Compiled] = {}
        self._start(recipe, counts)

    def restart(self, recipe: Recipe, counts: np.ndarray) -> None:
        """Begin another training of the same shape from the same initial weights, with the steps compiled before.

        Raises:
            ValueError: the recipe needs other steps, by `compile_key`.
        """
        if compile_key(recipe) != compile_key(self.recipe):
            raise ValueError(f"other steps: {compile_key(self.recipe)}, not {compile_key(recipe)}")
        for variable, value in zip(self.network.learned_variables, self._initial, strict=True):
            variable.assign(value)
        self._start(recipe, counts)

    def _start(self, recipe: Recipe, counts: np.ndarray) -> None:
        self.recipe = recipe
        self.phase: Phase | None = None
        self._objective = OBJECTIVES[recipe.loss.name]
        constants = self._objective.constants(recipe.loss, counts)
        numbers = recipe.model.dropout, recipe.optimizer.weight_decay
        self._knobs = Knobs(
            {name: tf.constant(value, tf.float32) for name, value in constants.items()},
            *(tf.constant(number, tf.float32) for number in numbers),
        )

    def enter(self, phase: Phase) -> None:
        """Start a phase: its variables, a fresh optimizer, a step compiled for them."""
        self.phase = phase
        if phase.name not in self._compiled:
            self._compiled[phase.name] = self._compile(phase)
        compiled = self._compiled[phase.name]
        self.variables, self.optimizer = compiled.variables, compiled.optimizer
        self._step, self._steps = compiled.step, compiled.steps
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros_like(variable))

    def step(self, inputs: np.ndarray, labels: np.ndarray, index: int) -> tf.Tensor:
        """Take one step; `index` counts them over all epochs.

        Returns the global batch's loss, and its cross-entropy without class weights and label smoothing, float32[2].
        """
        return self._step(inputs, labels, tf.constant(index), self._knobs)

    def steps(self, inputs: np.ndarray, labels: np.ndarray, first: int, rates: list[float]) -> np.ndarray:
        """Take steps one after the other, in one call: what a head computes in a step takes less than calling it.

        Args:
            inputs: of each step, [n, B, …].
            labels: int32[n, B].
            first: the index of the first step.
            rates: the learning rate of each step.

        Returns what `step` does for each, float32[n, 2].
        """
        if len(rates) == 1:
            self.optimizer.learning_rate = rates[0]
            return self.step(inputs[0], labels[0], first).numpy()[None]
        return self._steps(inputs, labels, tf.constant(first), tf.constant(rates, tf.float32), self._knobs).numpy()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network hold the moving averages of its weights while the block runs, where the recipe wants them."""
        if not self.recipe.optimizer.averaging:
            yield
            return
        current = [variable.numpy() for variable in self.variables]
        self.optimizer.finalize_variable_values(self.variables)
        try:
            yield
        finally:
            for variable, value in zip(self.variables, current, strict=True):
                variable.assign(value)

    def predict(self, inputs: Inputs) -> np.ndarray:
        """Predict probabilities float32[n, K] of this replica's images."""
        return predict(self.forward, inputs)

    def _compile(self, phase: Phase) -> _Compiled:
        head_only = phase.name == "head" or not self.network.body.trainable_variables
        variables = (self.network.head if head_only else self.network).trainable_variables
        with self.replica.strategy.scope():
            optimizer = self._optimizer(phase.peak, variables)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
            optimizer.build(variables)
        statistics = self.network.trains_statistics and not head_only

        def global_step(inputs: tf.Tensor, labels: tf.Tensor, index: tf.Tensor, knobs: Knobs) -> tf.Tensor:
            strategy = self.replica.strategy
            losses = strategy.run(self._replica_step, (inputs, labels, index, knobs, statistics))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

        def global_steps(
            inputs: tf.Tensor, labels: tf.Tensor, first: tf.Tensor, rates: tf.Tensor, knobs: Knobs
        ) -> tf.Tensor:
            def one(number: tf.Tensor, losses: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
                optimizer.learning_rate = rates[number]
                return number + 1, losses.write(
                    number, global_step(inputs[number], labels[number], first + number, knobs)
                )

            count = tf.shape(rates)[0]
            losses = tf.TensorArray(tf.float32, count, element_shape=(2,))
            return tf.while_loop(lambda number, _: number < count, one, (0, losses), parallel_iterations=1)[1].stack()

        many = tf.function(global_steps, autograph=False, reduce_retracing=True)
        return _Compiled(variables, optimizer, tf.function(global_step, autograph=False), many)

    def _optimizer(self, rate: float, variables: list[keras.Variable]) -> keras.optimizers.AdamW:
        chosen, below = self.recipe.optimizer, self.network.below
        options = {"learning_rate": rate, "weight_decay": chosen.weight_decay, "use_ema": chosen.averaging > 0}
        if chosen.layer_decay == 1:
            return keras.optimizers.AdamW(**options)
        return StagedAdamW([chosen.layer_decay ** below.get(one.path, 0) for one in variables], **options)

    def _forward(self, inputs: tf.Tensor) -> tf.Tensor:
        def probabilities(x: tf.Tensor) -> tf.Tensor:
            return tf.nn.softmax(self.network.logits(x if self.cached else self.network.prefix(x, training=False)))

        return self.replica.strategy.run(probabilities, (inputs,))

    def _replica_step(
        self, inputs: tf.Tensor, labels: tf.Tensor, index: tf.Tensor, knobs: Knobs, statistics: bool
    ) -> tf.Tensor:
        recipe, network = self.recipe, self.network
        if not self.cached:
            images = augment(inputs, self._draw(index, DRAWS, stream=0), recipe.augmentation.name)
            inputs = network.prefix(images, training=False)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in self.variables])
            features = network.body(inputs, training=statistics)
            logits = network.head(self._drop(features, index, knobs.dropout), training=True)
            losses = self._objective.losses(logits, tf.one_hot(labels, logits.shape[-1]), knobs.loss)
            loss = tf.reduce_sum(losses) / recipe.data.batch_size  # its sum over workers is the batch's mean
        # Both are read while the step is traced. A young average forgets its start faster (as in TensorFlow's own).
        self.optimizer.weight_decay = knobs.weight_decay
        age = tf.cast(self.optimizer.iterations, tf.float32)
        self.optimizer.ema_momentum = tf.minimum(recipe.optimizer.averaging, (1.0 + age) / (10.0 + age))
        self.optimizer.apply(tape.gradient(loss, [v.value for v in self.variables]), self.variables)
        plain = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)  # what the validation loss is of
        return tf.stack([loss, tf.reduce_sum(plain) / recipe.data.batch_size])

    def _drop(self, features: tf.Tensor, index: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        """Drop out by an image's position in the global batch; a Dropout layer would drop others on other workers."""
        kept = self._draw(index, features.shape[-1], stream=1) >= rate
        return tf.where(kept, features / (1.0 - rate), 0.0)

    def _draw(self, index: tf.Tensor, count: int, stream: int) -> tf.Tensor:
        """Draw the random numbers of the global batch, and return this replica's rows."""
        share = self.recipe.data.batch_size // self.replica.workers
        everyone = draw(self.recipe.seed, index, self.recipe.data.batch_size, count, stream)
        return everyone[self.replica.rank * share : (self.replica.rank + 1) * share]


def predict(
    forward: Callable[[np.ndarray], tf.Tensor],
    inputs: Inputs,
    batch_size: int = PREDICT_BATCH,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Predict probabilities float32[n, K]; the last batch is padded, so that one compiled shape serves all.

    `advance` is called with the images done and all.
    """
    probabilities = []
    for start in range(0, max(1, len(inputs)), batch_size):  # of no input too, for the number of classes
        batch = inputs[start : start + batch_size]
        padded = np.pad(batch, [(0, batch_size - len(batch)), *[(0, 0)] * (batch.ndim - 1)])
        probabilities.append(np.asarray(forward(padded))[: len(batch)])
        advance(start + len(batch), len(inputs))
    return np.concatenate(probabilities)
