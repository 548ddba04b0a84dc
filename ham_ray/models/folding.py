"""The same network with less to compute, wherever BatchNorm stays as it is: frozen layers, fine-tuning, prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

_FEW = 49  # positions of an image: conv5's at 224 px; at 64 oneDNN's own gradient is the faster (docs/performance.md)


@dataclass(frozen=True)
class Thinning:
    """Positions that no later layer reads, every second in each direction, and so need not be computed.

    Args:
        strides: by the name of a convolution the stride that it takes instead of its own.
        shortcuts: names of Add layers of which the first input, unlike the second, still has all positions.
    """

    strides: dict[str, int]
    shortcuts: frozenset[str] = frozenset()


class Graph:
    """Which layer reads which in a functional model. Layers called more than once have neither readers nor inputs."""

    def __init__(self, model: keras.Model) -> None:
        self._nodes: dict[str, list[Any]] = {}
        self._readers: dict[str, list[Any]] = {}
        for node in (node for nodes in model._nodes_by_depth.values() for node in nodes):
            self._nodes.setdefault(node.operation.name, []).append(node)
            for tensor in node.input_tensors:
                self._readers.setdefault(_source(tensor).name, []).append(node.operation)
        self._ends = {str(_source(tensor).name) for tensor in model.outputs}

    def output(self, name: str) -> keras.KerasTensor:
        """Return a layer's output in this model; `layer.output` is of the first model that the layer was called in."""
        return self._nodes[name][0].output_tensors[0]

    def inputs(self, name: str) -> list[Any]:
        """List the layers and operations that a layer reads."""
        return [_source(tensor) for tensor in self._nodes[name][0].input_tensors] if self._is_once(name) else []

    def readers(self, name: str) -> list[Any]:
        """List the layers and operations that read a layer's output; none where it is an output of the model itself."""
        return self._readers.get(name, []) if self._is_once(name) and name not in self._ends else []

    def path_back(self, name: str, *kinds: Any) -> list[Any] | None:
        """List the layers of these kinds from `name` back, each read by the one before alone; None: no such path.

        Of several inputs the last one is followed.
        """
        path: list[Any] = []
        following = [self._nodes[name][0].operation] if self._is_once(name) else []
        for kind in kinds:
            if not following or type(following[0]) is not kind:
                return None
            if path and self.readers(following[0].name) != [path[-1]]:
                return None
            path += following
            following = self.inputs(path[-1].name)[-1:]
        return path

    def in_training(self, name: str) -> bool:
        """Say whether a layer was called with `training=True`, whatever the model is called with."""
        return any(bool(node.arguments.kwargs.get("training")) for node in self._nodes[name])

    def _is_once(self, name: str) -> bool:
        return len(self._nodes.get(name, ())) == 1


def _source(tensor: keras.KerasTensor) -> Any:
    return tensor._keras_history.operation


class FoldedConv(layers.Layer):
    """A convolution and the BatchNorm in inference mode behind it as one convolution, which moves half the memory.

    It holds the two layers' own variables. Never saved: saved models keep the two. With another `stride` than the
    convolution's it gives the positions that that stride takes of what stride 1 gives.
    """

    def __init__(
        self,
        conv: layers.Conv2D | layers.DepthwiseConv2D,
        norm: layers.BatchNormalization,
        stride: int | None = None,
    ) -> None:
        super().__init__(name=norm.name, dtype=conv.dtype_policy, autocast=False)  # kernels are rounded once, scaled
        self.conv, self.norm = conv, norm
        self.strides = (stride, stride) if stride else conv.strides

    def build(self, input_shape: Any) -> None:
        """Do nothing: both layers are built."""

    def call(self, inputs):
        """Convolve with the scaled kernel, and add the shift.

        Scale and shift are computed in float32, whatever the policy; the convolution in the policy's type.
        """
        conv, norm = self.conv, self.norm
        inputs = ops.cast(inputs, self.compute_dtype)
        scale = ops.rsqrt(norm.moving_variance + norm.epsilon)
        scale = scale if norm.gamma is None else norm.gamma * scale
        shift = ((0.0 if conv.bias is None else conv.bias) - norm.moving_mean) * scale
        shift = shift if norm.beta is None else norm.beta + shift
        kernel = conv.kernel * (ops.reshape(scale, conv.kernel.shape[2:]) if self._is_depthwise else scale)
        outputs = self._convolved(inputs, ops.cast(kernel, inputs.dtype))
        return tf.nn.bias_add(outputs, ops.cast(shift, outputs.dtype))  # becomes one operation with the convolution

    def _convolved(self, inputs, kernel):
        conv = self.conv
        if self._is_depthwise:
            return ops.depthwise_conv(inputs, kernel, self.strides, conv.padding, dilation_rate=conv.dilation_rate)
        if self._is_plain and math.prod(inputs.shape[1:3]) <= _FEW:
            return _at_few_positions(inputs, kernel)
        if self.strides == conv.strides:
            return ops.conv(inputs, kernel, self.strides, conv.padding, dilation_rate=conv.dilation_rate)
        # zeros as "same" has them at stride 1: at 2 it would begin a position later
        inputs = ops.pad(inputs, [(0, 0), *((size // 2, size // 2) for size in conv.kernel_size), (0, 0)])
        return ops.conv(inputs, kernel, self.strides, "valid")

    @property
    def _is_depthwise(self) -> bool:
        return isinstance(self.conv, layers.DepthwiseConv2D)

    @property
    def _is_plain(self) -> bool:
        """Whether each position of the input gives one of the output, from the positions around it."""
        conv, odd = self.conv, all(size % 2 for size in self.conv.kernel_size)
        same = conv.kernel_size == (1, 1) or (odd and conv.padding == "same")
        return same and self.strides == conv.dilation_rate == (1, 1) and conv.groups == 1


@tf.function(autograph=False)  # one graph for each shape: TensorFlow keeps those of a custom gradient for good
@tf.custom_gradient
def _at_few_positions(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Compute the "same" convolution of stride 1, [B, H, W, C] by [h, w, C, D], with a gradient of its own.

    The kernel's gradient is one matrix product of patches, which oneDNN computes in half the time that its own takes
    where kernels have more numbers than images.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        below = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(inputs), 1, "SAME")
        height, width, channels, filters = kernel.shape
        patches = tf.reshape(_patches(inputs, height, width), [-1, height * width * channels])
        by_kernel = tf.matmul(patches, tf.reshape(upstream, [-1, filters]), transpose_a=True)
        return below, tf.reshape(by_kernel, kernel.shape)

    return tf.nn.conv2d(inputs, kernel, 1, "SAME"), gradient


def _patches(inputs: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Return what a "same" kernel of odd height and width sees at each position, [B, H, W, height × width × C]."""
    rows, columns = inputs.shape[1:3]
    padded = tf.pad(inputs, [(0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)])
    shifted = [padded[:, y : y + rows, x : x + columns] for y in range(height) for x in range(width)]
    return tf.concat(shifted, axis=-1)


def folded(model: keras.Model, thin: Callable[[keras.Model], Thinning] | None = None) -> keras.Model:
    """Fold each BatchNorm that follows a convolution into the convolution, also in models within the model.

    The result computes the same function of the same variables, but not what `thin` says that nothing reads. It stands
    for the model in inference mode, and for training with BatchNorm in inference mode. All other layers stay as they
    are, the same objects.
    """
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs[0], name=model.name)
    norms = _foldable(model)
    gone = {norm.name for norm in norms.values()}
    unread = thin(model) if thin else Thinning({})

    def replaced(layer: layers.Layer) -> layers.Layer:
        if layer.name in norms:
            return FoldedConv(layer, norms[layer.name], unread.strides.get(layer.name))
        return folded(layer, thin) if _holds_foldable(layer) else layer

    def call(layer: layers.Layer, *arguments: Any, **options: Any) -> Any:
        if layer.name in gone and not isinstance(layer, FoldedConv):
            return arguments[0]
        if layer.name in unread.shortcuts:
            shortcut, added = arguments[0]  # pooled: a strided slice takes 20 times as long
            return layer([ops.max_pool(shortcut, 1, strides=2), added])
        return layer(*arguments, **options)

    return keras.models.clone_model(model, clone_function=replaced, call_function=call)


def _holds_foldable(layer: Any) -> bool:
    """Say whether a layer is a model made of layers, in which something can be folded."""
    if not isinstance(layer, keras.Sequential) and not _is_functional(layer):
        return False
    whole = keras.Model(layer.inputs, layer.outputs[0]) if isinstance(layer, keras.Sequential) else layer
    return bool(_foldable(whole)) or any(map(_holds_foldable, layer.layers))


def _is_functional(layer: Any) -> bool:
    return isinstance(layer, keras.Model) and hasattr(layer, "_nodes_by_depth")


def _foldable(model: keras.Model) -> dict[str, layers.BatchNormalization]:
    """Return the BatchNorms that can be folded, by the names of the convolutions before them."""
    graph, result = Graph(model), {}
    for norm in model.layers:
        before = graph.inputs(norm.name)
        if type(norm) is layers.BatchNormalization and len(before) == 1 and _fits(before[0], norm):
            alone = graph.readers(before[0].name) == [norm]
            if alone and not graph.in_training(norm.name):
                result[before[0].name] = norm
    return result


def _fits(conv: Any, norm: layers.BatchNormalization) -> bool:
    """Say whether a layer is a convolution without activation, whose channels the BatchNorm scales."""
    return (
        type(conv) in (layers.Conv2D, layers.DepthwiseConv2D)
        and conv.activation is keras.activations.linear
        and conv.data_format == "channels_last"
        and norm.axis in (-1, 3)
    )
