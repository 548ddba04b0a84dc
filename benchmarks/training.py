"""Seconds an epoch, training and validation, beside plain `keras.Model.fit` over tf.data.

    python benchmarks/training.py --data ham10000.zip --weights FILE.h5 [--epochs 3] [--depths 0,1,2,5] [--workers 1,2]

Both start from the same images in memory, train the same layers with the same batch size and augmentation (the eight
symmetries of the square) and predict the validation fold after each epoch. Plain fit is what one writes from Keras's
guide: float32, AdamW, augmentation in tf.data, BatchNorm in inference mode; its time is taken after a call that
compiles. Ours is what the jobs run, in bfloat16 where that is faster, and includes the checkpoint and the copy of
the best epoch that each epoch leaves, which plain fit does not make. The families take turns; our first epoch, which
compiles, is shown apart (without its checkpoint), and so is the time in which ACTIVATIONS are computed.

With `--plain-steps N` a plain epoch is cut short after N steps, and as many as are missing are added at the pace of
those after the first; what each epoch takes beside its steps is counted once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from ham_ray import console


class Timed(NamedTuple):
    """Seconds of the first epoch, and of a later one with its checkpoint."""

    first: float
    later: float


def main(
    data: Annotated[str, typer.Option(help="HAM10000 archive or IMAGES table")],
    weights: Annotated[str, typer.Option(help="none, or a ResNet50 no-top .h5 file")] = "none",
    epochs: Annotated[int, typer.Option(help="timed, at least 1, after the first", min=1)] = 2,
    depths: Annotated[str, typer.Option(help="unfreeze depths of ResNet50")] = "0,1,2,5",
    workers: Annotated[str, typer.Option(help="of Ray Train")] = "1,2",
    plain_steps: Annotated[int, typer.Option(help="steps of a plain epoch that are timed, at least 2; 0 = all")] = 0,
) -> None:
    """Print a table, a line a family and number of workers."""
    from ham_ray.cluster import connected
    from ham_ray.data.prepare import prepare
    from ham_ray.hardware import machine
    from ham_ray.models.architectures import resnet50
    from ham_ray.models.weights import resolve_weights

    with tempfile.TemporaryDirectory() as out, connected():
        images, start = prepare(data, out, 128), resolve_weights(weights, resnet50.ARCHITECTURE)
        print(f"{images.card['source']['file']} at {images.size} px, weights {start.name}, {machine()}")
        print(
            "| family | workers | plain fit, s an epoch | ours, first | later, with checkpoint | ratio | ACTIVATIONS |"
        )
        print("|---|---|---|---|---|---|---|")
        for recipe in _recipes([int(depth) for depth in depths.split(",")], epochs + 1):
            plain = _apart(_plain, images, recipe, start, plain_steps)
            with tempfile.TemporaryDirectory(dir=out) as folder:
                tables, before = _tables(images, recipe, start, folder)
                for count in map(int, workers.split(",")):
                    ours = _ours(images, recipe, start, count, tables, folder)
                    print(
                        f"| {_name(recipe)} | {count} | {plain:.1f} | {ours.first:.1f} | {ours.later:.2f} | "
                        f"{plain / ours.later:.1f} | {before:.0f} |",
                        flush=True,
                    )


def _recipes(depths: list[int], epochs: int) -> Iterator[Any]:
    from ham_ray.hardware import fast_in_bfloat16
    from ham_ray.recipe import baseline

    precision = "bfloat16" if fast_in_bfloat16() else "float32"
    same = {"epochs": epochs, "patience": 0, "batch_size": 64, "augmentation": "light", "precision": precision}
    yield baseline("simple_cnn").changed(**same)
    for depth in depths:
        if depth == 0:
            yield baseline("resnet50_frozen").changed(**same)
        else:
            yield baseline("resnet50_finetuned").changed(**same, unfreeze_depth=depth, head_epochs=0)


def _name(recipe: Any) -> str:
    return recipe.family + (f", depth {recipe.model.unfreeze_depth}" if recipe.model.unfreeze_depth else "")


def _tables(images: Any, recipe: Any, weights: Any, folder: str) -> tuple[dict[str, Any] | None, float]:
    """Build tables of activations anew; return their folders and the seconds that took."""
    from ham_ray.training import activations, input_pipeline

    started, rows = time.perf_counter(), input_pipeline.split_rows(images, recipe)
    tables = activations.prepare(images, rows, recipe, weights, f"{folder}/activations", 32 * 2**30)
    return tables, time.perf_counter() - started if tables else 0.0


def _ours(images: Any, recipe: Any, weights: Any, workers: int, tables: dict[str, Any] | None, folder: str) -> Timed:
    """Time Ray Train: HISTORY's first and median epoch, with what lay between the last two checkpoints beyond it."""
    from ham_ray.cluster import cluster_resources
    from ham_ray.runs import CHECKPOINTS
    from ham_ray.training import input_pipeline
    from ham_ray.training import workers as training

    parts = input_pipeline.split(images, recipe, workers, 4 * 2**30, tables)
    place = f"{folder}/run-{workers}"
    outcome = training.train(recipe, images, parts, weights, cluster_resources(workers), place)
    seconds = outcome.history["seconds"].to_numpy()
    *_, before, last = (path.stat().st_mtime for path in sorted(Path(place, CHECKPOINTS).glob("epoch-*.npz")))
    return Timed(float(seconds[0]), float(np.median(seconds[1:]) + last - before - seconds[-1]))


def _apart(function: Callable[..., float], *arguments: Any) -> float:
    """Run the function in a process of its own, whose memory is free again afterwards."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _plain(images: Any, recipe: Any, weights: Any, steps: int) -> float:
    """Time an epoch as one writes it without this project: the median of as many as are timed of ours, in seconds."""
    import plain

    parts = plain.splits(images, recipe)
    if recipe.family == "simple_cnn":
        model = plain.simple_cnn(images.size)
    else:
        model = plain.resnet50(images.size, weights, recipe.model.unfreeze_depth)
    plain.compiled(model, recipe.optimizer.learning_rate)
    training = plain.dataset(*parts["training"], recipe.data.batch_size, training=True)
    validation = plain.dataset(*parts["validation"], recipe.data.batch_size, training=False)
    model.fit(training.take(2), validation_data=validation, verbose=0)  # compiles
    whole = len(training)
    cut = training.take(min(steps or whole, whole))
    return float(np.median([_plain_epoch(model, cut, validation, whole) for _ in range(recipe.epochs - 1)]))


def _plain_epoch(model: Any, training: Any, validation: Any, whole: int) -> float:
    """Time an epoch of `whole` steps, of which `training` has the first ones, in seconds."""
    import keras

    marks: list[float] = []
    mark = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: marks.append(time.perf_counter()))
    started = time.perf_counter()
    model.fit(training, validation_data=validation, callbacks=[mark], verbose=0)
    taken = time.perf_counter() - started
    missing = whole - len(marks)
    return taken + (missing * (marks[-1] - marks[0]) / (len(marks) - 1) if missing else 0.0)


if __name__ == "__main__":
    console.run(main)
