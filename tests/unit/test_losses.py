"""Class weights and the loss, against scikit-learn, Keras and numbers worked out by hand."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from ham_ray.models.losses import class_weights, weighted_cross_entropy

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


def test_the_loss_of_two_images_by_hand():
    logits = tf.constant([[0.0, 0.0], [math.log(3), 0.0]])  # probabilities 1/2, 1/2 and 3/4, 1/4
    loss = weighted_cross_entropy(logits, tf.constant([0, 1]), tf.constant([1.0, 2.0]), 0.0, batch_size=2)
    assert float(loss) == pytest.approx((1 * math.log(2) + 2 * math.log(4)) / 2, rel=1e-6)


def test_label_smoothing_is_keras_own():
    logits, labels = tf.random.stateless_normal([5, 7], [0, 1]), tf.constant([0, 1, 2, 6, 6])
    ours = weighted_cross_entropy(logits, labels, tf.ones(7), 0.1, batch_size=5)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(tf.one_hot(labels, 7), logits)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_parts_of_a_batch_sum_to_the_whole():
    logits, labels = tf.random.stateless_normal([6, 7], [2, 3]), tf.constant([0, 1, 2, 3, 4, 5])
    weights = tf.constant(class_weights(HAM, 1.0))
    parts = [weighted_cross_entropy(logits[i : i + 3], labels[i : i + 3], weights, 0.1, 6) for i in (0, 3)]
    assert float(sum(parts)) == pytest.approx(float(weighted_cross_entropy(logits, labels, weights, 0.1, 6)), rel=1e-6)
