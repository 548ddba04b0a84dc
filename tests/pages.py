"""Pages of every kind from synthetic predictions, without training: for tests of how they look."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pandas as pd
from ham10000 import CLASSES, CODES, LABELS
from PIL import Image

from ham_ray.data.datasets.ham10000 import DATASET
from ham_ray.evaluation.predictions import predictions
from ham_ray.recipe import baseline
from ham_ray.report import gradcam_sheet, paired, report, summary
from ham_ray.report.gradcam_sheet import Attention, Corners
from ham_ray.report.report import ReportData
from ham_ray.report.search_report import SearchData
from ham_ray.report.summary import Run

SHARES = np.array([33, 51, 110, 12, 111, 670, 14])
FAMILIES = {"simple_cnn": 0.45, "resnet50_frozen": 0.0, "resnet50_finetuned": 0.8}  # how often they are right


def rows(count: int, fold: int, prefix: str) -> pd.DataFrame:
    """Images of HAM10000's mix, one to three of each lesion, with facts about them."""
    rng = np.random.default_rng(fold)
    lesion = np.repeat(np.arange(count), rng.integers(1, 4, count))[:count]
    label = rng.choice(7, count, p=SHARES / SHARES.sum())[lesion].astype(np.int32)
    names = [f"ISIC_{24306 + 2000 * fold + place:07d}" for place in range(count)]
    return pd.DataFrame(
        {
            "image_id": names,
            "lesion_id": [f"{prefix}{it}" for it in lesion],
            "group_id": [f"{prefix}{it}" for it in lesion],
            "label": label,
            "dx": [CODES[it] for it in label],
            "fold": fold,
            "age": rng.choice([25.0, 45.0, 70.0, np.nan], count),
            "sex": rng.choice(["female", "male"], count),
            "localization": rng.choice(["back", "face", "lower extremity", "trunk", "abdomen", "scalp"], count),
            "dx_type": rng.choice(["histo", "follow_up", "consensus", "confocal"], count),
        }
    )


@cache
def splits() -> dict[str, pd.DataFrame]:
    """Rows of training, validation and test."""
    return {"training": rows(1200, 2, "r"), "validation": rows(250, 1, "v"), "test": rows(250, 0, "t")}


def predicted(right: float, seed: int = 0) -> pd.DataFrame:
    """PREDICTIONS of which that share is right; the others are mostly called nv."""
    parts = []
    for split in ("validation", "test"):
        rng, found = np.random.default_rng(seed), splits()[split]
        label = found["label"].to_numpy()
        called = np.where(rng.random(len(label)) < right, label, LABELS["nv"])
        p = rng.dirichlet(np.ones(7), len(label)) * 0.5
        p[np.arange(len(label)), called] += 0.5
        parts.append(predictions(found, split, p, CLASSES))
    return pd.concat(parts, ignore_index=True)


def history(epochs: int = 12) -> pd.DataFrame:
    """A HISTORY table."""
    epoch = np.arange(1, epochs + 1)
    frame = pd.DataFrame({"epoch": epoch, "phase": np.where(epoch <= 3, "head", "all"), "best": epoch == epochs})
    for column in ("train_loss", "train_loss_unweighted", "validation_loss", "learning_rate"):
        frame[column] = 1 / epoch
    return frame.assign(validation_macro_f1=0.5, validation_balanced_accuracy=0.6, seconds=1.0, images_per_second=9.0)


@cache
def runs() -> dict[str, Run]:
    """Three families."""
    recipes = {name: baseline(name).flat() for name in FAMILIES}
    return {
        name: Run(predicted(right), history(), {"weights": "imagenet", "minutes": 2.5, "recipe": recipes[name]})
        for name, right in FAMILIES.items()
    }


@cache
def trivial() -> dict[str, pd.DataFrame]:
    """Both trivial baselines."""
    return {"always_nv": predicted(0.0, 1), "thumbnail_logistic": predicted(0.3, 1)}


def thumbnails(image_ids: list[str]) -> dict[str, bytes]:
    """Plain pictures."""
    buffer = io.BytesIO()
    Image.new("RGB", (96, 96), (190, 140, 120)).save(buffer, format="jpeg")
    return dict.fromkeys(image_ids, buffer.getvalue())


def attention(test: pd.DataFrame) -> Attention:
    """A sheet of blots, each looked at where it is."""
    shown = gradcam_sheet.choose(test)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    blots = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 150) for a, b in rng.integers(16, 48, (len(shown), 2))]
    pixels = np.stack([np.array([200, 150, 130]) - blot[..., None] * np.array([110, 90, 70]) for blot in blots])
    corners = Corners(0.04, 0.09, 0.02, 31, "melanoma", 0.2, 0.1)
    return Attention(gradcam_sheet.draw(shown, pixels.astype(np.uint8), np.stack(blots), CLASSES), corners)


@cache
def table() -> summary.Summary:
    """The closing table."""
    return summary.summarise(runs(), trivial(), "ham10000.zip at 128 px", references=DATASET)


@cache
def report_data() -> ReportData:
    """The page of three baselines."""
    return ReportData(
        title="Baselines on 2,000 images of ham10000.zip",
        summary=table(),
        runs=runs(),
        trivial=trivial(),
        facts={
            "command": "python jobs/baseline.py --data /data/a/very/long/path/to/some/archive/ham10000_300x225.zip",
            "commit": "abc1234",
            "packages": "ray 2.60.0, tensorflow 2.21.0, keras 3.15.0, optuna 5.0.0, scikit-learn 1.9.1, pandas 2.3.3",
        },
        counts=report.class_counts(splits(), CLASSES),
        classes=CLASSES,
        fingerprint="d91879853052" * 5,
        licence="CC BY-NC 4.0",
        attribution="ViDIR Group, https://doi.org/10.1038/sdata.2018.161",
        selection="validation macro-F1, fold 1",
        differences=paired.differences(runs(), trivial()),
        thumbnails=thumbnails,
        attention={name: attention(run.assessment.images) for name, run in runs().items()},
    )


def trials(count: int = 24) -> pd.DataFrame:
    """A TRIALS table."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "trial": range(count),
            "state": (["complete", "pruned", "complete", "complete"] * count)[:count],
            "balanced_accuracy": rng.uniform(0.3, 0.7, count),
            "epochs": 10,
            "learning_rate": 10 ** rng.uniform(-4, -2.7, count),
            "unfreeze_depth": rng.integers(0, 6, count),
            "class_weight_scale": rng.uniform(0, 1.5, count),
            "augmentation": (["light", "strong"] * count)[:count],
            "seconds": 600.0,
            "run": "",
            "reason": "",
        }
    )


def search_data(found: pd.DataFrame | None = None) -> SearchData:
    """The page of a search with its finals."""
    found = trials() if found is None else found
    return SearchData(
        name="resnet50-a",
        disclaimers=(),
        trials=found,
        parameters=["learning_rate", "unfreeze_depth", "class_weight_scale", "augmentation"],
        objective="balanced_accuracy",
        scores={number: {1: 0.3, 2: 0.4 + number / 100} for number in found["trial"]},
        importances={"learning_rate": 0.7, "unfreeze_depth": 0.3},
        classes=CLASSES,
        data_set="HAM10000",
        noise=0.04,
        facts={
            "command": "python jobs/tune_resnet.py --data /data/a/very/long/path/ham10000_300x225.zip",
            "commit": "abc",
        },
        finals=table(),
        finals_page="finals/report.html",
        logarithmic=frozenset({"learning_rate"}),
    )
