"""Three convolution blocks (32, 64, 128 filters, BatchNorm, pooling), trained from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ham_ray.models.architecture import Architecture, NamedRecipe, Stage

if TYPE_CHECKING:
    import keras

_FILTERS = {1: 32, 2: 64, 3: 128}


def _build(size: int) -> keras.Model:
    import keras
    from keras import layers

    images = x = keras.Input((size, size, 3))
    for block, filters in _FILTERS.items():
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{block}")(x)
        x = layers.MaxPooling2D(name=f"pool{block}")(x)  # before the rest of the block, which costs a quarter then
        # synchronized: statistics over the global batch, so that they do not depend on the number of workers
        x = layers.BatchNormalization(momentum=0.9, synchronized=True, name=f"bn{block}")(x)
        x = layers.ReLU(name=f"relu{block}")(x)
    return keras.Model(images, x, name="simple_cnn")


def _preprocess(images: keras.KerasTensor) -> keras.KerasTensor:
    """Scale RGB 0–255 to −1…1."""
    from keras import layers

    return layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")(images)


ARCHITECTURE = Architecture(
    name="simple_cnn",
    build=_build,
    preprocess=_preprocess,
    stages=tuple(Stage(f"block{n}", f"(conv|pool|bn|relu){n}$", f"relu{n}") for n in _FILTERS),
    recipes={
        "simple_cnn": NamedRecipe(
            {
                "epochs": 40,
                "learning_rate": 1e-3,
                "class_weight_scale": 0.5,
                "weight_decay": 0.05,
                "dropout": 0.3,
                "patience": 10,
            }
        )
    },
    trains_statistics=True,
    wanted=128,  # that of the original study
    sizes=range(16, 1025),
)
