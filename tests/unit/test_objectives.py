"""Class weights and the loss, against scikit-learn, Keras and numbers worked out by hand."""

from __future__ import annotations

import math
import typing

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from ham_ray.recipe import Loss
from ham_ray.training.objectives import OBJECTIVES, class_weights

pytestmark = pytest.mark.unit
HAM = np.array([327, 514, 1099, 115, 1113, 6705, 142])


def test_scale_one_is_scikit_learns_balanced():
    labels = np.repeat(np.arange(7), HAM)
    balanced = compute_class_weight("balanced", classes=np.arange(7), y=labels)
    np.testing.assert_allclose(class_weights(HAM, 1.0), balanced, rtol=1e-6)


def test_scale_zero_is_none_and_a_half_is_the_root():
    np.testing.assert_array_equal(class_weights(HAM, 0.0), np.ones(7))
    # (N / (K n_c)) ** .5 of df: (10015 / (7 · 115)) ** .5
    assert class_weights(HAM, 0.5)[3] == pytest.approx(math.sqrt(10015 / (7 * 115)))


def test_a_class_without_images_is_asked_for_by_nothing():
    weights = class_weights(np.array([10, 0, 30]), 1.0)
    np.testing.assert_allclose(weights, [40 / (2 * 10), 0, 40 / (2 * 30)])


def loss(logits: tf.Tensor, targets: tf.Tensor, weights: np.ndarray | tf.Tensor, smoothing: float = 0.0) -> np.ndarray:
    """The weighted cross-entropy of each image."""
    constants = {"class_weights": tf.constant(weights, tf.float32), "label_smoothing": tf.constant(smoothing)}
    return OBJECTIVES["cross_entropy"].losses(logits, targets, constants).numpy()


def test_the_losses_of_two_images_by_hand():
    logits = tf.constant([[0.0, 0.0], [math.log(3), 0.0]])  # probabilities 1/2, 1/2 and 3/4, 1/4
    found = loss(logits, tf.one_hot([0, 1], 2), np.array([1.0, 2.0]))
    np.testing.assert_allclose(found, [1 * math.log(2), 2 * math.log(4)], rtol=1e-6)


def test_the_loss_of_a_mixed_target_by_hand():
    """A quarter of one class of weight 1 and three of another of weight 2: cross-entropy and weight are both mixed."""
    found = loss(tf.constant([[math.log(3), 0.0]]), tf.constant([[0.25, 0.75]]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(
        found, [(0.25 * 1 + 0.75 * 2) * (0.25 * math.log(4 / 3) + 0.75 * math.log(4))], rtol=1e-6
    )


def test_label_smoothing_is_keras_own():
    logits, labels = tf.random.stateless_normal([5, 7], [0, 1]), tf.constant([0, 1, 2, 6, 6])
    ours = loss(logits, tf.one_hot(labels, 7), np.ones(7), 0.1)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, reduction=None)
    np.testing.assert_allclose(ours, theirs(tf.one_hot(labels, 7), logits), rtol=1e-6)


def test_constants_are_of_the_settings_and_the_counts():
    settings = Loss(label_smoothing=0.2, class_weight_scale=0.5)
    constants = OBJECTIVES["cross_entropy"].constants(settings, HAM)
    np.testing.assert_array_equal(constants["class_weights"], class_weights(HAM, 0.5))
    assert constants["label_smoothing"] == np.float32(0.2)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_names_and_shapes_of_constants_depend_on_nothing(name: str):
    """They are arguments of a compiled step: others would compile it anew."""
    shapes = [
        {key: (value.shape, value.dtype) for key, value in OBJECTIVES[name].constants(settings, counts).items()}
        for settings in (Loss(), Loss(label_smoothing=0.3, class_weight_scale=1.0))
        for counts in (HAM, np.array([10, 0, 30, 1, 1, 1, 1]))
    ]
    assert all(one == shapes[0] for one in shapes) and all(dtype == np.float32 for _, dtype in shapes[0].values())


def test_every_loss_of_a_recipe_is_there():
    assert {*OBJECTIVES} == {*typing.get_args(Loss.model_fields["name"].annotation)}
