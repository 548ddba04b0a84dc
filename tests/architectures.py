"""The architectures as parameters of tests, and one that only tests register."""

from __future__ import annotations

import keras
import pytest

from ham_ray.models import registry
from ham_ray.models.architecture import Architecture, NamedRecipe, Pretrained, Stage
from ham_ray.models.architectures import resnet50

USUAL = ("simple_cnn", "resnet50", "efficientnet_lite0", "dinov2_small")  # one of each kind of layers


def parameters(*more: str, usual: tuple[str, ...] = USUAL) -> list:
    """The names of all architectures, and of these; all but the usual ones are for the long tests."""
    names = [*registry.architectures(), *more]
    return [pytest.param(name, marks=[] if name in usual else [pytest.mark.long]) for name in names]


def family(name: str) -> str:
    """The last recipe of an architecture: the one that trains most."""
    return [*registry.architectures()[name].recipes][-1]


_STAGES = tuple(
    Stage(f"conv{n}", f"conv{n}_|pool{n}_", end)
    for n, end in enumerate(
        ("pool1_pool", "conv2_block3_out", "conv3_block4_out", "conv4_block23_out", "conv5_block3_out"), start=1
    )
)


def _build(size: int) -> keras.Model:
    return keras.applications.ResNet101(include_top=False, weights=None, input_shape=(size, size, 3))


RESNET101 = Architecture(
    "resnet101",
    _build,
    resnet50.bgr_minus_imagenet_mean,
    _STAGES,
    {"resnet101_top": NamedRecipe({"epochs": 1, "learning_rate": 1e-3, "unfreeze_depth": 1})},
    Pretrained("a file", lambda: keras.applications.ResNet101(include_top=False, weights="imagenet")),
    thin=lambda model: resnet50.unread_positions(model, _STAGES),
)
