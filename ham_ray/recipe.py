"""A recipe: every choice of one training, in sections, validated before anything starts; and the named baselines.

A field goes by its dotted name (`optimizer.learning_rate`), by its own where no other field has it (`learning_rate`),
and the field `name` of a section by the section's (`augmentation`): in `--set`, in spaces, in records.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ham_ray.data.terms import FOLDS
from ham_ray.errors import UserError, unknown_name
from ham_ray.models import registry

VERSION = 1  # raised where equal fields no longer compute the same: work of another version does not go on
# What is in every record. A field that came later is in it where it differs from its default, which has to be neutral.
_ALWAYS_RECORDED = frozenset(
    [
        "family",
        "epochs",
        "head_epochs",
        "batch_size",
        "learning_rate",
        "head_learning_rate",
        "warmup_epochs",
        "weight_decay",
        "averaging",
        "label_smoothing",
        "dropout",
        "hidden_units",
        "unfreeze_depth",
        "class_weight_scale",
        "augmentation",
        "precision",
        "select_by",
        "patience",
        "test_fold",
        "validation_fold",
        "seed",
    ]
)
VIEWS = {"off": 1, "light": 8}  # different images that an augmentation makes of one; others make no end of them


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(_Section):
    """Which images teach, choose and test, and how many make a step."""

    batch_size: int = Field(64, ge=1, description="images a step over all workers together")
    test_fold: int = Field(0, ge=0, lt=FOLDS, description="predicted once, by the finished model")
    validation_fold: int | None = Field(
        1, ge=0, lt=FOLDS, description="chooses the epoch; None: trained on too, and the last epoch is kept"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.test_fold == self.validation_fold:
            raise ValueError(f"test_fold and validation_fold are both {self.test_fold}: choosing on the test fold")
        return self


class Model(_Section):
    """What of the network is made and trained, and in which precision."""

    unfreeze_depth: int = Field(
        0, ge=0, description="stages trained, from the top, of a pretrained network; as many as it has = everything"
    )
    hidden_units: int = Field(0, ge=0, description="of a hidden layer in the head; 0 = none")
    dropout: float = Field(0.3, ge=0, lt=1, description="of the features that enter the head")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the arithmetic; weights are float32")


class Optimizer(_Section):
    """AdamW, its learning-rate curve, and the moving average of the weights."""

    learning_rate: float = Field(gt=0, description="peak, after warm-up")
    head_learning_rate: float = Field(1e-3, gt=0, description="peak while the head trains alone")
    warmup_epochs: float = Field(1.0, ge=0, description="linear rise to the peak at the start of each phase")
    weight_decay: float = Field(0.02, ge=0, description="decoupled (AdamW); biases and normalisation are exempt")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="share of its learning rate that each stage leaves to the one below; 1 = all of it"
    )
    averaging: float = Field(
        0.0, ge=0, lt=1, description="decay a step of a moving average of what is trained, which is kept; 0 = none"
    )


class Loss(_Section):
    """What a training minimises: a loss of `training/objectives.py`, and its settings."""

    name: Literal["cross_entropy"] = Field("cross_entropy", description="the loss")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="share of the target given to all classes alike")
    class_weight_scale: float = Field(0.0, ge=0, description="weights (N/(K·n_c))^scale; 0 = none, 1 = balanced")


class Augmentation(_Section):
    """How training images are varied."""

    name: Literal["off", "light", "strong"] = Field(
        "strong", description="light: eight symmetries; strong: crops, rotations and colours too"
    )


class Recipe(_Section):
    """All that decides what a training computes, except the images and the starting weights.

    Two trainings with equal recipe, images and weights give the same losses, whatever the number of workers, where each
    worker's images fit in memory.
    """

    family: str = Field(description="network and named recipe that this one is made from")
    epochs: int = Field(ge=1, description="passes over the training folds")
    head_epochs: int = Field(0, ge=0, description="the first of these epochs train the head alone")
    select_by: Literal["macro_f1", "balanced_accuracy"] = Field(
        "macro_f1", description="validation metric that chooses the epoch"
    )
    patience: int = Field(0, ge=0, description="epochs without a better validation score before stopping; 0 = never")
    seed: int = Field(0, ge=0, lt=2**31, description="of initial weights, batches, augmentation and dropout")
    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    optimizer: Optimizer
    loss: Loss = Field(default_factory=Loss)
    augmentation: Augmentation = Field(default_factory=Augmentation)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.validation_fold is None and self.patience:
            raise ValueError(f"patience={self.patience} without a validation fold: nothing says when to stop")
        if fault := registry.architecture(self.family).depth_fault(self.family, self.model.unfreeze_depth):
            raise ValueError(fault)
        if self.head_epochs and self.head_epochs >= self.epochs:
            raise ValueError(f"head_epochs={self.head_epochs} leaves no epoch of epochs={self.epochs} for the rest")
        return self

    @property
    def training_folds(self) -> list[int]:
        """The folds that are neither test nor validation."""
        return [fold for fold in range(FOLDS) if fold not in (self.data.test_fold, self.data.validation_fold)]

    def flat(self) -> dict[str, Any]:
        """Return every field's value by its shortest name."""
        return {name: functools.reduce(getattr, path, self) for name, path in _PATHS.items()}

    def record(self) -> dict[str, Any]:
        """Return what runs, checkpoints and studies are bound to, as JSON: equal records are the same work.

        A field that is new to the code is left out while it has its default, so that work begun without it goes on.
        """
        version = {"version": VERSION} if VERSION > 1 else {}  # a record without one is of the first
        fields = self.flat().items()
        return version | {k: v for k, v in fields if k in _ALWAYS_RECORDED or v != field_info(k).default}

    def crossed(self) -> list[Recipe]:
        """Return the recipe on each split of a cross-validation: each fold tests once, the fold after it validates."""
        return [self.changed(test_fold=fold, validation_fold=(fold + 1) % FOLDS) for fold in range(FOLDS)]

    def refit(self) -> Recipe:
        """Return the recipe that trains on its validation fold too, to the last epoch."""
        return make_recipe(**{**self.flat(), "validation_fold": None, "patience": 0})

    def changed(self, **changes: Any) -> Recipe:
        """Return the recipe with some fields replaced, validated again; None leaves a field as it is.

        Raises:
            UserError: see `make_recipe`.
        """
        replaced = {shortest_name(name): value for name, value in changes.items() if value is not None}
        return make_recipe(**{**self.flat(), **replaced})


def _paths() -> dict[str, tuple[str, ...]]:
    """Map the shortest name of each field to its section and name, or to its name alone where it is in no section."""
    paths: list[tuple[str, ...]] = []
    for name, info in Recipe.model_fields.items():
        kind = info.annotation
        inside = kind.model_fields if isinstance(kind, type) and issubclass(kind, _Section) else None
        paths += [(name,)] if inside is None else [(name, within) for within in inside]
    count = Counter(path[-1] for path in paths)

    def shortest(path: tuple[str, ...]) -> str:
        if path[-1] == "name":
            return path[0]
        return path[-1] if count[path[-1]] == 1 else ".".join(path)

    return {shortest(path): path for path in paths}


_PATHS = _paths()
SHORTEST = {".".join(path): name for name, path in _PATHS.items()}  # by dotted names
FIELDS = tuple(_PATHS)  # by their shortest names


def shortest_name(name: str) -> str:
    """Return the shortest name of a field that goes by `name`.

    Raises:
        UserError: no field does; with the near names.
    """
    if name in _PATHS:
        return name
    if name not in SHORTEST:
        raise unknown_name("recipe field", name, SHORTEST if "." in name else FIELDS)
    return SHORTEST[name]


def field_info(name: str) -> FieldInfo:
    """Return type, default and description of the field with that shortest name."""
    *sections, last = _PATHS[name]
    model: Any = Recipe
    for section in sections:
        model = model.model_fields[section].annotation
    return model.model_fields[last]


BASELINES = registry.RECIPES  # the named recipes of all architectures


def baseline(family: str) -> Recipe:
    """Return the named baseline's recipe.

    Raises:
        UserError: an unknown family, with the near names.
    """
    if family not in BASELINES:
        raise unknown_name("family", family, BASELINES)
    return make_recipe(family=family, **BASELINES[family].fields)


def make_recipe(**fields: Any) -> Recipe:
    """Make a recipe of fields by any of their names, and validate it.

    Raises:
        UserError: an unknown field (with the near names), a value out of range, or fields that contradict each other.
    """
    nested: dict[str, Any] = {"optimizer": {}}
    for name, value in fields.items():
        *sections, last = _PATHS[shortest_name(name)]
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    try:
        return Recipe(**nested)
    except ValidationError as error:
        raise UserError("; ".join(map(_in_words, error.errors()))) from None


def _in_words(error: ErrorDetails) -> str:
    """Write pydantic's finding in words; of fields that contradict each other the message alone, for it names them."""
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    path = ".".join(map(str, error["loc"]))
    got = "" if error["type"] == "missing" else f", got {error['input']!r}"
    return f"{SHORTEST.get(path, path)}: {error['msg']}{got}"[:200]


def digest(*parts: Any) -> str:
    """Name JSON-serialisable content by eight hex digits: the same content, the same name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
