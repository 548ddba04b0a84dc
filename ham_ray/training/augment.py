"""Augmentation inside the training step: dihedral flips and rotations, crops and colour.

There is no "up" in a dermatoscopic image, so the eight symmetries of the square are free. All randomness is a pure
function of (seed, step) and an image's position in the global batch: the same on one worker and on many, and again
after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Strength:
    """Ranges: smallest share of the area a crop keeps; brightness (of 255), contrast, saturation, channel gain ±."""

    area: float
    brightness: float
    contrast: float
    saturation: float
    gain: float


STRENGTHS = {
    "light": Strength(area=1.0, brightness=0.0, contrast=0.0, saturation=0.0, gain=0.0),
    "strong": Strength(area=0.6, brightness=0.1, contrast=0.2, saturation=0.2, gain=0.05),
}
DRAWS = 12  # uniform numbers used for one image


def draw(seed: int, step: tf.Tensor | int, batch_size: int, count: int, stream: int) -> tf.Tensor:
    """Draw uniform float32[batch_size, count] in [0, 1) for the global batch of a step; streams are independent."""
    key = tf.stack([tf.constant(seed * 16 + stream, tf.int64), tf.cast(step, tf.int64)])
    return tf.random.stateless_uniform([batch_size, count], key)


def augment(images: tf.Tensor, uniform: tf.Tensor, strength: str) -> tf.Tensor:
    """Augment uint8[B, S, S, 3] with uniform numbers float32[B, DRAWS]; `off` returns the images as they are."""
    if strength == "off":
        return images
    chosen = STRENGTHS[strength]
    x = _dihedral_and_crop(images, uniform, chosen.area)
    if chosen.contrast:
        x = _colour(x, uniform, chosen)
    return tf.cast(tf.round(tf.clip_by_value(x, 0.0, 255.0)), tf.uint8)


def chosen_views(uniform: np.ndarray) -> np.ndarray:
    """Return which of the eight symmetries `light` takes, int[B], for rows of uniform numbers float32[B, DRAWS]."""
    return (uniform[:, [0, 5, 6]] < 0.5) @ np.array([4, 2, 1])


def view(images: np.ndarray, index: int) -> np.ndarray:
    """Return one of the eight symmetries, `index` 0 to 7, of images [B, S, S, 3]; 0 leaves them as they are."""
    turned = images.transpose(0, 2, 1, 3) if index & 4 else images
    return turned[:, :: -1 if index & 2 else 1, :: -1 if index & 1 else 1]


def _dihedral_and_crop(images: tf.Tensor, uniform: tf.Tensor, area: float) -> tf.Tensor:
    """Transpose half of the images, then crop with boxes whose reversed edges are flips: one resampling for all."""
    transpose = (uniform[:, 0] < 0.5)[:, None, None, None]
    images = tf.where(transpose, tf.transpose(images, [0, 2, 1, 3]), images)
    side = tf.sqrt(area + (1.0 - area) * uniform[:, 1])
    squeeze = (0.75 + 0.5 * uniform[:, 2]) if area < 1.0 else tf.ones_like(side)
    height, width = tf.minimum(1.0, side * tf.sqrt(squeeze)), tf.minimum(1.0, side / tf.sqrt(squeeze))
    top, left = (1.0 - height) * uniform[:, 3], (1.0 - width) * uniform[:, 4]
    y1, y2 = _maybe_swapped(top, top + height, uniform[:, 5] < 0.5)
    x1, x2 = _maybe_swapped(left, left + width, uniform[:, 6] < 0.5)
    boxes = tf.stack([y1, x1, y2, x2], axis=1)
    return tf.image.crop_and_resize(images, boxes, tf.range(tf.shape(images)[0]), images.shape[1:3])


def _maybe_swapped(low: tf.Tensor, high: tf.Tensor, swap: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.where(swap, high, low), tf.where(swap, low, high)


def _colour(x: tf.Tensor, uniform: tf.Tensor, strength: Strength) -> tf.Tensor:
    """Vary channel gain, saturation (towards the pixel's grey), contrast (around the image's mean) and brightness."""
    signed = 2.0 * uniform[:, 7:] - 1.0
    brightness = signed[:, 0] * strength.brightness * 255.0
    contrast = 1.0 + signed[:, 1] * strength.contrast
    saturation = 1.0 + signed[:, 2] * strength.saturation
    x = (
        x
        * (1.0 + strength.gain * tf.stack([signed[:, 3], -signed[:, 3] * signed[:, 4], signed[:, 4]], 1))[
            :, None, None, :
        ]
    )
    mean = tf.reduce_mean(x, [1, 2], keepdims=True)
    grey = tf.reduce_mean(x, axis=3, keepdims=True)
    x = grey + (x - grey) * saturation[:, None, None, None]
    return mean + (x - mean) * contrast[:, None, None, None] + brightness[:, None, None, None]
