"""ResNet50 v1 of keras.applications (He et al., CVPR 2016), pretrained on ImageNet; a stage is a block of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ham_ray.models.architecture import Architecture, NamedRecipe, Pretrained, Stage

if TYPE_CHECKING:
    import keras

    from ham_ray.models.folding import Thinning

STAGES = (
    Stage("conv1", "(conv1|pool1)_", "pool1_pool"),
    Stage("conv2", "conv2_", "conv2_block3_out"),
    Stage("conv3", "conv3_", "conv3_block4_out"),
    Stage("conv4", "conv4_", "conv4_block6_out"),
    Stage("conv5", "conv5_", "conv5_block3_out"),
)


def _build(size: int) -> keras.Model:
    import keras

    return keras.applications.ResNet50(include_top=False, weights=None, input_shape=(size, size, 3))


def _download() -> keras.Model:
    import keras

    return keras.applications.ResNet50(include_top=False, weights="imagenet")


def bgr_minus_imagenet_mean(images: keras.KerasTensor) -> keras.KerasTensor:
    """Convert RGB 0–255 to BGR minus the ImageNet mean, not scaled: "caffe" preprocessing, as v1's weights want it.

    The result is that of `keras.applications.resnet50.preprocess_input`, in layers that a saved model loads anywhere.
    """
    from keras import layers, ops

    bgr = ops.flip(layers.Rescaling(1.0, dtype="float32")(images), axis=-1)
    return layers.Normalization(mean=[103.939, 116.779, 123.68], variance=[1.0, 1.0, 1.0], dtype="float32")(bgr)


def unread_positions(model: keras.Model, stages: tuple[Stage, ...] = STAGES) -> Thinning:
    """Find the positions that a residual stage of v1 computes and the next one does not read.

    Stages begin with 1×1 convolutions of stride 2: of what enters them only every second position is read. So the block
    before takes that stride where it convolves 3×3, and the rest is not computed. Each block is looked up in the graph;
    one of another form is computed whole.
    """
    from keras import layers

    from ham_ray.models.folding import Graph, Thinning

    graph = Graph(model)
    strides: dict[str, int] = {}
    shortcuts: set[str] = set()
    back = (layers.Activation, layers.Add, layers.BatchNormalization, layers.Conv2D, layers.Activation)
    for end in (stage.output for stage in stages):
        readers = graph.readers(end)
        path = graph.path_back(end, *back, layers.BatchNormalization, layers.Conv2D)
        if path is None or not readers or not all(_is(layer, 1, 2) for layer in readers):
            continue
        add, last, wide = path[1], path[3], path[6]
        if _is(last, 1, 1) and _is(wide, 3, 1) and wide.padding == "same":
            strides |= {layer.name: 1 for layer in readers} | {wide.name: 2}
            shortcuts.add(add.name)
    return Thinning(strides, frozenset(shortcuts))


def _is(layer: Any, side: int, stride: int) -> bool:
    """Say whether a layer is a convolution with a square kernel of this side, and of this stride."""
    from keras import layers

    return (
        type(layer) is layers.Conv2D
        and layer.kernel_size == (side, side)
        and layer.strides == (stride, stride)
        and layer.dilation_rate == (1, 1)
    )


# What experience (docs/LOG.md) adds to the study's two: right preprocessing, augmentation, warm-up.
ARCHITECTURE = Architecture(
    name="resnet50",
    build=_build,
    preprocess=bgr_minus_imagenet_mean,
    stages=STAGES,
    recipes={
        "resnet50_frozen": NamedRecipe(
            {
                "epochs": 16,
                "learning_rate": 1e-3,
                "class_weight_scale": 0.5,
                "hidden_units": 256,
                "augmentation": "light",
                "patience": 6,
            },
            frozen=True,
        ),
        "resnet50_finetuned": NamedRecipe(
            {
                "epochs": 18,
                "head_epochs": 1,
                "batch_size": 64,
                "learning_rate": 3e-4,
                "averaging": 0.995,
                "unfreeze_depth": 5,
                "class_weight_scale": 0.65,
                "label_smoothing": 0.1,
                "patience": 8,
            }
        ),
    },
    pretrained=Pretrained("a ResNet50 no-top .h5 file", _download),
    thin=unread_positions,
    wanted=128,  # that of the original study
    deepest_cached=2,  # what lies below that gives more bytes than it saves time (docs/performance.md)
)
