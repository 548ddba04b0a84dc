"""Pretrained backbones: the preprocessing that belongs to their weights, their stages, and freezing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


# Keras's ResNet50 v1 begins conv3, conv4 and conv5 with 1×1 convolutions of stride 2: of what enters them only every
# second position is read. So the block before takes that stride where it convolves 3×3, and the rest is not computed.
_BEFORE = ("conv2_block3", "conv3_block4", "conv4_block6")
_THINNED = {f"{block}_2_conv": 2 for block in _BEFORE}
_UNSTRIDED = {f"{stage}_block1_{conv}_conv": 1 for stage in ("conv3", "conv4", "conv5") for conv in (0, 1)}
_SHORTCUTS = {f"{block}_add" for block in _BEFORE}


class FoldedConv(layers.Layer):
    """A convolution and the BatchNorm in inference mode behind it as one convolution, which moves half the memory.

    It holds the two layers' own variables. Never saved: saved models keep the two. With another `stride` than the
    convolution's it gives the positions that that stride takes of what stride 1 gives.
    """

    def __init__(self, conv: layers.Conv2D, norm: layers.BatchNormalization, stride: int | None = None) -> None:
        super().__init__(name=conv.name, dtype=conv.dtype_policy)
        self.conv, self.norm = conv, norm
        self.stride = stride or conv.strides[0]

    def build(self, input_shape: Any) -> None:
        """Nothing: both layers are built."""

    def call(self, inputs):
        """Scale and shift in float32, whatever the policy; the convolution in the policy's type."""
        conv, norm = self.conv, self.norm
        scale = norm.gamma * ops.rsqrt(norm.moving_variance + norm.epsilon)
        shift = norm.beta + (ops.cast(conv.bias, "float32") - norm.moving_mean) * scale
        kernel = ops.cast(ops.cast(conv.kernel, "float32") * scale, inputs.dtype)
        inputs, padding = (inputs, conv.padding) if self.stride == conv.strides[0] else (_padded(inputs, conv), "valid")
        outputs = ops.conv(inputs, kernel, strides=self.stride, padding=padding)
        return outputs + ops.cast(shift, outputs.dtype)


def _padded(inputs: Any, conv: layers.Conv2D) -> Any:
    """With zeros around, as "same" has them at stride 1: at stride 2 it would begin a position later."""
    return ops.pad(inputs, [(0, 0), *((size // 2, size // 2) for size in conv.kernel_size), (0, 0)])


def folded(model: keras.Model) -> keras.Model:
    """The same function of the same variables, with each BatchNorm that follows a convolution folded into it, also in
    models within the model, and without the positions that no later layer reads.

    It stands for the model in inference mode, and for training with BatchNorm in inference mode.
    """
    norms = {
        _before(layer).name: layer
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization) and type(_before(layer)) is layers.Conv2D
    }
    gone = {norm.name for norm in norms.values()}

    def clone(layer: layers.Layer) -> layers.Layer:
        if layer.name in norms:
            return FoldedConv(layer, norms[layer.name], (_THINNED | _UNSTRIDED).get(layer.name))
        if isinstance(layer, keras.Model):
            return folded(layer)
        held = isinstance(layer, layers.Layer) and layer.variables  # operations are no layers
        return layer if held else layer.__class__.from_config(layer.get_config())

    def call(layer: layers.Layer, *arguments: Any, **options: Any) -> Any:
        if layer.name in gone:
            return arguments[0]
        if layer.name in _SHORTCUTS:
            shortcut, added = arguments[0]  # pooled: a strided slice takes 20 times as long
            return layer([ops.max_pool(shortcut, 1, strides=2), added])
        return layer(*arguments, **options)

    return keras.models.clone_model(model, clone_function=clone, call_function=call)


def _before(layer: layers.Layer) -> layers.Layer:
    return layer.input._keras_history.operation
