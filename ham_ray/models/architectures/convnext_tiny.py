"""ConvNeXt-Tiny of keras.applications (Liu et al., CVPR 2022), pretrained on ImageNet at 224 px."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ham_ray.models.architecture import Architecture, NamedRecipe, Pretrained, Stage
from ham_ray.models.architectures.efficientnet_b0 import RECIPES, as_float

if TYPE_CHECKING:
    import keras

_HALVING = [f"convnext_tiny_downsampling_block_{number}" for number in range(3)]


def _stages() -> tuple[Stage, ...]:
    """Cut after each halving: the sums that end the blocks before it have no names."""
    stem = "|convnext_tiny_(pre)?stem"
    return (
        *(
            Stage(f"stage{number}", f"convnext_tiny_stage_{number}_|{end}{stem if number == 0 else ''}", end)
            for number, end in enumerate(_HALVING)
        ),
        Stage("stage3", "convnext_tiny_stage_3_|layer_normalization", "layer_normalization"),
    )


def _build(size: int) -> keras.Model:
    import keras

    return keras.applications.ConvNeXtTiny(include_top=False, weights=None, input_shape=(size, size, 3))


def _download() -> keras.Model:
    import keras

    return keras.applications.ConvNeXtTiny(include_top=False, weights="imagenet")


ARCHITECTURE = Architecture(
    name="convnext_tiny",
    build=_build,
    preprocess=as_float,
    stages=_stages(),
    recipes={
        "convnext_tiny_frozen": RECIPES["frozen"],
        "convnext_tiny_finetuned": NamedRecipe(
            {**RECIPES["finetuned"].fields, "learning_rate": 1e-4, "unfreeze_depth": 4}
        ),
    },
    pretrained=Pretrained("a ConvNeXtTiny no-top .h5 file", _download),
    layers=frozenset({("keras.src.applications.convnext", "LayerScale")}),
)
