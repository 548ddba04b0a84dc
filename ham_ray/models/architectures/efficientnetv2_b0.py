"""EfficientNetV2-B0 of keras.applications (Tan and Le, ICML 2021), pretrained on ImageNet at 224 px."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ham_ray.models.architecture import Architecture, Pretrained
from ham_ray.models.architectures.efficientnet_b0 import as_float, named, stages

if TYPE_CHECKING:
    import keras


def _build(size: int) -> keras.Model:
    import keras

    return keras.applications.EfficientNetV2B0(include_top=False, weights=None, input_shape=(size, size, 3))


def _download() -> keras.Model:
    import keras

    return keras.applications.EfficientNetV2B0(include_top=False, weights="imagenet")


ARCHITECTURE = Architecture(
    name="efficientnetv2_b0",
    build=_build,
    preprocess=as_float,
    stages=stages(("block1a_project_activation", "block2b_add", "block3b_add", "block4c_add", "block5e_add"), blocks=6),
    recipes=named("efficientnetv2_b0"),
    pretrained=Pretrained("an EfficientNetV2B0 no-top .h5 file", _download),
)
