"""Pretrained backbones: the preprocessing that belongs to their weights, their stages, and freezing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
from keras import layers, ops


@dataclass(frozen=True)
class Backbone:
    """A network without top. `stages` names, from the input up, the prefix of each stage's layers and its last layer;
    `preprocess` turns RGB 0–255 into what the weights were trained on."""

    build: Callable[..., keras.Model]
    stages: dict[str, str]
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor]

    def cut(self, base: keras.Model, depth: int) -> keras.KerasTensor:
        """What enters the top `depth` stages of a built network; its input where that is all of them."""
        frozen = [*self.stages.values()][: len(self.stages) - depth]
        return base.get_layer(frozen[-1]).output if frozen else base.input


def bgr_minus_imagenet_mean(images: keras.KerasTensor) -> keras.KerasTensor:
    """RGB 0–255 to BGR minus the ImageNet mean, not scaled: 'caffe' preprocessing of ResNet50 v1's weights.

    The same as `keras.applications.resnet50.preprocess_input`, in layers that a saved model loads anywhere.
    """
    bgr = ops.flip(images, axis=-1)
    return layers.Normalization(mean=[103.939, 116.779, 123.68], variance=[1.0, 1.0, 1.0], dtype="float32")(bgr)


RESNET50 = Backbone(
    build=keras.applications.ResNet50,
    stages={
        "conv1": "pool1_pool",
        "conv2": "conv2_block3_out",
        "conv3": "conv3_block4_out",
        "conv4": "conv4_block6_out",
        "conv5": "conv5_block3_out",
    },
    preprocess=bgr_minus_imagenet_mean,
)


def unfreeze(model: keras.Model, backbone: Backbone, depth: int) -> None:
    """Make the convolutions of the top `depth` stages trainable and the rest not; all stages unfreeze everything.

    BatchNorm stays as it was pretrained, statistics, scale and shift.
    """
    trained = tuple(backbone.stages)[len(backbone.stages) - depth :]
    for layer in model.layers:
        chosen = depth == len(backbone.stages) or layer.name.startswith(trained)
        layer.trainable = chosen and not isinstance(layer, layers.BatchNormalization)
