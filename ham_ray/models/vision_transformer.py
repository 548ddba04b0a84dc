"""Vision transformers (Dosovitskiy et al., ICLR 2021) of Keras's own layers, and weights of keras-hub's for them.

keras-hub's networks are not used themselves: a saved one loses what was learned of its positions, or its blocks cannot
be read back (keras-hub 0.32). These load in any Keras and can be cut between any two blocks. Keras is
imported inside functions, see `architecture.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ham_ray.models.architecture import Stage

if TYPE_CHECKING:
    import keras
    import numpy as np

LINEAR, SCALE = "btc,cd->btd", "btc,c->btc"  # of EinsumDense: with a bias for each token; a scale for each channel
_EPSILON = 1e-6


@dataclass(frozen=True)
class Shape:
    """The sizes of a vision transformer.

    patch: side of a patch in pixels.
    width: numbers of a token; hidden: of one within a block's perceptron.
    scaled: whether each block scales what it adds (LayerScale).
    """

    patch: int
    width: int
    blocks: int
    heads: int
    hidden: int
    scaled: bool = False

    def stages(self, run: int = 2) -> tuple[Stage, ...]:
        """Cut into stages of `run` blocks; the first has the patches too, the last the normalisation at the end."""
        result = []
        for first in range(0, self.blocks, run):
            inside = [f"block{number}_" for number in range(first, first + run)]
            start, end = first == 0, first + run == self.blocks
            names = [*inside, *(["tokens"] if start else []), *(["norm$"] if end else [])]
            output = "norm" if end else f"{inside[-1]}out"
            result.append(Stage(f"blocks{first}to{first + run - 1}", "|".join(names), output))
        return tuple(result)

    def build(self, size: int, name: str) -> keras.Model:
        """Build the network: images [B, size, size, 3] to tokens [B, 1 + patches, width], the class token first.

        The class token and the positions are biases of the layer that makes tokens of patches: nothing else is added to
        a patch before the first block, and to the class token only its own position.
        """
        import keras
        from keras import layers

        side, patch = size // self.patch, self.patch
        images = keras.Input((size, size, 3), name="images")
        x = layers.Reshape((side, patch, side, patch, 3), name="rows")(images)
        x = layers.Permute((1, 3, 2, 4, 5), name="patches")(x)
        x = layers.Reshape((side * side, patch * patch * 3), name="flat")(x)
        x = layers.ZeroPadding1D((1, 0), name="padded")(x)  # where the class token will be
        x = layers.EinsumDense(
            LINEAR, (1 + side * side, self.width), bias_axes="td", kernel_initializer=_initial(), name="tokens"
        )(x)
        for number in range(self.blocks):
            x = self._block(x, f"block{number}_")
        return keras.Model(images, layers.LayerNormalization(epsilon=_EPSILON, name="norm")(x), name=name)

    def _block(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        from keras import layers

        normed = layers.LayerNormalization(epsilon=_EPSILON, name=f"{name}norm1")(x)
        attention = layers.MultiHeadAttention(
            self.heads, self.width // self.heads, kernel_initializer=_initial(), name=f"{name}attention"
        )
        x = layers.Add(name=f"{name}attended")([x, self._scale(attention(normed, normed), f"{name}scale1")])
        normed = layers.LayerNormalization(epsilon=_EPSILON, name=f"{name}norm2")(x)
        hidden = layers.Dense(self.hidden, "gelu", kernel_initializer=_initial(), name=f"{name}hidden")(normed)
        narrow = layers.Dense(self.width, kernel_initializer=_initial(), name=f"{name}narrow")(hidden)
        return layers.Add(name=f"{name}out")([x, self._scale(narrow, f"{name}scale2")])

    def _scale(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        from keras import layers

        if not self.scaled:
            return x
        return layers.EinsumDense(SCALE, x.shape[1:], kernel_initializer="ones", name=name)(x)


def _initial() -> keras.initializers.Initializer:
    import keras

    return keras.initializers.TruncatedNormal(stddev=0.02)


@dataclass(frozen=True)
class Embedding:
    """How a network makes tokens of patches.

    kernel: float[patch, patch, 3, width]; bias and token: float[width], of each patch and of the class token.
    positions: float[1 + patches, width], the class token's first.
    """

    kernel: np.ndarray
    bias: np.ndarray
    token: np.ndarray
    positions: np.ndarray


def load(model: keras.Model, path: str, theirs: keras.Model, embedding: Callable[[keras.Model], Embedding]) -> None:
    """Read a weights file of keras-hub's network `theirs` into `model`, for images of another size too."""
    import numpy as np

    theirs.load_weights(path)
    read, tokens = embedding(theirs), model.get_layer("tokens")
    count, width = tokens.bias.shape
    bias = resized(read.positions, count - 1)
    bias += np.concatenate([[read.token], np.broadcast_to(read.bias, (count - 1, width))])
    tokens.set_weights([read.kernel.reshape(-1, width), bias])
    ours = [variable for layer in model.layers if layer is not tokens for variable in layer.variables]
    after = [variable for layer in theirs.layers[2:] for variable in layer.variables]  # input and embedding are first
    for variable, value in zip(ours, after, strict=True):  # those of a block are in the same order
        variable.assign(value)


def resized(positions: np.ndarray, patches: int) -> np.ndarray:
    """Interpolate positions float[1 + n², width] for a square of so many patches: float32[1 + patches, width].

    Bicubic, as Hugging Face's transformers and keras-hub do it; that of the class token, which is the first, stays.
    """
    import numpy as np
    from keras import ops

    before, now = (round(count**0.5) for count in (len(positions) - 1, patches))
    square = positions[1:].astype(np.float32).reshape(before, before, -1)
    if before != now:
        square = np.asarray(ops.image.resize(square, (now, now), interpolation="bicubic", antialias=False))
    return np.concatenate([positions[:1].astype(np.float32), square.reshape(now * now, -1)])
