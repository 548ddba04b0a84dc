"""ViT-B/16 (Dosovitskiy et al., ICLR 2021), pretrained on ImageNet-21k and ImageNet at 224 px."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ham_ray.models.architecture import Architecture, Pretrained, class_token_and_mean, grad_cam_of_tokens
from ham_ray.models.architectures import dinov2_base
from ham_ray.models.vision_transformer import Embedding, Shape, load

if TYPE_CHECKING:
    import keras

SHAPE = Shape(patch=16, width=768, blocks=12, heads=12, hidden=3072)
TRAINED_AT = 224  # pixels


def _preprocess(images: keras.KerasTensor) -> keras.KerasTensor:
    """Scale RGB 0–255 to −1…1."""
    from keras import layers

    return layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")(images)


def _hub() -> keras.Model:
    import keras_hub

    return keras_hub.models.ViTBackbone(
        image_shape=(TRAINED_AT, TRAINED_AT, 3),
        patch_size=SHAPE.patch,
        num_layers=SHAPE.blocks,
        num_heads=SHAPE.heads,
        hidden_dim=SHAPE.width,
        mlp_dim=SHAPE.hidden,
    )


def _embedding(network: keras.Model) -> Embedding:
    layer = network.layers[1]
    projection, positions = layer.patch_embedding, layer.position_embedding.embeddings
    parts = (projection.kernel, projection.bias, layer.class_token[0, 0], positions)
    return Embedding(*(part.numpy() for part in parts))


def _download() -> keras.Model:
    import keras_hub

    return keras_hub.models.Backbone.from_preset("vit_base_patch16_224_imagenet")


ARCHITECTURE = Architecture(
    name="vit_base",
    build=lambda size: SHAPE.build(size, "vit_base"),
    preprocess=_preprocess,
    stages=SHAPE.stages(),
    recipes={name.replace("dinov2", "vit"): recipe for name, recipe in dinov2_base.ARCHITECTURE.recipes.items()},
    pretrained=Pretrained(
        "the .weights.h5 file of keras_hub.models.ViTBackbone, vit_base_patch16_224_imagenet",
        download=_download,
        load=lambda model, path: load(model, path, _hub(), _embedding),
    ),
    pool=class_token_and_mean,
    saliency=grad_cam_of_tokens,
    sizes=range(32, 1025),
    patch=SHAPE.patch,
    deepest_cached=3,
)
