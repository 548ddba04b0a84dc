"""EfficientNet-Lite0 (Google, 2020): B0 without squeeze and excitation, with ReLU6; of keras-hub, as plain layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ham_ray.models.architecture import Architecture, Pretrained
from ham_ray.models.architectures.efficientnet_b0 import named, stages

if TYPE_CHECKING:
    import keras


def _build(size: int) -> keras.Model:
    """Build keras-hub's network as a model of plain Keras layers, which loads without keras-hub."""
    import keras
    import keras_hub

    blocks = 7
    network = keras_hub.models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        stackwise_block_types=["v1"] * blocks,
        stackwise_squeeze_and_excite_ratios=[0] * blocks,
        stackwise_width_coefficients=[1.0] * blocks,
        stackwise_depth_coefficients=[1.0] * blocks,
        min_depth=None,
        include_stem_padding=True,
        use_depth_divisor_as_min_depth=True,
        cap_round_filter_decrease=True,
        stem_conv_padding="valid",
        batch_norm_epsilon=1e-3,
        dropout=0,
        activation="relu6",
        projection_activation=None,
        input_shape=(size, size, 3),
    )
    return keras.Model(network.input, network.output, name="efficientnet_lite0")


def _preprocess(images: keras.KerasTensor) -> keras.KerasTensor:
    """Scale RGB 0–255 to about −1…1, as Google trained it."""
    from keras import layers

    return layers.Rescaling(1 / 128, offset=-127 / 128, dtype="float32")(images)


# No download: keras-hub's preset was trained by others, with another preprocessing.
ARCHITECTURE = Architecture(
    name="efficientnet_lite0",
    build=_build,
    preprocess=_preprocess,
    stages=stages(("block1a_project_bn", "block2b_add", "block3b_add", "block4c_add", "block5c_add"), blocks=7),
    recipes=named("efficientnet_lite0"),
    pretrained=Pretrained("a .weights.h5 file of keras_hub.models.EfficientNetBackbone with Google's weights"),
)
