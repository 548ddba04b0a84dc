"""What any model has to beat: two floors fitted on the same folds, and the figures of the original study.

`always_<dx>` knows only how frequent each class is. `thumbnail_logistic` is a logistic regression on 12×9-pixel RGB
thumbnails: no deep network, no weights, seconds on a CPU; on HAM10000 with lesion-grouped folds its macro-F1 is .37.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ham_ray.data.images import Images, decode, table_files
from ham_ray.diagnoses import CODES
from ham_ray.errors import UserError
from ham_ray.evaluation.predictions import predictions

WIDTH, HEIGHT = 12, 9  # of a thumbnail in pixels
THUMBNAIL_FLOOR = "thumbnail_logistic"
# At scikit-learn's C = 1 the solver is still moving after 600 iterations, and where it stops decides the figures
# (macro-F1 .354 after 100, .347 after 600). At .01 it ends after 100, no worse in macro-F1 and better in AUC.
STRENGTH = 0.01
MAX_ITERATIONS = 1000
_BATCH = 256  # encoded images in memory at once: about 10 MB at 128 px


@dataclass(frozen=True)
class Published:
    """A published model's figures on a split that is not ours."""

    name: str
    accuracy: float
    macro_f1: float
    weighted_f1: float


ORIGINAL_STUDY = (
    Published("original: simple CNN", 0.48, 0.30, 0.54),
    Published("original: ResNet50 frozen", 0.67, 0.12, 0.54),
    Published("original: ResNet50 fine-tuned, class weights", 0.66, 0.29, 0.66),
)
ORIGINAL_SPLIT = "its own, not stated: not comparable"
_HAM10000 = range(24306, 34321)  # the numbers of its images, ISIC_0024306 to ISIC_0034320


def of_ham10000(image_ids: Iterable[str]) -> bool:
    """Whether all images are of HAM10000, by their names: only then the original study's figures may stand beside."""
    numbers = (image_id.removeprefix("ISIC_") for image_id in image_ids)
    return all(number.isdigit() and len(number) == 7 and int(number) in _HAM10000 for number in numbers)


def floors(images: Images, splits: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Both floors' PREDICTIONS of validation and test, by name; about 10 s for 10,015 images on two cores.

    Args:
        images: the table `splits` were taken from; its pixels are read batch by batch.
        splits: rows of `images.rows` under "training", "validation" and "test".

    Raises:
        UserError: the training images hold fewer than two classes, or an image is not in the table.
    """
    training = splits["training"]
    labels = training["label"].to_numpy()
    shares = class_shares(labels)
    features = thumbnails(images, pd.concat(splits.values())["image_id"].tolist())
    logistic = fit_logistic(features.loc[training["image_id"]].to_numpy(), labels)

    frequent, thumbnail = [], []
    for split in ("validation", "test"):
        rows = splits[split]
        frequent.append(predictions(rows, split, np.tile(shares, (len(rows), 1))))
        thumbnail.append(predictions(rows, split, probabilities(logistic, features.loc[rows["image_id"]].to_numpy())))
    return {
        f"always_{CODES[shares.argmax()]}": pd.concat(frequent, ignore_index=True),
        THUMBNAIL_FLOOR: pd.concat(thumbnail, ignore_index=True),
    }


def class_shares(labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """The share of each class, float64[7]: as constant probabilities, the most frequent class is always predicted."""
    return np.bincount(labels, minlength=len(CODES)) / len(labels)


def fit_logistic(x: NDArray[np.floating], labels: NDArray[np.integer]) -> Pipeline:
    """A class-balanced logistic regression on standardised features x[N, D].

    Raises:
        UserError: fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise UserError(f"the training images are all {CODES[labels[0]]}: nothing can be learned from one class")
    logistic = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=MAX_ITERATIONS)
    return make_pipeline(StandardScaler(), logistic).fit(x, labels)


def probabilities(model: Pipeline, x: NDArray[np.floating]) -> NDArray[np.float64]:
    """The model's probabilities in the order of `diagnoses.CODES`, float64[N, 7]; 0 for classes it never saw."""
    p = np.zeros((len(x), len(CODES)))
    if len(x):
        p[:, model.classes_] = model.predict_proba(x)
    return p


def thumbnails(images: Images, image_ids: Sequence[str]) -> pd.DataFrame:
    """Thumbnails float32[N, 324] (9 rows of 12 RGB pixels, 0-255), indexed by image_id; decoded batch by batch.

    Raises:
        UserError: an image is not in the table.
    """
    wanted = set(image_ids)
    found: list[str] = []
    pixels: list[NDArray[np.float32]] = []
    # two threads: Pillow decodes and resizes without the interpreter lock
    with ThreadPoolExecutor(2) as pool:
        for ids, encoded in _encoded(images):
            chosen = [place for place, image_id in enumerate(ids) if image_id in wanted]
            found += [ids[place] for place in chosen]
            pixels += pool.map(thumbnail, [encoded[place] for place in chosen])
    missing = sorted(wanted.difference(found))
    if missing:
        raise UserError(f"{len(missing)} images are not in {images.uri}: {', '.join(missing[:5])}")
    return pd.DataFrame(np.reshape(pixels, (len(found), 3 * WIDTH * HEIGHT)), index=found)


def thumbnail(encoded: bytes) -> NDArray[np.float32]:
    """Encoded image to float32[324], antialiased: every source pixel counts."""
    small = Image.fromarray(decode(encoded)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).ravel()


def _encoded(images: Images) -> Iterator[tuple[list[str], list[bytes]]]:
    """Batches of image ids and encoded images, in the order of the files."""
    filesystem, files = table_files(images.uri)
    dataset = pads.dataset(files, filesystem=filesystem, format="parquet")
    for batch in dataset.to_batches(columns=["image_id", "image"], batch_size=_BATCH, batch_readahead=1):
        yield batch["image_id"].to_pylist(), batch["image"].to_pylist()
