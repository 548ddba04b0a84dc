"""Folding on networks of a few layers: the same function, with what can be folded and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from ham_ray.models.folding import FoldedConv, Graph, folded

pytestmark = pytest.mark.model
Tensor = keras.KerasTensor


@pytest.fixture(autouse=True)
def float32() -> None:
    """Whatever a network that was built before left as the policy of new layers."""
    keras.config.set_dtype_policy("float32")


def norm(**options) -> layers.BatchNormalization:
    names = ("beta", "gamma", "moving_mean", "moving_variance")
    uniform = {
        f"{name}_initializer": keras.initializers.RandomUniform(0.5, 1.5, seed=n) for n, name in enumerate(names)
    }
    return layers.BatchNormalization(**{**uniform, **options})


def conv(**options) -> layers.Conv2D:
    return layers.Conv2D(4, 3, **{"padding": "same", "bias_initializer": "ones", **options})


def chain(*made: layers.Layer) -> Callable[[Tensor], Tensor]:
    return lambda x: keras.Sequential([keras.Input(x.shape[1:]), *made])(x)


def read_twice(x: Tensor) -> Tensor:
    before = conv()(x)
    return layers.Add()([before, norm()(before)])


def called_twice(x: Tensor) -> Tensor:
    shared, after = conv(), norm()
    return after(shared(after(shared(x))))


def two_of_one_model(x: Tensor) -> Tensor:
    inputs = keras.Input((8, 8, 4))
    inner = keras.Model(inputs, norm()(conv()(inputs)))
    return inner(inner(x))


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (lambda x: norm()(conv()(x)), 1),
        (lambda x: norm()(conv(use_bias=False)(x)), 1),
        (lambda x: norm(center=False)(conv()(x)), 1),
        (lambda x: norm(scale=False)(conv(use_bias=False)(x)), 1),
        (lambda x: norm()(conv(strides=2, padding="valid")(x)), 1),
        (lambda x: norm()(conv(dilation_rate=2)(x)), 1),
        (lambda x: norm()(conv(groups=2)(x)), 1),
        (lambda x: norm()(conv(strides=(1, 2))(x)), 1),
        (lambda x: norm()(layers.DepthwiseConv2D(3, depth_multiplier=2, bias_initializer="ones")(x)), 1),
        (lambda x: norm()(layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(x)), 1),
        (chain(conv(), norm(), layers.ReLU(), conv(), norm()), 2),
        (two_of_one_model, 1),
        (lambda x: norm()(conv(activation="relu")(x)), 0),
        (lambda x: norm()(layers.ReLU()(conv()(x))), 0),
        (lambda x: norm(axis=1)(conv()(x)), 0),
        (lambda x: norm()(conv()(x), training=True), 0),
        (lambda x: norm()(layers.Conv2DTranspose(4, 3)(x)), 0),
        (lambda x: norm()(layers.SeparableConv2D(4, 3)(x)), 0),
        (lambda x: layers.LayerNormalization()(conv()(x)), 0),
        (read_twice, 0),
        (called_twice, 0),
    ],
)
def test_a_network_folded_is_the_network(network: Callable[[Tensor], Tensor], count: int):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    plain = keras.Model(inputs, network(inputs))
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype(np.float32)
    ours = folded(plain)
    np.testing.assert_allclose(ours(images, training=False), plain(images, training=False), rtol=1e-4, atol=1e-5)
    found = [layer for layer in ours._flatten_layers() if isinstance(layer, FoldedConv)]
    assert len(found) == count
    assert {id(variable) for variable in ours.variables} == {id(variable) for variable in plain.variables}


def test_what_the_model_gives_itself_stays():
    inputs = keras.Input((8, 8, 4))
    before = conv()(inputs)
    plain = keras.Model(inputs, [before, norm()(before)])
    images = np.ones((1, 8, 8, 4), np.float32)
    for ours, theirs in zip(folded(plain)(images, training=False), plain(images, training=False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_path_back_is_that_of_only_readers():
    inputs = keras.Input((8, 8, 4))
    x = layers.Add(name="sum")([inputs, norm(name="norm")(conv(name="conv")(inputs))])
    graph = Graph(keras.Model(inputs, layers.ReLU(name="end")(x)))
    kinds = (layers.ReLU, layers.Add, layers.BatchNormalization, layers.Conv2D)
    path = graph.path_back("end", *kinds)
    assert path is not None and [layer.name for layer in path] == ["end", "sum", "norm", "conv"]
    assert graph.path_back("end", layers.ReLU, layers.Conv2D) is None
    assert graph.path_back("nothing", *kinds) is None
    assert [layer.name for layer in graph.readers("conv")] == ["norm"] and graph.readers("end") == []
