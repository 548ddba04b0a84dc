"""DINOv2 ViT-S/14 without registers (Oquab et al., 2023): trained without labels on 142 million photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ham_ray.models.architecture import Architecture, NamedRecipe, Pretrained, class_token_and_mean, grad_cam_of_tokens
from ham_ray.models.vision_transformer import Embedding, Shape, load

if TYPE_CHECKING:
    import keras

SHAPE = Shape(patch=14, width=384, blocks=12, heads=6, hidden=1536, scaled=True)
TRAINED_AT = 518  # pixels: the side of the images that the positions are of


def made(name: str, shape: Shape, recipes: dict[str, NamedRecipe]) -> Architecture:
    """Make a DINOv2 of this shape; `name` is that of keras-hub's preset too."""
    return Architecture(
        name=name,
        build=lambda size: shape.build(size, name),
        preprocess=imagenet_scaled,
        stages=shape.stages(),
        recipes=recipes,
        pretrained=Pretrained(
            f"the .weights.h5 file of keras_hub.models.DINOV2Backbone, {name}",
            download=lambda: _download(name, shape),
            load=lambda model, path: load(model, path, _hub(shape, 224), _embedding),
        ),
        pool=class_token_and_mean,
        saliency=grad_cam_of_tokens,
        sizes=range(28, 1025),
        patch=shape.patch,
        deepest_cached=3,
    )


def imagenet_scaled(images: keras.KerasTensor) -> keras.KerasTensor:
    """Scale RGB 0–255 by ImageNet's mean and standard deviation."""
    from keras import layers

    mean, deviation = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    return layers.Normalization(mean=mean, variance=[one**2 for one in deviation], dtype="float32")(images)


def _hub(shape: Shape, size: int) -> keras.Model:
    import keras_hub

    return keras_hub.models.DINOV2Backbone(
        patch_size=shape.patch,
        num_layers=shape.blocks,
        hidden_dim=shape.width,
        num_heads=shape.heads,
        intermediate_dim=shape.hidden,
        use_mask_token=False,
        image_shape=(size, size, 3),
        position_embedding_shape=(TRAINED_AT, TRAINED_AT),
    )


def _embedding(network: keras.Model) -> Embedding:
    layer = network.embeddings
    projection = layer.patch_embeddings.projection
    parts = (projection.kernel, projection.bias, layer.cls_token[0, 0], layer.position_embeddings[0])
    return Embedding(*(part.numpy() for part in parts))


def _download(name: str, shape: Shape) -> keras.Model:
    """Build keras-hub's network with the weights of its preset, but for the mask token that only its training needs."""
    import keras_hub

    preset, network = keras_hub.models.Backbone.from_preset(name), _hub(shape, TRAINED_AT)
    values = {variable.path: variable for variable in preset.variables}
    for variable in network.variables:
        path = variable.path.replace("interpolated_", "")  # at that size they are the positions themselves
        variable.assign(values[path])
    return network


ARCHITECTURE = made(
    "dinov2_small",
    SHAPE,
    recipes={
        "dinov2_small_frozen": NamedRecipe(
            {
                "epochs": 30,
                "learning_rate": 1e-3,
                "class_weight_scale": 0.5,
                "augmentation": "light",
                "patience": 8,
            },
            frozen=True,
        ),
        "dinov2_small_finetuned": NamedRecipe(
            {
                "epochs": 12,
                "head_epochs": 1,
                "learning_rate": 5e-5,
                "averaging": 0.99,
                "unfreeze_depth": 2,
                "class_weight_scale": 0.65,
                "label_smoothing": 0.1,
                "augmentation": "light",
                "patience": 6,
            }
        ),
    },
)
