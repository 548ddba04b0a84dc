"""DINOv2 ViT-B/14 without registers: twice as wide as `dinov2_small`, four times the work."""

from __future__ import annotations

from ham_ray.models.architecture import NamedRecipe
from ham_ray.models.architectures import dinov2_small
from ham_ray.models.vision_transformer import Shape

_SMALL = dinov2_small.ARCHITECTURE.recipes

ARCHITECTURE = dinov2_small.made(
    "dinov2_base",
    Shape(patch=14, width=768, blocks=12, heads=12, hidden=3072, scaled=True),
    recipes={
        "dinov2_base_frozen": _SMALL["dinov2_small_frozen"],
        "dinov2_base_finetuned": NamedRecipe({**_SMALL["dinov2_small_finetuned"].fields, "learning_rate": 3e-5}),
    },
)
