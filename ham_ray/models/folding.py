"""The same network with less to compute, wherever BatchNorm stays as it is: frozen layers, fine-tuning, prediction."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

# Keras's ResNet50 v1 begins conv3, conv4 and conv5 with 1×1 convolutions of stride 2: of what enters them only every
# second position is read. So the block before takes that stride where it convolves 3×3, and the rest is not computed.
_BEFORE = ("conv2_block3", "conv3_block4", "conv4_block6")
_STRIDES = {f"{block}_2_conv": 2 for block in _BEFORE} | {
    f"{stage}_block1_{conv}_conv": 1 for stage in ("conv3", "conv4", "conv5") for conv in (0, 1)
}
_SHORTCUTS = {f"{block}_add" for block in _BEFORE}

_FEW = 49  # positions of an image: conv5's at 224 px; at 64 oneDNN's own gradient is the faster (docs/performance.md)


class FoldedConv(layers.Layer):
    """A convolution and the BatchNorm in inference mode behind it as one convolution, which moves half the memory.

    It holds the two layers' own variables. Never saved: saved models keep the two. With another `stride` than the
    convolution's it gives the positions that that stride takes of what stride 1 gives.
    """

    def __init__(self, conv: layers.Conv2D, norm: layers.BatchNormalization, stride: int | None = None) -> None:
        super().__init__(name=conv.name, dtype=conv.dtype_policy, autocast=False)  # kernels are rounded once, scaled
        self.conv, self.norm = conv, norm
        self.stride = stride or conv.strides[0]

    def build(self, input_shape: Any) -> None:
        """Nothing: both layers are built."""

    def call(self, inputs):
        """Scale and shift in float32, whatever the policy; the convolution in the policy's type."""
        conv, norm = self.conv, self.norm
        inputs = ops.cast(inputs, self.compute_dtype)
        scale = norm.gamma * ops.rsqrt(norm.moving_variance + norm.epsilon)
        shift = norm.beta + (conv.bias - norm.moving_mean) * scale
        kernel = ops.cast(conv.kernel * scale, inputs.dtype)
        outputs = self._convolved(inputs, kernel)
        return tf.nn.bias_add(outputs, ops.cast(shift, outputs.dtype))  # becomes one operation with the convolution

    def _convolved(self, inputs, kernel):
        conv = self.conv
        if self._is_plain and math.prod(inputs.shape[1:3]) <= _FEW:
            return _at_few_positions(inputs, kernel)
        if self.stride != conv.strides[0]:  # zeros as "same" has them at stride 1: at 2 it would begin a position later
            inputs = ops.pad(inputs, [(0, 0), *((size // 2, size // 2) for size in conv.kernel_size), (0, 0)])
            return ops.conv(inputs, kernel, strides=self.stride, padding="valid")
        return ops.conv(inputs, kernel, strides=self.stride, padding=conv.padding)

    @property
    def _is_plain(self) -> bool:
        """Whether each position gives one, from those around it."""
        conv, odd = self.conv, all(size % 2 for size in self.conv.kernel_size)
        same = conv.kernel_size == (1, 1) or (odd and conv.padding == "same")
        return same and self.stride == 1 and conv.groups == 1


@tf.function(autograph=False)  # one graph for each shape: TensorFlow keeps those of a custom gradient for good
@tf.custom_gradient
def _at_few_positions(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """The "same" convolution of stride 1, [B, H, W, C] by [h, w, C, D]; its kernel's gradient as one matrix product of
    patches, which oneDNN computes in half the time that its own takes where kernels have more numbers than images."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        below = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(inputs), 1, "SAME")
        height, width, channels, filters = kernel.shape
        patches = tf.reshape(_patches(inputs, height, width), [-1, height * width * channels])
        by_kernel = tf.matmul(patches, tf.reshape(upstream, [-1, filters]), transpose_a=True)
        return below, tf.reshape(by_kernel, kernel.shape)

    return tf.nn.conv2d(inputs, kernel, 1, "SAME"), gradient


def _patches(inputs: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """What a "same" kernel of odd height and width sees at each position, [B, H, W, height × width × C]."""
    rows, columns = inputs.shape[1:3]
    padded = tf.pad(inputs, [(0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)])
    shifted = [padded[:, y : y + rows, x : x + columns] for y in range(height) for x in range(width)]
    return tf.concat(shifted, axis=-1)


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
            return FoldedConv(layer, norms[layer.name], _STRIDES.get(layer.name))
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
