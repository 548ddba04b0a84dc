"""The evaluation job: from tables of predictions, of any model from anywhere, to a page, numbers and a model card."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ham_ray import runs, storage
from ham_ray.data import cells, datasets, user_tables
from ham_ray.data.classes import Classes, common
from ham_ray.data.dataset import Challenge
from ham_ray.data.gallery import thumbnails
from ham_ray.data.images import ungrouped
from ham_ray.data.truth import Truth, read_truth
from ham_ray.errors import UserError, some
from ham_ray.evaluation import intervals, isic, metrics, predictions
from ham_ray.evaluation.predictions import FACTS, NEW, classes_of
from ham_ray.progress import step
from ham_ray.report import model_card, paired, report, summary
from ham_ray.report.summary import RANDOM_WEIGHTS, Run, Summary
from ham_ray.workflows.evaluate import ALL, BOTH, PARTS, Options

_TEXTS = {"image_id", "image", "lesion_id", "group_id", "split", "sex", "localization", "dx_type"}
_SPLIT = (
    "The tables themselves say which images are new to their model (test or new); nobody has checked that here. Images "
    "that a model has learned from, or was chosen by, are left out of every figure."
)


def run(options: Options) -> Summary:
    """Evaluate each table, compare those of the same images, and write report.html, metrics.json and the model card.

    Of a table with labelled test images and labelled new ones each part is a result of its own, the larger first.

    Raises:
        UserError: a table that is none, labels that contradict, or nothing that may be reported.
    """
    options.check()
    places = _names(options.tables)
    known = {name: _known(uri) for name, uri in places.items()}
    plain = {name: _read(uri, options.raw, known[name]["warnings"]) for name, uri in places.items()}
    owned = [(name, classes_of(table)) for name, table in plain.items()]
    classes = common(owned, "--predictions: tables", "evaluate each by itself")
    truth = read_truth(options.truth, classes) if options.truth else None
    for note in truth.notes if truth else []:
        print(f"--truth: {note}")
    tables = {
        name: _labelled(frame, places[name], truth, classes, known[name]["warnings"]) for name, frame in plain.items()
    }
    results = [
        (name, result, Run(part, None, {**known[name], "warnings": [*known[name]["warnings"]]}))
        for name, frame in tables.items()
        for result, part in _parts(name, frame, options.split).items()
    ]
    trained = {result: run for _, result, run in results}
    with step("intervals", f"{intervals.RESAMPLES:,} resamples of lesions, of {', '.join(trained)}"):
        reported = pd.concat([run.assessment.images["image_id"] for run in trained.values()])
    first, *others = tables
    compared = {result: run for name, result, run in results if name == first}
    pairs = [(_partner(compared, run), result) for name, result, run in results if name in others]
    data = "1 table of predictions" if len(tables) == 1 else f"{len(tables)} tables of predictions"
    with step("comparisons", "with the most frequent class, and between the tables"):
        matches = summary.summarise(
            trained,
            {},
            data + (f", truth from {options.truth}" if options.truth else ""),
            synthetic=any(map(predictions.drawn, tables.values())),
            references=datasets.of_images(reported),
            models="models",
            ungrouped=any(map(ungrouped, tables.values())),
        )
        differences = paired.differences(trained, {}, pairs)
    with step("report"):
        _write(_page(options, matches, trained, differences, classes), options.out)
    return matches


def _write(page: report.ReportData, out: str) -> None:
    """The page with its figures, the table, metrics.json and the model card."""
    report.write(page, storage.join(out, runs.REPORT))
    summary.write(page.summary, out)
    evaluated = {name: run.assessment.facts() for name, run in page.runs.items()}
    storage.write_bytes(storage.join(out, runs.METRICS), runs.to_json(evaluated))
    storage.write_bytes(storage.join(out, runs.MODEL_CARD), model_card.render(page).encode())


def _names(uris: list[str]) -> dict[str, str]:
    """Name the tables shortly: by their file, or with its folder where two files share a name."""
    if len(set(uris)) < len(uris):
        raise UserError("--predictions: a table is named twice")
    stems = [Path(uri.partition("?")[0]).stem for uri in uris]
    folders = [f"{Path(uri.partition('?')[0]).parent.name}/{stem}" for uri, stem in zip(uris, stems, strict=True)]
    for names in (stems, folders, uris):
        if len(set(names)) == len(uris):
            return dict(zip(names, uris, strict=True))
    raise AssertionError("places differ")


def _known(uri: str) -> dict[str, Any]:
    """Read from the manifest beside a table, where there is one, its models' weights and warnings."""
    path = storage.sibling(uri, runs.MANIFEST)
    manifest = storage.read_object(path)
    weights = [model["weights"] for model in manifest.get("models", []) if model.get("weights")]
    return {
        "weights": RANDOM_WEIGHTS if RANDOM_WEIGHTS in weights else ", ".join(dict.fromkeys(weights)),
        "warnings": list(manifest.get("warnings", [])),
    }


def _parts(name: str, frame: pd.DataFrame, split: str) -> dict[str, pd.DataFrame]:
    """Cut a table into the results made of it, by their names; each keeps the rows that it does not report.

    Raises:
        UserError: the table has no labelled image of the split that was asked for.
    """
    counts = frame["split"][frame["y_true"].notna()].value_counts()
    there = sorted((part for part in PARTS if counts.get(part)), key=lambda part: -counts[part])
    if split in PARTS and split not in there:
        having = ", ".join(f"{count:,} {part}" for part, count in counts.items()) or "none"
        raise UserError(f"--split {split}: no labelled image of {name} is of it; labelled are {having}")
    if split == ALL or len(there) < 2:
        return {name: frame}
    if split == BOTH:
        return {f"{name}, {PARTS[part]}": frame[~frame["split"].isin({*PARTS} - {part})] for part in there}
    (other,) = {*there} - {split}
    print(f"{name}: {counts[other]:,} labelled images are not reported, they are {PARTS[other]} (--split {split})")
    return {name: frame[frame["split"] != other]}


def _partner(compared: dict[str, Run], run: Run) -> str:
    """Name the result of the first table that shares most images with a run; where not all, warn in the run."""
    own = set(run.assessment.images["image_id"])
    ids = {name: set(other.assessment.images["image_id"]) for name, other in compared.items()}
    name = max(ids, key=lambda one: len(ids[one] & own))
    if own != ids[name]:
        run.info["warnings"].append(
            f"its {len(own):,} images are not those of {name}: only the {len(own & ids[name]):,} in both are compared"
        )
    return name


def _read(uri: str, raw: bool, warnings: list[str]) -> pd.DataFrame:
    """Read PREDICTIONS at a path or URI: Parquet, CSV of the same columns, or ISIC's CSV.

    What the page must say of the table is appended to `warnings`.
    """
    frame = predictions.read(uri) if uri.partition("?")[0].endswith(".parquet") else _read_csv(uri, warnings)
    if raw:
        classes = classes_of(frame)
        if missing := [name for name in classes.raw if name not in frame]:
            raise UserError(f"--raw: {uri} has no raw probabilities ({missing[0]}, …)")
        pairs = zip(classes.probabilities, classes.raw, strict=True)
        frame = frame.assign(**{name: frame[before] for name, before in pairs})
    return frame


def _labelled(
    frame: pd.DataFrame, uri: str, truth: Truth | None, classes: Classes, warnings: list[str]
) -> pd.DataFrame:
    """Add the labels and facts of `truth` to a table; print what it does not report.

    What the page must say of the table is appended to `warnings`.
    """
    if truth is not None:
        frame = _with_truth(frame, truth, uri, classes, warnings)
    left_out = frame[frame["split"].isin(["training", "validation"])]
    if len(left_out):
        counts = ", ".join(f"{count:,} {split}" for split, count in left_out["split"].value_counts().items())
        print(f"{uri}: images not reported, because the model knows them: {counts}")
    if unlabelled := int(frame["y_true"].isna().sum()):
        print(f"{uri}: {unlabelled:,} of {len(frame):,} images have no true label and are left out (--truth)")
    return frame


def _read_csv(uri: str, warnings: list[str]) -> pd.DataFrame:
    if not storage.exists(uri):
        raise UserError(f"no predictions at {uri}")
    frame = user_tables.read_table(storage.read_bytes(uri), uri)
    frame = frame.assign(**{name: _read_column(frame[name]) for name in frame.columns})
    if challenge := isic.recognised({*map(str, frame)}):
        frame = _of_isic(frame, challenge, warnings)
    return predictions.completed(frame, uri)


def _read_column(texts: pd.Series) -> pd.Series:
    """Read cells as numbers, truth values or text; None where a word means missing. Names stay text, even of digits."""
    texts = texts.where(~texts.str.lower().isin(cells.MISSING), "")
    if texts.name in _TEXTS:
        return texts.replace("", None)
    if set(texts.str.lower()) <= {"true", "false"}:
        return texts.str.lower() == "true"
    return user_tables.numbers(texts)


def _of_isic(frame: pd.DataFrame, challenge: Challenge, warnings: list[str]) -> pd.DataFrame:
    """Rename the challenge's columns to this project's; scale its scores to sum to 1, which they need not."""
    names = {name: dx for name, dx in challenge.columns.items() if dx}
    values = frame[[*names]].apply(pd.to_numeric, errors="coerce")  # words become NaN, which is refused by id
    p, ids = values.to_numpy(np.float64), frame["image"].str.removesuffix(".jpg")
    if surplus := sorted(set(map(str, frame)) - {"image", *challenge.columns}):
        warnings.append(f"columns that the challenge does not have were left out: {', '.join(surplus)}")
    if (tied := isic.ties(p)).any():
        warnings.append(
            f"{tied.sum():,} images have no single greatest probability: {some(ids[tied])}; the first of the "
            "tied classes counts here, the challenge's scorer counts them as wrong"
        )
    sums = p.sum(axis=1, keepdims=True)
    if (scaled := np.abs(sums[:, 0] - 1) > metrics.SUM_TOLERANCE).any():
        warnings.append(
            f"{scaled.sum():,} images whose probabilities do not sum to 1, scaled to do so: {some(ids[scaled])}"
        )
        p = np.divide(p, sums, out=np.full_like(p, np.nan), where=sums > 0)
    columns = {f"{predictions.PREFIX}{dx}": p[:, number] for number, dx in enumerate(names.values())}
    return pd.DataFrame({"image_id": ids, "group_id": ids, "fold": -1, "split": NEW, **columns})


def _with_truth(frame: pd.DataFrame, truth: Truth, uri: str, classes: Classes, warnings: list[str]) -> pd.DataFrame:
    """Add labels, lesions and facts as `truth` has them; images that it does not know stay unlabelled."""
    ids, notes = cells.match_ids(frame["image_id"], truth.rows.index)
    print(*(f"{uri}: {note}" for note in notes), sep="\n", end="\n" if notes else "")
    known = truth.rows.reindex(ids).reset_index(drop=True)
    label = known["label"].astype("Int32")
    unknown = classes.unknown(truth.unknown[truth.unknown.index.isin(ids)])
    if label.notna().sum() == 0 and unknown:
        raise UserError(f"--truth has none of the {len(classes)} classes for the images of {uri}: {unknown}")
    if label.notna().sum() == 0:
        asked, its = some(frame["image_id"], 3), some(truth.rows.index, 3)
        raise UserError(f"--truth knows none of the {len(frame):,} images of {uri}, such as {asked}; it has {its}")
    if unknown:
        warnings.append(
            f"--truth: diagnoses that are none of the {len(classes)} classes, their images are left out: {unknown}"
        )
    both = frame["y_true"].notna() & label.notna()
    wrong = frame["image_id"][both & (frame["y_true"] != label).fillna(False)]
    if len(wrong):
        raise UserError(
            f"--truth contradicts {len(wrong):,} labels in {uri}: {', '.join(wrong.head(5))}; one is of other images"
        )
    result = frame.assign(y_true=label.where(label.notna(), frame["y_true"].astype("Int32")))
    for name in ("lesion_id", "group_id", *FACTS):
        result[name] = known[name].where(known[name].notna(), frame[name])
    return result


def _page(
    options: Options,
    result: Summary,
    trained: dict[str, Run],
    differences: list[paired.Difference],
    classes: Classes,
) -> report.ReportData:
    around = runs.environment()
    counted = {name: _named(run.assessment.images, classes) for name, run in trained.items()}
    dataset = datasets.of_classes(classes) or datasets.ANY
    hashes = [hashlib.sha256(storage.read_bytes(uri)).hexdigest()[:12] for uri in options.tables]
    return report.ReportData(
        title="Evaluation" if len(trained) == 1 else f"Comparison of {len(trained)} models",
        summary=result,
        runs=trained,
        trivial={},
        facts={
            "command": around["command"],
            "commit": around["commit"],
            "predictions": ", ".join(f"{u} ({sha})" for u, sha in zip(options.tables, hashes, strict=True)),
            "time": around["time"],
            "intervals": intervals.HOW,
            "packages": ", ".join(f"{name} {version}" for name, version in around["packages"].items()),
        },
        counts=report.class_counts(counted, classes),
        classes=classes,
        fingerprint=", ".join(hashes),
        licence=f"that of the images; {dataset.title}'s is {dataset.licence.licence}",
        attribution=dataset.licence.attribution,
        differences=differences,
        selection="thresholds and temperature, where a table holds validation images",
        split=_SPLIT,
        thumbnails=functools.partial(thumbnails, options.images) if options.images else None,
    )


def _named(table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    return table.assign(dx=[classes.codes[label] for label in table["y_true"]])
