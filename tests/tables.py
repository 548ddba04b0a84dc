"""IMAGES tables as tests look at them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ham_ray.data.images import open_images


def by_id(uri: str | Path) -> pd.DataFrame:
    """The rows of a table, sorted by image_id: they are stored in an order that does not know it."""
    return open_images(str(uri)).rows.sort_values("image_id", ignore_index=True)
