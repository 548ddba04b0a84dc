"""The registry of model families: from a recipe to a network of body, head and exported classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from ham_ray.diagnoses import CODES
from ham_ray.errors import unknown_name
from ham_ray.models.backbones import RESNET50, Backbone, unfreeze
from ham_ray.models.folding import folded
from ham_ray.models.weights import Weights, load_backbone
from ham_ray.recipe import Recipe


@dataclass(frozen=True)
class Network:
    """A classifier in three parts, and two of them again as one.

    prefix: uint8 RGB [B, size, size, 3] to what enters the first trained layer; never trained, preprocessing inside.
        It gives the images as they are where everything is trained.
    body: from there to features float32 [B, F], between which and the head training drops out some.
    head: features to logits float32 [B, 7].
    whole: prefix and body as one, of plain Keras layers that hold the same variables: what is saved.
    trains_statistics: whether BatchNorm in the body learns its statistics (else it stays in inference mode).
    """

    prefix: keras.Model
    body: keras.Model
    head: keras.Model
    whole: keras.Model
    trains_statistics: bool

    def logits(self, activations):
        """What the prefix gives to logits, in inference mode."""
        return self.head(self.body(activations, training=False), training=False)

    def feature_spread(self, activations: np.ndarray) -> float:
        """How much the features of images differ, from what the prefix gave for them: their standard deviation over
        images, mean over features, in units of their mean absolute value.

        Below 0.1 a head can hardly tell images apart: wrong preprocessing.
        """
        features = np.asarray(self.body(activations, training=False))
        return float(features.std(axis=0).mean() / (np.abs(features).mean() + 1e-12))

    def classifier(self) -> keras.Model:
        """The model one saves: uint8 RGB in, probabilities float32 [B, 7] in the order of `diagnoses.CODES` out."""
        images = _images(self.whole.input_shape[1])
        logits = self.head(self.whole(images, training=False), training=False)
        return keras.Model(images, layers.Softmax(dtype="float32", name="probabilities")(logits), name="ham_ray")

    @property
    def variables(self) -> list[keras.Variable]:
        """Of all parts, trained or not, in an order that does not depend on where the network is cut."""
        return self.whole.variables + self.head.variables

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """Of body and head; the body's are empty where it is frozen."""
        return self.body.trainable_variables + self.head.trainable_variables

    @property
    def learned_variables(self) -> list[keras.Variable]:
        """All that training changes: what a checkpoint has to hold."""
        frozen = not self.body.trainable_variables
        return ([] if frozen else self.body.variables) + self.head.variables


Builder = Callable[[Recipe, int, Weights], Network]


class Family(NamedTuple):
    """How a family is built, and whether it starts from pretrained weights."""

    build: Builder
    pretrained: bool


_FAMILIES: dict[str, Family] = {}


def register(name: str, pretrained: bool) -> Callable[[Builder], Builder]:
    """Make a builder known under a family's name."""

    def add(builder: Builder) -> Builder:
        if name in _FAMILIES:
            raise KeyError(f"family {name!r} is registered twice")
        _FAMILIES[name] = Family(builder, pretrained)
        return builder

    return add


def families() -> list[str]:
    """The names of all families."""
    return sorted(_FAMILIES)


def pretrained(name: str) -> bool:
    """Whether a family starts from pretrained weights."""
    return _family(name).pretrained


def build(recipe: Recipe, size: int, weights: Weights) -> Network:
    """The recipe's network for `size` × `size` images, freshly initialised from the recipe's seed or from weights."""
    family = _family(recipe.family)
    keras.utils.set_random_seed(recipe.seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if recipe.precision == "bfloat16" else "float32")
    return family.build(recipe, size, weights)


def _family(name: str) -> Family:
    if name not in _FAMILIES:
        raise unknown_name("family", name, _FAMILIES)
    return _FAMILIES[name]


@register("simple_cnn", pretrained=False)
def _simple_cnn(recipe: Recipe, size: int, weights: Weights) -> Network:
    """Three convolution blocks (32, 64, 128 filters, BatchNorm, pooling) from scratch."""
    images = _images(size)
    x = layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")(images)
    for block, filters in enumerate((32, 64, 128), start=1):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{block}")(x)
        x = layers.MaxPooling2D(name=f"pool{block}")(x)  # before the rest of the block, which costs a quarter then
        # synchronized: statistics over the global batch, so that they do not depend on the number of workers
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, synchronized=True, name=f"bn{block}")(x))
    features = layers.GlobalAveragePooling2D(dtype="float32")(x)
    body = keras.Model(images, features, name="simple_cnn")
    return Network(_nothing(images), body, _head(128, recipe), whole=body, trains_statistics=True)


@register("resnet50_frozen", pretrained=True)
@register("resnet50_finetuned", pretrained=True)
def _resnet50(recipe: Recipe, size: int, weights: Weights) -> Network:
    """ResNet50 with the recipe's top stages trained (none = frozen), BatchNorm in inference mode."""
    return _on_backbone(RESNET50, recipe, size, weights)


def _on_backbone(backbone: Backbone, recipe: Recipe, size: int, weights: Weights) -> Network:
    base = backbone.build(include_top=False, weights=None, input_shape=(size, size, 3))
    load_backbone(base, weights)
    unfreeze(base, backbone, recipe.unfreeze_depth)
    whole = _pooled(backbone, base)
    prefix, body = _cut(backbone, folded(base), recipe.unfreeze_depth)
    return Network(prefix, body, _head(whole.output_shape[-1], recipe), whole, trains_statistics=False)


def _pooled(backbone: Backbone, base: keras.Model) -> keras.Model:
    """The backbone with preprocessing and pooling: uint8 images to features."""
    images = _images(base.input_shape[1])
    return keras.Model(images, _pool()(base(_prepared(backbone, images))), name=base.name)


def _prepared(backbone: Backbone, images: keras.KerasTensor) -> keras.KerasTensor:
    return backbone.preprocess(layers.Rescaling(1.0, dtype="float32")(images))


def _pool() -> layers.Layer:
    return layers.GlobalAveragePooling2D(dtype="float32", name="pooled")


def _cut(backbone: Backbone, base: keras.Model, depth: int) -> tuple[keras.Model, keras.Model]:
    """The backbone with preprocessing and pooling, cut below its top `depth` stages."""
    if depth == 0:
        prefix = _pooled(backbone, base)
        return prefix, _nothing(keras.Input(prefix.output_shape[1:], name="features"))
    cut = backbone.cut(base, depth)
    if cut is base.input:
        body = _pooled(backbone, base)
        return _nothing(body.input), body
    images = _images(base.input_shape[1])
    below = keras.Model(base.input, cut, name=base.name + "_below")
    above = keras.Model(cut, base.output, name=base.name + "_above")
    activations = keras.Input(cut.shape[1:], dtype=cut.dtype, name="activations")
    prefix = keras.Model(images, below(_prepared(backbone, images)), name=base.name + "_prefix")
    return prefix, keras.Model(activations, _pool()(above(activations)), name=base.name + "_body")


def _images(size: int) -> keras.KerasTensor:
    return keras.Input((size, size, 3), dtype="uint8", name="rgb")


def _nothing(inputs: keras.KerasTensor) -> keras.Model:
    """A part that has nothing to do."""
    return keras.Model(inputs, layers.Identity(dtype="float32")(inputs), name="nothing")


def _head(features: int, recipe: Recipe) -> keras.Model:
    inputs = keras.Input((features,), name="features")
    x = (
        layers.Dense(recipe.hidden_units, "relu", dtype="float32", name="hidden")(inputs)
        if recipe.hidden_units
        else inputs
    )
    return keras.Model(inputs, layers.Dense(len(CODES), dtype="float32", name="logits")(x), name="head")
