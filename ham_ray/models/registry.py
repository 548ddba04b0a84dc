"""The architectures by name: those of the package `architectures`, a file each, and the recipes that they name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from ham_ray.errors import unknown_name
from ham_ray.models import architectures as package
from ham_ray.models.architecture import Architecture, NamedRecipe

if TYPE_CHECKING:
    import keras

RECIPES: dict[str, NamedRecipe] = {}  # by family, of all architectures
_ARCHITECTURES: dict[str, Architecture] = {}
_BY_FAMILY: dict[str, Architecture] = {}


def register(architecture: Architecture) -> None:
    """Make an architecture and its recipes known.

    Raises:
        KeyError: its name, or that of one of its recipes, is taken already.
    """
    if architecture.name in _ARCHITECTURES:
        raise KeyError(f"architecture {architecture.name!r} is registered twice")
    if taken := RECIPES.keys() & architecture.recipes:
        raise KeyError(f"recipe {min(taken)!r} of {architecture.name} is one of {_BY_FAMILY[min(taken)].name} already")
    _ARCHITECTURES[architecture.name] = architecture
    RECIPES.update(architecture.recipes)
    _BY_FAMILY.update(dict.fromkeys(architecture.recipes, architecture))


def unregister(name: str) -> None:
    """Forget an architecture and its recipes."""
    for family in _ARCHITECTURES.pop(name).recipes:
        del RECIPES[family], _BY_FAMILY[family]


def architectures() -> dict[str, Architecture]:
    """Return all architectures by name."""
    return dict(_ARCHITECTURES)


def architecture(family: str) -> Architecture:
    """Return the architecture of a recipe's family.

    Raises:
        UserError: an unknown family, with the near names.
    """
    if family not in _BY_FAMILY:
        raise unknown_name("family", family, _BY_FAMILY)
    return _BY_FAMILY[family]


def of_classifier(model: keras.Model) -> Architecture | None:
    """Return the architecture of a saved classifier, by the name of the network in it; None where it is not known."""
    return next((_ARCHITECTURES[layer.name] for layer in model.layers if layer.name in _ARCHITECTURES), None)


for _module in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
    register(importlib.import_module(f"{package.__name__}.{_module}").ARCHITECTURE)
