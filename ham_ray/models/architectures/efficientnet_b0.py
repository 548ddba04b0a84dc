"""EfficientNet-B0 of keras.applications (Tan and Le, ICML 2019), pretrained on ImageNet at 224 px."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ham_ray.models.architecture import Architecture, NamedRecipe, Pretrained, Stage

if TYPE_CHECKING:
    import keras

_SECOND_SCALE = [1 / math.sqrt(deviation) for deviation in (0.229, 0.224, 0.225)]
RECIPES = {
    "frozen": NamedRecipe(
        {
            "epochs": 20,
            "learning_rate": 1e-3,
            "class_weight_scale": 0.5,
            "hidden_units": 256,
            "augmentation": "light",
            "patience": 6,
        },
        frozen=True,
    ),
    "finetuned": NamedRecipe(
        {
            "epochs": 18,
            "head_epochs": 1,
            "batch_size": 64,
            "learning_rate": 6e-4,
            "averaging": 0.995,
            "unfreeze_depth": 6,
            "class_weight_scale": 0.65,
            "label_smoothing": 0.1,
            "patience": 8,
        }
    ),
}


def as_float(images: keras.KerasTensor) -> keras.KerasTensor:
    """Take RGB 0–255 as it is: the network has its preprocessing inside."""
    from keras import layers

    return layers.Rescaling(1.0, dtype="float32")(images)


def stages(ends: tuple[str, ...], blocks: int) -> tuple[Stage, ...]:
    """Cut after the blocks that end in these layers: the stem with block 1, blocks 2 to 5, the last ones with the top.

    `blocks` counts them.
    """
    last = "|".join([*(f"block{number}" for number in range(6, blocks + 1)), "top_"])
    return (
        Stage("block1", "rescaling|normalization|stem_|block1", ends[0]),
        *(Stage(f"block{number}", f"block{number}", end) for number, end in enumerate(ends[1:], start=2)),
        Stage("top", last, "top_activation"),
    )


def named(name: str) -> dict[str, NamedRecipe]:
    """Name the two recipes after an EfficientNet."""
    return {f"{name}_{kind}": recipe for kind, recipe in RECIPES.items()}


def _build(size: int) -> keras.Model:
    """Build Keras's network with the second Rescaling that it has only where it is built with `weights="imagenet"`."""
    import keras
    from keras import layers

    plain = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(size, size, 3))

    def call(layer, *arguments, **options):
        outputs = layer(*arguments, **options)
        return layers.Rescaling(_SECOND_SCALE)(outputs) if isinstance(layer, layers.Normalization) else outputs

    return keras.models.clone_model(plain, clone_function=lambda layer: layer, call_function=call)


def _download() -> keras.Model:
    import keras

    return keras.applications.EfficientNetB0(include_top=False, weights="imagenet")


ARCHITECTURE = Architecture(
    name="efficientnet_b0",
    build=_build,
    preprocess=as_float,
    stages=stages(("block1a_project_bn", "block2b_add", "block3b_add", "block4c_add", "block5c_add"), blocks=7),
    recipes=named("efficientnet_b0"),
    pretrained=Pretrained('an EfficientNetB0 no-top .h5 file, saved from one built with weights="imagenet"', _download),
)
