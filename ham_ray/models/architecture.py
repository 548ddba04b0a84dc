"""What an architecture is: everything this project has to know of one network, as an object that one file makes.

Reading it needs no Keras: what a recipe may say of an architecture is checked before TensorFlow starts. So files of
`architectures/` import Keras inside their functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ham_ray.errors import listed

if TYPE_CHECKING:
    import keras
    import numpy as np

    from ham_ray.models.folding import Thinning

Saliency = Callable[["keras.Model", "np.ndarray", "np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class Stage:
    """A stretch of a network that is trained as a whole or not at all.

    Args:
        layers: a regular expression that the names of its layers begin with, and of no other stage.
        output: the name of its last layer, whose output is all that the next stage reads.
    """

    name: str
    layers: str
    output: str


@dataclass(frozen=True)
class NamedRecipe:
    """The fields of a recipe that `--families` and a space's `family:` choose by name.

    Of a `frozen` one only the head is trained.
    """

    fields: dict[str, Any]
    frozen: bool = False


@dataclass(frozen=True)
class Pretrained:
    """Where pretrained weights come from.

    Args:
        file: what a user's own file of them is, in words.
        download: builds the network without top and with ImageNet weights, which it downloads or has in a cache.
        load: reads a file into `Architecture.build`'s network; None: `keras.Model.load_weights` does. With one the
            network of `download` may be another, whose files it reads.
    """

    file: str
    download: Callable[[], keras.Model] | None = None
    load: Callable[[keras.Model, str], None] | None = None


def average_pooled(features: keras.KerasTensor) -> keras.KerasTensor:
    """Average features [B, H, W, C] over positions to float32[B, C]."""
    from keras import layers

    return layers.GlobalAveragePooling2D(dtype="float32", name="pooled")(features)


def class_token_and_mean(tokens: keras.KerasTensor) -> keras.KerasTensor:
    """Join the class token and the mean of the others, of tokens [B, 1 + patches, C], to float32[B, 2 C]."""
    from keras import layers

    _, count, width = tokens.shape
    first = layers.Cropping1D((0, count - 1), dtype="float32", name="class_token")(tokens)
    others = layers.Cropping1D((1, 0), dtype="float32", name="patches")(tokens)
    mean = layers.GlobalAveragePooling1D(dtype="float32", name="pooled")(others)
    first = layers.Reshape((width,), dtype="float32", name="first")(first)
    return layers.Concatenate(dtype="float32", name="first_and_mean")([first, mean])


def grad_cam(model: keras.Model, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute Grad-CAM of networks that end in convolutions and `average_pooled`.

    Arguments and result are those of `ham_ray.models.gradcam.grad_cam`.
    """
    from ham_ray.models import gradcam  # here: it imports TensorFlow

    return gradcam.grad_cam(model, pixels, labels)


def grad_cam_of_tokens(model: keras.Model, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute Grad-CAM of networks that end in tokens of patches, at what enters their last block.

    Arguments and result are those of `ham_ray.models.gradcam.grad_cam`.
    """
    from ham_ray.models import gradcam

    return gradcam.grad_cam_of_tokens(model, pixels, labels)


@dataclass(frozen=True)
class Architecture:
    """A network, from images to features, and how it is trained.

    Args:
        build: the network without top for images of a side in pixels, randomly initialised. It has the layers that
            belong to the pretrained weights, whether they are loaded or not.
        preprocess: uint8 RGB [B, size, size, 3] to what `build`'s network takes, but for its size, in layers that are
            saved with it.
        stages: from input to output.
        recipes: by the name that is a recipe's `family`.
        pretrained: where weights come from; None: all of it is trained from scratch, whatever `unfreeze_depth` says.
        pool: the network's output to features [B, F].
        thin: what need not be computed in inference mode, of a graph with or without this network in it; None: nothing.
        trains_statistics: whether BatchNorm learns; else it keeps its statistics, scale and shift.
        saliency: maps float32[n, size, size] of what speaks for the classes of `labels` int[n] in `pixels`
            uint8[n, size, size, 3], by a saved classifier; None: there is none.
        sizes: sides of images that it takes, in pixels.
        patch: in pixels: `build` gets multiples of it, the next smaller one where images have another side.
        wanted: the side in pixels that images get where nobody says another.
        deepest_cached: the deepest `unfreeze_depth` at which keeping what the frozen stages give saves more time than
            reading it takes.
        layers: module and class of what its saved models are made of beyond Keras's common layers.
    """

    name: str
    build: Callable[[int], keras.Model]
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor]
    stages: tuple[Stage, ...]
    recipes: dict[str, NamedRecipe]
    pretrained: Pretrained | None = None
    pool: Callable[[keras.KerasTensor], keras.KerasTensor] = average_pooled
    thin: Callable[[keras.Model], Thinning] | None = None
    trains_statistics: bool = False
    saliency: Saliency | None = grad_cam
    sizes: range = range(32, 1025)
    patch: int = 1
    wanted: int = 224
    deepest_cached: int = 1
    layers: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    def size_fault(self, size: int) -> str | None:
        """Say why it takes no images of this side; None where it does."""
        if size in self.sizes:
            return None
        limits = f"{self.sizes.start} to {self.sizes.stop - 1} pixels"
        return f"{self.name} takes images of {limits}, not {size}; ingest them with another --size"

    def side(self, size: int) -> int:
        """Return the side that images of a side have in the network, in pixels."""
        return size - size % self.patch

    def depth_fault(self, family: str, depth: int) -> str | None:
        """Say why a recipe of this family cannot train the top `depth` stages; None where it can."""
        if self.pretrained is None or not depth:
            return None
        if self.recipes[family].frozen:
            others = [name for name, recipe in self.recipes.items() if not recipe.frozen]
            return f"unfreeze_depth={depth} of {family}" + (f"; unfrozen is {listed(others)}" if others else "")
        if depth > len(self.stages):
            return f"unfreeze_depth: {self.name} has {len(self.stages)} stages, got {depth}"
        return None
