"""What any model has to beat: two trivial baselines fitted on the same folds.

`always_<dx>` knows only how frequent each class is. `thumbnail_logistic` is a logistic regression on 12×9-pixel RGB
thumbnails: no deep network, no weights, seconds on a CPU; on HAM10000 with lesion-grouped folds its macro-F1 is .37.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ham_ray.console import progress
from ham_ray.data.classes import Classes
from ham_ray.data.images import Images, table_files
from ham_ray.data.pictures import THUMBNAIL, thumbnail
from ham_ray.data.stored import decode
from ham_ray.errors import UserError
from ham_ray.evaluation.predictions import predictions
from ham_ray.hardware import cores

THUMBNAIL_BASELINE = "thumbnail_logistic"
# At scikit-learn's C = 1 the solver is still moving after 600 iterations, and where it stops decides the figures
# (macro-F1 .354 after 100, .347 after 600). At .01 it ends after 100, no worse in macro-F1 and better in AUC.
STRENGTH = 0.01
MAX_ITERATIONS = 1000
MOST_FITTED = 20_000  # images the regression learns from, drawn where there are more: its memory stays bounded
_BATCH = 256  # encoded images in memory at once: some 4 MB at 128 px


def trivial_baselines(images: Images, splits: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Fit both baselines; return their PREDICTIONS of validation and test, by name; some 10 s for 10,015 images.

    Args:
        images: the table `splits` were taken from; its pixels are read batch by batch.
        splits: rows of `images.rows` under "training", "validation" and "test".

    Raises:
        UserError: the training images hold fewer than two classes, or an image is not in the table.
    """
    classes = images.classes
    labels = splits["training"]["label"].to_numpy()
    shares = class_shares(labels, len(classes))
    fitted = splits["training"]
    fitted = fitted.sample(MOST_FITTED, random_state=0) if len(fitted) > MOST_FITTED else fitted
    logistic = fit_logistic(thumbnails(images, fitted), fitted["label"].to_numpy(), classes)

    frequent, learned = [], []
    for split in ("validation", "test"):
        rows = splits[split]
        frequent.append(predictions(rows, split, np.tile(shares, (len(rows), 1)), classes))
        p = probabilities(logistic, thumbnails(images, rows), len(classes))
        learned.append(predictions(rows, split, p, classes))
    return {
        f"always_{classes.codes[shares.argmax()]}": pd.concat(frequent, ignore_index=True),
        THUMBNAIL_BASELINE: pd.concat(learned, ignore_index=True),
    }


def class_shares(labels: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Compute the share of each class, float64[K]: as constant probabilities they predict the most frequent one."""
    return np.bincount(labels, minlength=classes) / len(labels)


def fit_logistic(x: NDArray, labels: NDArray[np.integer], classes: Classes) -> Pipeline:
    """Fit a class-balanced logistic regression on standardised features x[N, D] and labels int[N].

    Raises:
        UserError: fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"the training images are all {classes.codes[labels[0]]}: nothing can be learned from one class"
        )
    logistic = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=MAX_ITERATIONS)
    return make_pipeline(StandardScaler(), logistic).fit(x.astype(np.float32), labels)


def probabilities(model: Pipeline, x: NDArray, classes: int) -> NDArray[np.float64]:
    """Predict the probabilities in the order of labels, float64[N, K]; 0 for classes the model never saw."""
    p = np.zeros((len(x), classes))
    for rows in (slice(start, start + MOST_FITTED) for start in range(0, len(x), MOST_FITTED)):
        p[rows, model.classes_] = model.predict_proba(x[rows].astype(np.float32))
    return p


def thumbnails(images: Images, rows: pd.DataFrame) -> NDArray[np.uint8]:
    """Read the thumbnails of rows of the table, uint8[n, 324]: 9 rows of 12 RGB pixels.

    A table of schema version 1 has none: they are made of its images, some at a time.
    """
    filesystem, files = table_files(images.uri)
    if images.card["schema_version"] > 1:
        dataset = pads.dataset(files, filesystem=filesystem, format="parquet")
        column = dataset.to_table(columns=["thumbnail"])["thumbnail"].take(rows.index.to_numpy())
        return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(len(rows), 3 * math.prod(THUMBNAIL))
    made: list[bytes] = []
    with progress("thumbnails", "images") as advance, ThreadPoolExecutor(cores()) as pool:  # Pillow needs no lock
        for stretch in images.stored(rows).stretches(_BATCH):
            made += pool.map(_thumbnail, stretch.encoded())
            advance(len(made), len(rows))
    return np.frombuffer(b"".join(made), np.uint8).reshape(len(rows), 3 * math.prod(THUMBNAIL))


def _thumbnail(encoded: bytes) -> bytes:
    return thumbnail(Image.fromarray(decode(encoded)))
