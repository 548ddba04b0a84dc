"""The prediction job: from its options to a table of predictions, a list of what could not be read, and a manifest."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ham_ray import runs, storage
from ham_ray.cluster import check_visible, has_gpus
from ham_ray.console import progress
from ham_ray.data import quarantine
from ham_ray.data.classes import common
from ham_ray.data.gallery import BESIDE, Gallery
from ham_ray.data.quarantine import Finding
from ham_ray.data.truth import labels
from ham_ray.errors import UserError, some
from ham_ray.evaluation import isic, metrics, predictions
from ham_ray.evaluation.predictions import FACTS
from ham_ray.inference import pipeline, saved
from ham_ray.inference.pipeline import InferenceConfig
from ham_ray.inference.saved import Saved
from ham_ray.progress import step
from ham_ray.recipe import VIEWS
from ham_ray.report.summary import RANDOM_WEIGHTS, disclaimers
from ham_ray.resumable import UNOPENED, Parts, work_folder, work_path
from ham_ray.runs import MANIFEST
from ham_ray.workflows.predict import Options
from ham_ray.workflows.steps import choices

QUARANTINE = "quarantine.csv"  # beside the predictions, their name before
MANY = 1000  # images from which a second, quicker version of each model pays
NO_SPLIT = (
    "nothing beside {} says which images it learned from, so all count as new to it; figures of those that it did "
    "learn from would be too good"
)
_COMPARED = 64  # images on which the two versions are compared


def run(options: Options) -> dict[str, Any]:
    """Predict, or go on with it; return the manifest, which says what was predicted and what was not.

    Raises:
        UserError: an option that cannot be met, before anything is predicted; or not one image could be read.
    """
    options.check()
    models, (_, geometry), gallery = options.found, options.pixels, options.gallery
    owned = [(model.name, model.classes) for model in models]
    classes = common(owned, "the models are", "predict with each by itself")
    if options.format == "isic":
        isic.challenge_of(classes)
    if not any(model.geometry for model in models) and not options.geometry:
        print(f"geometry: {geometry}, because no run beside the model says it (--geometry)")
    choices.tell_temporary(options.out)
    check_visible(storage.absolute(options.images), "--images")
    for model in models:
        for member in model.members:
            check_visible(member, "--model")
    sizes = tuple(model.size for model in models)
    each = " and ".join(f"{one} px" for one in sorted(set(sizes)))
    print(f"images: {len(gallery.rows):,} in {options.images}, {each} ({geometry})", flush=True)
    views = VIEWS["light"] if options.tta else max(model.views for model in models)
    precision = _precision(options.precision, models, gallery)
    config = InferenceConfig(tuple(model.members for model in models), sizes, views, precision, options.batch_size)
    identity = _identity(options, models, gallery, geometry, config)
    for model in models:
        print(f"model: {_described(model, options.raw)}, {views} view(s) of each image", flush=True)
        if not model.splits:
            print(f"split: {NO_SPLIT.format(model.name)}", flush=True)
    path, target = storage.sibling(options.out, MANIFEST), storage.absolute(options.out)
    if storage.exists(path) and storage.exists(options.out):
        result = _same(path, identity, options.out)
        shutil.rmtree(work_path(target), ignore_errors=True)  # of a job killed right after its last step
        if not (unopened := result["quarantined"].get(UNOPENED)):
            print(f"{options.out} is finished already: same models, same images, same options")
            return result
        print(f"{options.out}: {unopened} images could not be opened; predicting again")
    with work_folder(work_path(target)) as folder:
        kept = Parts(folder, identity, pipeline.SCHEMA)
        numbers = _fill(kept, gallery, config)
        table = pa.concat_tables(kept.read(numbers, pipeline.SCHEMA.names)).to_pandas()
        return _write(table, gallery, models, options, identity)


def _precision(asked: str, models: list[Saved], gallery: Gallery) -> str:
    """Choose what the convolutions compute in, and print the reason; for bfloat16 also what it changes."""
    if asked == "auto" and len(gallery.rows) < MANY:
        print(f"precision: float32, because another version of the model pays from {MANY:,} images on")
        return "float32"
    chosen = choices.precision(asked, has_gpus())
    if chosen == "bfloat16":
        member = next(iter(models[0].members))
        pixels = gallery.at(models[0].size).load(slice(0, _COMPARED)).pixels
        with step("comparing bfloat16 with float32"):
            result = [np.asarray(saved.load(member, kind)(pixels)) for kind in ("float32", "bfloat16")]
        greatest = float(np.abs(result[0] - result[1]).max()) if len(pixels) else 0.0
        print(f"precision: no probability of the first {len(pixels)} images differs by more than {greatest:.4f}")
    return chosen


def _described(model: Saved, raw: bool) -> str:
    fitted = model.calibration
    if fitted is None:
        how = "not calibrated: nothing beside it says how"
    elif raw:
        how = "not calibrated (--raw)"
    else:
        how = fitted.verdict
    return f"{model.name}, {len(model.members)} network(s), {how}"


def _identity(
    options: Options, models: list[Saved], gallery: Gallery, geometry: str, config: InferenceConfig
) -> dict[str, Any]:
    """Collect what each prediction depends on, and the format that they are written in."""
    calibrations = [
        model.calibration.applied_values if model.calibration and not options.raw else None for model in models
    ]
    identity = {
        "models": [model.content for model in models],
        "images": gallery.signature,
        "pixels": [*config.pixels, geometry],
        "views": config.views,
        "precision": config.precision,
        "calibrations": calibrations,
        "format": options.format,
    }
    return json.loads(json.dumps(identity))


def _same(path: str, identity: dict[str, Any], out: str) -> dict[str, Any]:
    """Read the manifest at `path`; refuse one of other predictions."""
    result = storage.read_object(path, f"delete it and {out}")
    known = result.get("identity")
    different = [name for name, value in identity.items() if not isinstance(known, dict) or known.get(name) != value]
    if different:
        raise UserError(
            f"--out {out} holds predictions with other {', '.join(different)}; choose another --out, or delete it and "
            f"{path}"
        )
    return result


def _fill(kept: Parts, gallery: Gallery, config: InferenceConfig) -> list[int]:
    stretches = pipeline.chunks(gallery, max(config.pixels))
    images = {number: len(gallery.rows.iloc[stretch]) for number, stretch in enumerate(stretches)}

    def work(missing: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
        if len(missing) < len(images):
            print(f"going on: {len(images) - len(missing)} of {len(images)} parts are there", flush=True)
        return pipeline.predicted(gallery, config, missing)

    with (
        step("prediction", f"{sum(images.values()):,} images in {config.views} view(s)"),
        progress("prediction") as advance,
    ):
        kept.fill(images, work, advance)
    return list(images)


def _write(
    table: pd.DataFrame, gallery: Gallery, models: list[Saved], options: Options, identity: dict[str, Any]
) -> dict[str, Any]:
    """Write the finished files: quarantine, predictions and, last, the manifest; return the manifest."""
    bad = table[table["reason"] != ""]
    findings = [Finding(*values) for values in zip(*(bad[name] for name in Finding._fields), strict=True)]
    findings += gallery.left_out
    listed = storage.sibling(options.out, QUARANTINE)
    storage.write_bytes(listed, quarantine.to_csv(findings))
    if len(bad) == len(table):
        reasons = _counted(quarantine.counts(findings))
        raise UserError(
            f"not one of the {len(table)} images in {options.images} could be read: {reasons}; see {listed}"
        )
    frame = _frame(table[table["reason"] == ""], gallery, models, options.raw)
    notes = saved.name_notes(models, frame["image_id"])
    print(*notes, sep="\n", end="\n" if notes else "")
    with storage.writing(options.out) as path:
        if options.format == "parquet":
            predictions.write(frame, str(path))
        else:
            path.write_bytes(isic.to_csv(frame) if options.format == "isic" else frame.to_csv(index=False).encode())
    classes = models[0].classes
    manifest = {
        "identity": identity,
        "environment": runs.environment(),
        "models": [{"name": m.name, "members": m.members, "weights": m.weights} for m in models],
        "warnings": [
            *(NO_SPLIT.format(model.name) for model in models if not model.splits),
            *notes,
        ],
        "synthetic": predictions.drawn(frame),
        "images": options.images,
        "predicted": len(frame),
        "called": dict(
            Counter(classes.codes[label] for label in metrics.predicted(frame[classes.probabilities].to_numpy()))
        ),
        "splits": dict(Counter(frame["split"])),
        "labelled": int(frame["y_true"].notna().sum()),
        "quarantined": quarantine.counts(finding for finding in findings if finding.reason not in BESIDE),
        "left_out": quarantine.counts(finding for finding in findings if finding.reason in BESIDE),
        "hidden": dict(gallery.hidden.most_common()),
    }
    storage.write_bytes(storage.sibling(options.out, MANIFEST), runs.to_json(manifest))
    return manifest


def show(manifest: dict[str, Any], out: str) -> None:
    """Print the closing lines of a prediction job."""
    called = ", ".join(f"{count:,} {dx}" for dx, count in Counter(manifest["called"]).most_common())
    print(f"{manifest['predicted']:,} images predicted; by predicted class: {called}")
    if manifest["quarantined"]:
        print(f"not predicted: {_counted(manifest['quarantined'])}; see {storage.sibling(out, QUARANTINE)}")
    if (lost := sum(manifest["quarantined"].values())) > manifest["predicted"]:
        print(f"! more files were not predicted ({lost:,}) than predicted ({manifest['predicted']:,})")
    if manifest.get("left_out"):
        print(f"left out: {_counted(manifest['left_out'])}; listed there too")
    if hidden := manifest.get("hidden"):
        print(f"hidden files, folders and those of tools, not looked into: {sum(hidden.values()):,} ({some(hidden)})")
    learned = {split: count for split, count in manifest["splits"].items() if split in ("training", "validation")}
    if learned:
        message = ", ".join(f"{count:,} {split}" for split, count in learned.items())
        print(f"a model has learned from, or was chosen by, some of these images ({message}): see the column split")
    random = any(m["weights"] == RANDOM_WEIGHTS for m in manifest["models"])
    for label in disclaimers(manifest["synthetic"], random, ungrouped=False):
        print(label)
    print(f"predictions: {out}")


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())


def _frame(good: pd.DataFrame, gallery: Gallery, models: list[Saved], raw: bool) -> pd.DataFrame:
    """Make PREDICTIONS in the order of image_id.

    The probabilities are calibrated ones, with raw ones beside them; with `raw` they are raw, with calibrated ones
    beside them.
    """
    classes = models[0].classes
    rows = gallery.rows.set_index("image_id", drop=False)
    good = good.sort_values("image_id", ignore_index=True)
    known = rows.loc[good["image_id"]].reset_index(drop=True)
    values = np.stack(good["raw"].to_list()).reshape(len(good), len(models), len(classes))
    frame = known[["image_id", "lesion_id", "group_id", "fold"]].copy()
    frame["split"] = [saved.split_of(models, *ids) for ids in zip(frame["image_id"], frame["group_id"], strict=True)]
    frame["y_true"] = labels(known["dx"], classes)
    frame[classes.probabilities] = saved.calibrated(values, models, raw).astype(np.float32)
    frame[list(FACTS)] = known[list(FACTS)]
    frame[classes.raw] = values.mean(axis=1)
    if raw:
        frame[classes.calibrated] = saved.calibrated(values, models)
    only = models[0].calibration if len(models) == 1 and not raw else None
    if only is not None:  # of the mean of several models nobody has chosen thresholds
        return predictions.with_calls(frame, only.thresholds)
    return frame
