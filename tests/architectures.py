"""Architectures of keras.applications that only tests register: what the seam has to hold beside the project's own."""

from __future__ import annotations

import math

import keras
from keras import layers

from ham_ray.models.architecture import Architecture, NamedRecipe, Pretrained, Stage
from ham_ray.models.architectures import resnet50

_SECOND_SCALE = [1 / math.sqrt(deviation) for deviation in (0.229, 0.224, 0.225)]


def as_float(images: keras.KerasTensor) -> keras.KerasTensor:
    """RGB 0–255: the network has its preprocessing inside."""
    return layers.Rescaling(1.0, dtype="float32")(images)


def efficientnet_b0(size: int) -> keras.Model:
    """With the second Rescaling, which Keras's has only where it is built with `weights="imagenet"`."""
    plain = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(size, size, 3))

    def call(layer, *arguments, **options):
        outputs = layer(*arguments, **options)
        return layers.Rescaling(_SECOND_SCALE)(outputs) if isinstance(layer, layers.Normalization) else outputs

    return keras.models.clone_model(plain, clone_function=lambda layer: layer, call_function=call)


def made(name: str, network: str, build, stages: tuple[Stage, ...], **facts) -> Architecture:
    """An architecture of keras.applications with one recipe, which trains its top stage."""
    recipes = {f"{name}_top": NamedRecipe({"epochs": 1, "learning_rate": 1e-3, "unfreeze_depth": 1})}
    start = Pretrained("a file", lambda: getattr(keras.applications, network)(include_top=False, weights="imagenet"))
    return Architecture(name, build, facts.pop("preprocess", as_float), stages, recipes, start, **facts)


def of_keras(network: str):
    """Builds one of keras.applications without top."""
    return lambda size: getattr(keras.applications, network)(
        include_top=False, weights=None, input_shape=(size, size, 3)
    )


_RESNET101 = tuple(
    Stage(f"conv{n}", f"conv{n}_|pool{n}_", end)
    for n, end in enumerate(
        ("pool1_pool", "conv2_block3_out", "conv3_block4_out", "conv4_block23_out", "conv5_block3_out"), start=1
    )
)
_B0 = ("block1a_project_bn", "block2b_add", "block3b_add", "block4c_add", "block5c_add", "block6d_add")
_V2_B0 = ("block1a_project_activation", "block2b_add", "block3b_add", "block4c_add", "block5e_add", "block6h_add")


def _efficientnet(ends: tuple[str, ...]) -> tuple[Stage, ...]:
    """The stem with block 1, blocks 2 to 5, and the last blocks with the top."""
    last = len(ends) + (1 if ends is _B0 else 0)
    return (
        Stage("block1", "rescaling|normalization|stem_|block1", ends[0]),
        *(Stage(f"block{n}", f"block{n}", end) for n, end in enumerate(ends[1:5], start=2)),
        Stage("top", "|".join([*(f"block{n}" for n in range(6, last + 1)), "top_"]), "top_activation"),
    )


_HALVING = [f"convnext_tiny_downsampling_block_{n}" for n in range(3)]
_CONVNEXT = (  # each with the halving after it: the sums that end its blocks have no names to cut at
    *(
        Stage(f"stage{n}", f"convnext_tiny_stage_{n}_|{end}" + ("|convnext_tiny_(pre)?stem" if n == 0 else ""), end)
        for n, end in enumerate(_HALVING)
    ),
    Stage("stage3", "convnext_tiny_stage_3_|layer_normalization", "layer_normalization"),
)


OTHERS = {
    one.name: one
    for one in (
        made(
            "resnet101",
            "ResNet101",
            of_keras("ResNet101"),
            _RESNET101,
            preprocess=resnet50.bgr_minus_imagenet_mean,
            thin=lambda model: resnet50.unread_positions(model, _RESNET101),
        ),
        made("efficientnet_b0", "EfficientNetB0", efficientnet_b0, _efficientnet(_B0)),
        made("efficientnet_v2_b0", "EfficientNetV2B0", of_keras("EfficientNetV2B0"), _efficientnet(_V2_B0)),
        made(
            "convnext_tiny",
            "ConvNeXtTiny",
            of_keras("ConvNeXtTiny"),
            _CONVNEXT,
            layers=frozenset({("keras.src.applications.convnext", "LayerScale")}),
        ),
    )
}
