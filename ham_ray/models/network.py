"""From a recipe to a network: its architecture cut where training begins, a head, and the classifier one saves."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import layers

from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.models.architecture import Architecture
from ham_ray.models.folding import Graph, folded
from ham_ray.models.weights import Weights, load_backbone
from ham_ray.recipe import Recipe


@dataclass(frozen=True)
class Network:
    """A classifier in three parts, and two of them again as one.

    prefix: uint8 RGB [B, size, size, 3] to what enters the first trained layer; never trained, preprocessing inside.
        It gives the images as they are where everything is trained.
    body: from there to features float32 [B, F], between which and the head training drops out some.
    head: features to logits float32 [B, K].
    full_model: prefix and body as one, of plain Keras layers that hold the same variables: what is saved.
    trains_statistics: whether BatchNorm in the body learns its statistics (else it stays in inference mode).
    below: how many stages up the head is from each variable of the body, by its path; 1 is the top stage.
    """

    prefix: keras.Model
    body: keras.Model
    head: keras.Model
    full_model: keras.Model
    trains_statistics: bool
    below: dict[str, int] = field(default_factory=dict)

    def logits(self, activations):
        """Compute logits float32 [B, K] from what the prefix gives, in inference mode."""
        return self.head(self.body(activations, training=False), training=False)

    def feature_spread(self, activations: np.ndarray) -> float:
        """Measure how much the features of images differ, from what the prefix gives for these images.

        The result is their standard deviation over images, mean over features, in units of their mean absolute value.
        Below 0.1 a head can hardly tell images apart: wrong preprocessing.
        """
        features = np.asarray(self.body(activations, training=False))
        return float(features.std(axis=0).mean() / (np.abs(features).mean() + 1e-12))

    def classifier(self) -> keras.Model:
        """Make the model one saves: uint8 RGB in, probabilities float32 [B, K] in the order of labels out."""
        images = _images(self.full_model.input_shape[1])
        logits = self.head(self.full_model(images, training=False), training=False)
        return keras.Model(images, layers.Softmax(dtype="float32", name="probabilities")(logits), name="ham_ray")

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of all parts, trained or not, in an order that does not depend on where the network is cut."""
        return self.full_model.variables + self.head.variables

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The trainable variables of body and head; the body has none where it is frozen."""
        return self.body.trainable_variables + self.head.trainable_variables

    @property
    def learned_variables(self) -> list[keras.Variable]:
        """All that training changes: what a checkpoint has to hold."""
        frozen = not self.body.trainable_variables
        return ([] if frozen else self.body.variables) + self.head.variables


def build(recipe: Recipe, size: int, weights: Weights, classes: int) -> Network:
    """Build the recipe's network for `size` × `size` images and so many classes, freshly initialised.

    The initial values follow from the recipe's seed, or are the weights.

    Raises:
        UserError: the weights are not of the recipe's architecture, or this takes no images of that size.
    """
    architecture = registry.architecture(recipe.family)
    if fault := architecture.size_fault(size):
        raise UserError(fault)
    keras.utils.set_random_seed(recipe.seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if recipe.model.precision == "bfloat16" else "float32")
    base, depth = architecture.build(architecture.side(size)), len(architecture.stages)
    if architecture.pretrained:
        load_backbone(base, weights, architecture.pretrained.load)
        depth = recipe.model.unfreeze_depth
    unfreeze(base, architecture, depth)
    whole = pooled(architecture, base, size)
    computed = base if architecture.trains_statistics else folded(base, architecture.thin)
    prefix, body = cut(architecture, computed, size, depth)
    head = _head(whole.output_shape[-1], recipe, classes)
    return Network(prefix, body, head, whole, architecture.trains_statistics, _below(base, architecture))


def unfreeze(base: keras.Model, architecture: Architecture, depth: int) -> None:
    """Make the layers of the top `depth` stages trainable and the rest not.

    BatchNorm stays as it was pretrained, statistics, scale and shift, unless the architecture trains it.
    """
    trained = [stage.layers for stage in architecture.stages[len(architecture.stages) - depth :]]
    for layer in base.layers:
        layer.trainable = any(re.match(names, layer.name) for names in trained)
    if not architecture.trains_statistics:
        _freeze_statistics(base)


def _below(base: keras.Model, architecture: Architecture) -> dict[str, int]:
    """Count for each variable how many stages up the head is."""
    stages = [*enumerate(reversed(architecture.stages), start=1)]
    return {
        variable.path: next(count for count, stage in stages if re.match(stage.layers, layer.name))
        for layer in base.layers
        for variable in layer.variables
    }


def _freeze_statistics(model: keras.Model) -> None:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _freeze_statistics(layer)
        elif isinstance(layer, layers.BatchNormalization):
            layer.trainable = False


def pooled(architecture: Architecture, base: keras.Model, size: int) -> keras.Model:
    """Make the network with preprocessing and pooling: uint8 images [B, size, size, 3] to features [B, F]."""
    images = _images(size)
    features = architecture.pool(base(_preprocessed(architecture, images)))
    return keras.Model(images, features, name=architecture.name)


def _preprocessed(architecture: Architecture, images: keras.KerasTensor) -> keras.KerasTensor:
    """Convert uint8 images to what the network without top takes, of the size that it takes."""
    result, side = architecture.preprocess(images), architecture.side(images.shape[1])
    return result if side == images.shape[1] else layers.Resizing(side, side, dtype="float32")(result)


def cut(architecture: Architecture, base: keras.Model, size: int, depth: int) -> tuple[keras.Model, keras.Model]:
    """Make the network with preprocessing and pooling, cut below its top `depth` stages: prefix and body."""
    if depth == 0:
        prefix = pooled(architecture, base, size)
        return prefix, _identity_model(keras.Input(prefix.output_shape[1:], name="features"))
    if depth == len(architecture.stages):
        body = pooled(architecture, base, size)
        return _identity_model(body.input), body
    between = Graph(base).output(architecture.stages[-depth - 1].output)
    images = _images(size)
    below = keras.Model(base.input, between, name=base.name + "_below")
    above = keras.Model(between, base.output, name=base.name + "_above")
    activations = keras.Input(between.shape[1:], dtype=between.dtype, name="activations")
    prefix = keras.Model(images, below(_preprocessed(architecture, images)), name=base.name + "_prefix")
    return prefix, keras.Model(activations, architecture.pool(above(activations)), name=base.name + "_body")


def _images(size: int) -> keras.KerasTensor:
    return keras.Input((size, size, 3), dtype="uint8", name="rgb")


def _identity_model(inputs: keras.KerasTensor) -> keras.Model:
    """Make a part that has nothing to do."""
    return keras.Model(inputs, layers.Identity(dtype="float32")(inputs), name="nothing")


def _head(features: int, recipe: Recipe, classes: int) -> keras.Model:
    inputs = keras.Input((features,), name="features")
    x = (
        layers.Dense(recipe.model.hidden_units, "relu", dtype="float32", name="hidden")(inputs)
        if recipe.model.hidden_units
        else inputs
    )
    return keras.Model(inputs, layers.Dense(classes, dtype="float32", name="logits")(x), name="head")
