"""The optimizer that gives each variable a share of its learning rate, against Keras's own at that rate."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import baseline
from ham_ray.training.optimizer import StagedAdamW
from ham_ray.training.schedule import phase_at
from ham_ray.training.step import Replica, Trainer

pytestmark = pytest.mark.model


@pytest.mark.parametrize("averaging", [False, True])
def test_a_share_of_the_rate_is_that_rate(averaging: bool):
    options = {"weight_decay": 0.3, "use_ema": averaging}
    starts, shares = [np.array([2.0, -1.0]), np.array([0.5]), np.array([3.0])], [1.0, 0.5, 0.25]
    ours = [keras.Variable(start, name=f"v{number}") for number, start in enumerate(starts)]
    theirs = [keras.Variable(start, name=f"w{number}") for number, start in enumerate(starts)]
    one = StagedAdamW(shares, learning_rate=0.1, **options)
    others = [keras.optimizers.AdamW(learning_rate=0.1 * share, **options) for share in shares]
    for optimizer, variables in [(one, ours), *zip(others, ([variable] for variable in theirs), strict=True)]:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.build(variables)
    random = np.random.default_rng(0)
    for _ in range(5):
        gradients = [tf.constant(random.normal(size=start.shape), tf.float32) for start in starts]
        one.apply(gradients, ours)
        for optimizer, variable, gradient in zip(others, theirs, gradients, strict=True):
            optimizer.apply([gradient], [variable])
    for optimizer, variables in [(one, ours), *zip(others, ([variable] for variable in theirs), strict=True)]:
        optimizer.finalize_variable_values(variables)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5)


def test_each_stage_leaves_a_share_of_its_rate_to_the_one_below():
    """Adam's first step is the rate itself, whatever the gradient."""
    changes = {"layer_decay": 0.5, "weight_decay": 0.0, "warmup_epochs": 0.0, "batch_size": 4, "averaging": 0.0}
    recipe = baseline("simple_cnn").changed(**changes)
    network = build(recipe, 32, RANDOM, 7)
    trainer = Trainer(recipe, network, Replica(tf.distribute.get_strategy()), np.ones(7, int))
    trainer.enter(phase_at(recipe, 0))
    before = {variable.path: variable.numpy() for variable in network.trainable_variables}
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    trainer.optimizer.learning_rate = 1e-3
    trainer.step(images, np.array([0, 1, 2, 3], np.int32), 0)
    moved = {
        variable.path: np.abs(variable.numpy() - before[variable.path]).max()
        for variable in network.trainable_variables
    }
    for path, share in {"logits": 1.0, "conv3": 0.5, "conv2": 0.25, "conv1": 0.125}.items():
        assert moved[f"{path}/kernel"] == pytest.approx(1e-3 * share, rel=0.02)
