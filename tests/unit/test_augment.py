"""Augmentation: exact symmetries, repeatable draws, and the same for an image on one worker and on many."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from ham_ray.recipe import VIEWS
from ham_ray.training.augment import DRAWS, augment, chosen_views, draw, view

pytestmark = pytest.mark.unit
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)


def augmented(strength: str, step: int = 3, seed: int = 0) -> np.ndarray:
    return augment(tf.constant(IMAGES), draw(seed, tf.constant(step), 64, DRAWS, stream=0), strength).numpy()


def symmetries(image: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(side, turns) for side in (image, image.transpose(1, 0, 2)) for turns in range(4)]


def test_off_changes_nothing():
    np.testing.assert_array_equal(augmented("off"), IMAGES)


def test_light_gives_exactly_one_of_the_eight_symmetries():
    chosen = []
    for before, after in zip(IMAGES, augmented("light"), strict=True):
        chosen.append([np.array_equal(after, candidate) for candidate in symmetries(before)].index(True))
    assert set(chosen) == set(range(8))  # each occurs among 64 images


def test_strong_crops_and_recolours_but_stays_an_image():
    result = augmented("strong")
    assert result.dtype == np.uint8 and result.shape == IMAGES.shape
    assert not any(
        np.array_equal(after, s) for before, after in zip(IMAGES, result, strict=True) for s in symmetries(before)
    )


def test_a_grey_image_keeps_its_brightness_within_the_stated_ranges():
    flat = np.full((64, 16, 16, 3), 128, np.uint8)
    result = augment(tf.constant(flat), draw(0, tf.constant(1), 64, DRAWS, stream=0), "strong").numpy()
    # channel gain ± 5 %, brightness ± 10 % of 255; saturation and contrast leave a flat image's mean alone
    assert np.abs(result.mean(axis=(1, 2, 3)) - 128).max() <= 0.1 * 255 + 0.05 * 128 + 1
    assert result.mean(axis=(1, 2, 3)).std() > 5


def test_the_same_step_repeats_and_another_differs():
    np.testing.assert_array_equal(augmented("strong", step=3), augmented("strong", step=3))
    assert not np.array_equal(augmented("strong", step=3), augmented("strong", step=4))
    assert not np.array_equal(augmented("strong", seed=0), augmented("strong", seed=1))


def test_half_a_batch_is_augmented_as_in_the_whole():
    uniform = draw(0, tf.constant(3), 64, DRAWS, stream=0)
    second_worker = augment(tf.constant(IMAGES[32:]), uniform[32:], "strong").numpy()
    np.testing.assert_array_equal(second_worker, augmented("strong")[32:])


def test_streams_are_independent():
    a, b = (draw(0, tf.constant(3), 64, DRAWS, stream=stream).numpy() for stream in (0, 1))
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.15


def test_views_are_what_light_augmentation_makes():
    uniform = draw(0, tf.constant(3), 64, DRAWS, stream=0)
    expected = augment(tf.constant(IMAGES), uniform, "light").numpy()
    indices = chosen_views(uniform.numpy())
    assert set(indices) == set(range(VIEWS["light"]))
    for index, image, wanted in zip(indices, IMAGES, expected, strict=True):
        np.testing.assert_array_equal(view(image[None], index)[0], wanted)
