"""A recipe: every knob of one training, validated before anything starts, and the named baselines."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ham_ray.data.images import FOLDS
from ham_ray.errors import UserError, unknown_name
from ham_ray.models import registry

VERSION = 1  # raised where equal fields no longer compute the same: work of another version does not go on
# What is in every record. A field that came later is in it where it differs from its default, which has to be neutral.
_ALWAYS_RECORDED = frozenset(
    "family epochs head_epochs batch_size learning_rate head_learning_rate warmup_epochs weight_decay averaging "
    "label_smoothing dropout hidden_units unfreeze_depth class_weight_scale augmentation precision select_by patience "
    "test_fold validation_fold seed".split()
)
VIEWS = {"off": 1, "light": 8}  # different images that an augmentation makes of one; others make no end of them


class Recipe(BaseModel):
    """All that decides what a training computes, except the images and the starting weights.

    Two trainings with equal recipe, images and weights give the same losses, whatever the number of workers, where each
    worker's images fit in memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    family: str
    epochs: int = Field(ge=1, description="passes over the training folds")
    head_epochs: int = Field(0, ge=0, description="the first of these epochs train the head alone")
    batch_size: int = Field(64, ge=1, description="images a step over all workers together")
    learning_rate: float = Field(gt=0, description="peak, after warm-up")
    head_learning_rate: float = Field(1e-3, gt=0, description="peak while the head trains alone")
    warmup_epochs: float = Field(1.0, ge=0, description="linear rise to the peak at the start of each phase")
    weight_decay: float = Field(0.02, ge=0, description="decoupled (AdamW); biases and normalisation are exempt")
    averaging: float = Field(
        0.0, ge=0, lt=1, description="decay a step of a moving average of what is trained, which is kept; 0 = none"
    )
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    dropout: float = Field(0.3, ge=0, lt=1, description="of the features that enter the head")
    hidden_units: int = Field(0, ge=0, description="of a hidden layer in the head; 0 = none")
    unfreeze_depth: int = Field(
        0, ge=0, description="stages trained, from the top, of a pretrained network; as many as it has = everything"
    )
    class_weight_scale: float = Field(0.0, ge=0, description="weights (N/(K·n_c))^scale; 0 = none, 1 = balanced")
    augmentation: Literal["off", "light", "strong"] = "strong"
    precision: Literal["float32", "bfloat16"] = "float32"
    select_by: Literal["macro_f1", "balanced_accuracy"] = "macro_f1"
    patience: int = Field(0, ge=0, description="epochs without a better validation score before stopping; 0 = never")
    test_fold: int = Field(0, ge=0, lt=FOLDS)
    validation_fold: int | None = Field(1, ge=0, lt=FOLDS, description="None: trained on too; the last epoch is kept")
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.test_fold == self.validation_fold:
            raise ValueError(f"test_fold and validation_fold are both {self.test_fold}: choosing on the test fold")
        if self.validation_fold is None and self.patience:
            raise ValueError(f"patience={self.patience} without a validation fold: nothing says when to stop")
        if fault := registry.architecture(self.family).depth_fault(self.family, self.unfreeze_depth):
            raise ValueError(fault)
        if self.head_epochs and self.head_epochs >= self.epochs:
            raise ValueError(f"head_epochs={self.head_epochs} leaves no epoch of epochs={self.epochs} for the rest")
        return self

    @property
    def training_folds(self) -> list[int]:
        """The folds that are neither test nor validation."""
        return [fold for fold in range(FOLDS) if fold not in (self.test_fold, self.validation_fold)]

    def record(self) -> dict[str, Any]:
        """What runs, checkpoints and studies are bound to, as JSON: equal records are the same work.

        A field that is new to the code is not in it while it has its default, so that work begun without it goes on.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        version = {"version": VERSION} if VERSION > 1 else {}  # a record without one is of the first
        return version | {k: v for k, v in fields.items() if k in _ALWAYS_RECORDED or v != defaults[k]}

    def crossed(self) -> list[Recipe]:
        """The recipe on each split of a cross-validation: each fold tests once, the fold after it validates."""
        return [self.changed(test_fold=fold, validation_fold=(fold + 1) % FOLDS) for fold in range(FOLDS)]

    def refit(self) -> Recipe:
        """The recipe that trains on its validation fold too, to the last epoch."""
        return make_recipe(**{**self.model_dump(), "validation_fold": None, "patience": 0})

    def changed(self, **changes: Any) -> Recipe:
        """The recipe with some fields replaced, validated again; None leaves a field as it is."""
        return make_recipe(**{**self.model_dump(), **{k: v for k, v in changes.items() if v is not None}})


BASELINES = registry.RECIPES  # the named recipes of all architectures


def baseline(family: str) -> Recipe:
    """The named baseline's recipe."""
    if family not in BASELINES:
        raise unknown_name("family", family, BASELINES)
    return make_recipe(family=family, **BASELINES[family].fields)


def make_recipe(**fields: Any) -> Recipe:
    """A validated recipe.

    Raises:
        UserError: an unknown field (with the near names), a value out of range, or fields that contradict each other.
    """
    for name in fields:
        if name not in Recipe.model_fields:
            raise unknown_name("recipe field", name, Recipe.model_fields)
    try:
        return Recipe(**fields)
    except ValidationError as error:
        raise UserError("; ".join(map(_in_words, error.errors()))) from None


def _in_words(error: ErrorDetails) -> str:
    """pydantic's finding; of fields that contradict each other the message alone, for it names them."""
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}, got {error['input']!r}"[:200]


def digest(*parts: Any) -> str:
    """Eight hex digits that name JSON-serialisable content: the same content, the same name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
