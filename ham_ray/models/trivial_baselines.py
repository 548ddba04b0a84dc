"""What any model has to beat: two trivial baselines fitted on the same folds.

`always_<dx>` knows only how frequent each class is. `thumbnail_logistic` is a logistic regression on 12×9-pixel RGB
thumbnails: no deep network, no weights, seconds on a CPU; on HAM10000 with lesion-grouped folds its macro-F1 is .37.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ham_ray.data.classes import Classes
from ham_ray.data.images import Images, decode, table_files
from ham_ray.errors import UserError
from ham_ray.evaluation.predictions import predictions

WIDTH, HEIGHT = 12, 9  # of a thumbnail in pixels
THUMBNAIL_BASELINE = "thumbnail_logistic"
# At scikit-learn's C = 1 the solver is still moving after 600 iterations, and where it stops decides the figures
# (macro-F1 .354 after 100, .347 after 600). At .01 it ends after 100, no worse in macro-F1 and better in AUC.
STRENGTH = 0.01
MAX_ITERATIONS = 1000
_BATCH = 256  # encoded images in memory at once: about 10 MB at 128 px


def trivial_baselines(images: Images, splits: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Fit both baselines; return their PREDICTIONS of validation and test, by name; some 10 s for 10,015 images.

    Args:
        images: the table `splits` were taken from; its pixels are read batch by batch.
        splits: rows of `images.rows` under "training", "validation" and "test".

    Raises:
        UserError: the training images hold fewer than two classes, or an image is not in the table.
    """
    training = splits["training"]
    labels = training["label"].to_numpy()
    classes = images.classes
    shares = class_shares(labels, len(classes))
    features = thumbnails(images, pd.concat(splits.values())["image_id"].tolist())
    logistic = fit_logistic(features.loc[training["image_id"]].to_numpy(), labels, classes)

    frequent, thumbnail = [], []
    for split in ("validation", "test"):
        rows = splits[split]
        frequent.append(predictions(rows, split, np.tile(shares, (len(rows), 1)), classes))
        p = probabilities(logistic, features.loc[rows["image_id"]].to_numpy(), len(classes))
        thumbnail.append(predictions(rows, split, p, classes))
    return {
        f"always_{classes.codes[shares.argmax()]}": pd.concat(frequent, ignore_index=True),
        THUMBNAIL_BASELINE: pd.concat(thumbnail, ignore_index=True),
    }


def class_shares(labels: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Compute the share of each class, float64[K]: as constant probabilities they predict the most frequent one."""
    return np.bincount(labels, minlength=classes) / len(labels)


def fit_logistic(x: NDArray[np.floating], labels: NDArray[np.integer], classes: Classes) -> Pipeline:
    """Fit a class-balanced logistic regression on standardised features x[N, D] and labels int[N].

    Raises:
        UserError: fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"the training images are all {classes.codes[labels[0]]}: nothing can be learned from one class"
        )
    logistic = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=MAX_ITERATIONS)
    return make_pipeline(StandardScaler(), logistic).fit(x, labels)


def probabilities(model: Pipeline, x: NDArray[np.floating], classes: int) -> NDArray[np.float64]:
    """Predict the probabilities in the order of labels, float64[N, K]; 0 for classes the model never saw."""
    p = np.zeros((len(x), classes))
    if len(x):
        p[:, model.classes_] = model.predict_proba(x)
    return p


def thumbnails(images: Images, image_ids: Sequence[str]) -> pd.DataFrame:
    """Make thumbnails float32[N, 324] (9 rows of 12 RGB pixels, 0-255), indexed by image_id; decoded batch by batch.

    Raises:
        UserError: an image is not in the table.
    """
    wanted = set(image_ids)
    result: list[str] = []
    pixels: list[NDArray[np.float32]] = []
    # two threads: Pillow decodes and resizes without the interpreter lock
    with ThreadPoolExecutor(2) as pool:
        for ids, encoded in _encoded(images):
            chosen = [index for index, image_id in enumerate(ids) if image_id in wanted]
            result += [ids[index] for index in chosen]
            pixels += pool.map(thumbnail, [encoded[index] for index in chosen])
    missing = sorted(wanted.difference(result))
    if missing:
        raise UserError(f"{len(missing)} images are not in {images.uri}: {', '.join(missing[:5])}")
    return pd.DataFrame(np.reshape(pixels, (len(result), 3 * WIDTH * HEIGHT)), index=result)


def thumbnail(encoded: bytes) -> NDArray[np.float32]:
    """Shrink an encoded image to float32[324], antialiased: every source pixel counts."""
    small = Image.fromarray(decode(encoded)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).ravel()


def _encoded(images: Images) -> Iterator[tuple[list[str], list[bytes]]]:
    """Yield batches of image ids and encoded images, in the order of the files."""
    filesystem, files = table_files(images.uri)
    dataset = pads.dataset(files, filesystem=filesystem, format="parquet")
    for batch in dataset.to_batches(columns=["image_id", "image"], batch_size=_BATCH, batch_readahead=1):
        yield batch["image_id"].to_pylist(), batch["image"].to_pylist()
