"""AdamW whose learning rate each variable takes a share of: lower stages of a pretrained network change less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class StagedAdamW(keras.optimizers.AdamW):
    """AdamW (Loshchilov and Hutter, ICLR 2019) with a share of the rate for each variable, of its decay too.

    Args:
        shares: in the order of the variables that it is built for.
    """

    weight_decay: Any

    def __init__(self, shares: Sequence[float], **options: Any) -> None:
        super().__init__(**options)
        self.shares = tuple(shares)

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """Take a step of a variable at its share of the rate."""
        super().update_step(gradient, variable, learning_rate * self._share(variable))

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        whole = self.weight_decay
        for share in sorted(set(self.shares)):
            self.weight_decay = share * whole
            super()._apply_weight_decay([one for one in variables if self._share(one) == share])
        self.weight_decay = whole

    def _share(self, variable: Any) -> float:
        return self.shares[self._get_variable_index(variable)]
