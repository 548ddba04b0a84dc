"""Pretrained backbones: the preprocessing that belongs to their weights, their stages, and freezing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class Backbone:
    """A network without top. `stages` are the layer-name prefixes from the input up; `preprocess` turns RGB 0–255
    into what the weights were trained on."""

    build: Callable[..., keras.Model]
    stages: tuple[str, ...]
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor]


def bgr_minus_imagenet_mean(images: keras.KerasTensor) -> keras.KerasTensor:
    """RGB 0–255 to BGR minus the ImageNet mean, not scaled: 'caffe' preprocessing of ResNet50 v1's weights.

    The same as `keras.applications.resnet50.preprocess_input`, in layers that a saved model loads anywhere.
    """
    bgr = keras.ops.flip(images, axis=-1)
    return keras.layers.Normalization(mean=[103.939, 116.779, 123.68], variance=[1.0, 1.0, 1.0], dtype="float32")(bgr)


RESNET50 = Backbone(
    build=keras.applications.ResNet50,
    stages=("conv1", "conv2", "conv3", "conv4", "conv5"),
    preprocess=bgr_minus_imagenet_mean,
)


def unfreeze(model: keras.Model, stages: tuple[str, ...], depth: int) -> None:
    """Make the convolutions of the top `depth` stages trainable and the rest not; all stages unfreeze everything.

    BatchNorm stays as it was pretrained, statistics, scale and shift.
    """
    trained = stages[len(stages) - depth :]
    for layer in model.layers:
        chosen = depth == len(stages) or layer.name.startswith(trained)
        layer.trainable = chosen and not isinstance(layer, keras.layers.BatchNormalization)
