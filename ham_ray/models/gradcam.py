"""Where a classifier looks: Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2) of saved models."""

from __future__ import annotations

import itertools
import re

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from ham_ray.models.folding import Graph

CORNER = 0.2  # of the side: a square in each corner, 16 % of the image in all
DARK = 0.5  # of the whole image's brightness: what a corner with a vignette stays below
_BANDS = 16


def grad_cam(model: keras.Model, pixels: NDArray[np.uint8], labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Compute how much each pixel speaks for a class: maps float32[n, size, size], each summing to 1.

    A map is even where nothing speaks for the class.

    Args:
        model: a saved classifier of this project that pools the features of convolutions.
        pixels: uint8 RGB [n, size, size, 3].
        labels: the class asked about in each image, int[n].
    """
    whole = next(layer for layer in model.layers if isinstance(layer, keras.Model) and _pool(layer))
    pool, head = _pool(whole), model.get_layer("head")
    assert pool is not None
    extract = keras.Model(whole.input, pool.input)
    features = extract(pixels, training=False)
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = head(pool(features), training=False)
        chosen = tf.gather(logits, labels, batch_dims=1)
    weights = tf.reduce_mean(tf.cast(tape.gradient(chosen, features), tf.float32), axis=(1, 2), keepdims=True)
    maps = tf.nn.relu(tf.reduce_sum(weights * tf.cast(features, tf.float32), axis=-1)).numpy()
    return _shares(_spread(maps, _centres(extract, pixels.shape[1]), pixels.shape[1]))


def grad_cam_of_tokens(
    model: keras.Model, pixels: NDArray[np.uint8], labels: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Compute what `grad_cam` does for a vision transformer, at the patches that enter its last block.

    After that block the class token no longer looks at them.
    """
    whole = next(layer for layer in model.layers if isinstance(layer, keras.Model) and layer.name != "head")
    base = next(layer for layer in whole.layers if isinstance(layer, keras.Model))
    outer, inner = Graph(whole), Graph(base)
    last = max(int(match[1]) for layer in base.layers if (match := re.match(r"block(\d+)_", layer.name)))
    between, (before,) = inner.output(f"block{last - 1}_out"), outer.inputs(base.name)
    enter, below = keras.Model(whole.input, outer.output(before.name)), keras.Model(base.input, between)
    above, pool = keras.Model(between, base.output), keras.Model(outer.output(base.name), whole.output)
    tokens = below(enter(pixels, training=False), training=False)
    with tf.GradientTape() as tape:
        tape.watch(tokens)
        logits = model.get_layer("head")(pool(above(tokens, training=False)), training=False)
        chosen = tf.gather(logits, labels, batch_dims=1)
    gradients, patches = (tf.cast(one, tf.float32)[:, 1:] for one in (tape.gradient(chosen, tokens), tokens))
    maps = tf.nn.relu(tf.reduce_sum(tf.reduce_mean(gradients, axis=1, keepdims=True) * patches, axis=-1)).numpy()
    rows, size = round(maps.shape[1] ** 0.5), pixels.shape[1]
    centres = (np.arange(rows) + 0.5) * size / rows - 0.5
    return _shares(_spread(maps.reshape(-1, rows, rows), centres, size))


def _shares(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide each map by its sum; one of zeros becomes even."""
    sums = maps.sum(axis=(1, 2), keepdims=True)
    return np.divide(maps, sums, out=np.full_like(maps, 1 / maps[0].size), where=sums > 0)


def _pool(model: keras.Model) -> layers.Layer | None:
    return next((layer for layer in model.layers if isinstance(layer, layers.GlobalAveragePooling2D)), None)


def _centres(extract: keras.Model, size: int) -> NDArray[np.float64]:
    """Measure where in the image each row of the feature map looks, in pixels: float64[rows], columns being alike.

    That is the mean position of the bands of the image that change the row, not the middle of the row's cells: strided
    1×1 convolutions see the upper left of theirs.
    """
    edges = np.linspace(0, size, min(_BANDS, size) + 1).astype(int)
    bands = np.full((len(edges), size, size, 3), 128, np.uint8)  # the last one stays grey
    for path, (top, bottom) in enumerate(itertools.pairwise(edges)):
        bands[path, top:bottom] = 160
    result = np.asarray(tf.cast(extract(bands, training=False), tf.float32))
    effect = np.abs(result[:-1] - result[-1]).mean(axis=(2, 3)).astype(np.float64)  # [bands, rows]
    middles = (edges[:-1] + edges[1:] - 1) / 2
    return np.maximum.accumulate((effect * middles[:, None]).sum(axis=0) / np.maximum(effect.sum(axis=0), 1e-12))


def _spread(maps: NDArray[np.floating], centres: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """Spread maps [n, rows, columns] to [n, size, size]: each cell a bell around its centre, which keeps its sum."""
    width = size / len(centres) / 2
    weights = np.exp(-(((np.arange(size)[:, None] - centres) / width) ** 2) / 2)  # [size, rows]
    weights /= weights.sum(axis=0)
    return np.einsum("pr,nrc,qc->npq", weights, maps, weights).astype(np.float32)


def in_corners(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """Compute the share of each map [n, size, size] that lies in the four corner squares, float64[n]."""
    side = round(CORNER * maps.shape[1])
    corners = [maps[:, rows, columns].sum(axis=(1, 2)) for rows in _ends(side) for columns in _ends(side)]
    return np.sum(corners, axis=0, dtype=np.float64) / maps.sum(axis=(1, 2), dtype=np.float64)


def has_vignette(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say which images uint8[n, size, size, 3] have at least two dark corners, bool[n]."""
    side = max(1, round(CORNER / 4 * pixels.shape[1]))  # the very corner: the circle cuts the rest
    grey = pixels.mean(axis=3)
    corners = [grey[:, rows, columns].mean(axis=(1, 2)) for rows in _ends(side) for columns in _ends(side)]
    return np.sum([corner < DARK * grey.mean(axis=(1, 2)) for corner in corners], axis=0) >= 2


def _ends(side: int) -> tuple[slice, slice]:
    return slice(None, side), slice(-side, None)
