"""Seconds an epoch, training and validation, beside plain `keras.Model.fit` over tf.data.

    python benchmarks/training.py --data ham10000.zip --weights FILE.h5 [--epochs 3] [--depths 0,1,2,5] [--workers 1,2]

Both start from the same images in memory, train the same layers with the same batch size and augmentation (flips and
rotations) and predict the validation fold after each epoch. Plain fit is what one writes from Keras's guide: float32,
AdamW, augmentation layers, BatchNorm in inference mode. Ours is what the jobs run. The families take turns; the first
epoch, which compiles, is shown apart, and so is the time in which ACTIVATIONS are computed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from ham_ray import console


class Timed(NamedTuple):
    """Seconds of the first epoch, the median of the others, and of what came before."""

    first: float
    later: float
    before: float = 0.0


def main(
    data: Annotated[str, typer.Option(help="HAM10000 archive or IMAGES table")],
    weights: Annotated[str, typer.Option(help="none, or a ResNet50 no-top .h5 file")] = "none",
    epochs: Annotated[int, typer.Option(help="timed, after the first")] = 2,
    depths: Annotated[str, typer.Option(help="unfreeze depths of ResNet50")] = "0,1,2,5",
    workers: Annotated[str, typer.Option(help="of Ray Train")] = "1,2",
    plain_steps: Annotated[int, typer.Option(help="steps of a plain epoch that are timed; 0 = all")] = 0,
) -> None:
    """Print a table, a line a family and number of workers."""
    with console.quiet_imports():
        from ham_ray.cluster import connected
        from ham_ray.data.prepare import prepare
        from ham_ray.models.weights import resolve_weights
        from ham_ray.runs import machine

    with tempfile.TemporaryDirectory() as out, connected():
        images, start = prepare(data, out, 128), resolve_weights(weights)
        print(f"{images.card['source']['file']} at {images.size} px, weights {start.name}, {machine()}")
        print("| family | workers | plain fit, s an epoch | ours, first | ours, later | ratio | ACTIVATIONS, s, once |")
        print("|---|---|---|---|---|---|---|")
        for recipe in _recipes([int(depth) for depth in depths.split(",")], epochs + 1):
            plain = _plain(images, recipe, start, plain_steps)
            for count in map(int, workers.split(",")):
                ours = _ours(images, recipe, start, count, out)
                print(
                    f"| {_name(recipe)} | {count} | {plain.later:.1f} | {ours.first:.1f} | {ours.later:.2f} | "
                    f"{plain.later / ours.later:.1f} | {ours.before:.0f} |",
                    flush=True,
                )


def _recipes(depths: list[int], epochs: int) -> Iterator[Any]:
    from ham_ray.recipe import baseline
    from ham_ray.runs import has_bfloat16

    precision = "bfloat16" if has_bfloat16() else "float32"
    same = {"epochs": epochs, "patience": 0, "batch_size": 64, "augmentation": "light", "precision": precision}
    yield baseline("simple_cnn").changed(**same)
    for depth in depths:
        if depth == 0:
            yield baseline("resnet50_frozen").changed(**same)
        else:
            yield baseline("resnet50_finetuned").changed(**same, unfreeze_depth=depth, head_epochs=0)


def _name(recipe: Any) -> str:
    return recipe.family + (f", depth {recipe.unfreeze_depth}" if recipe.unfreeze_depth else "")


def _ours(images: Any, recipe: Any, weights: Any, workers: int, out: str) -> Timed:
    """Under Ray Train, from HISTORY; the tables of activations are made anew."""
    from ham_ray.cluster import cluster_resources
    from ham_ray.training import activations, feed
    from ham_ray.training import workers as training

    with tempfile.TemporaryDirectory(dir=out) as folder:
        started = time.perf_counter()
        rows = feed.split_rows(images, recipe)
        tables = activations.prepare(images, rows, recipe, weights, f"{folder}/activations", 32 * 2**30)
        before = time.perf_counter() - started
        parts = feed.split(images, recipe, workers, 4 * 2**30, tables)
        outcome = training.train(recipe, images, parts, weights, cluster_resources(workers), f"{folder}/run")
    seconds = outcome.history["seconds"].to_numpy()
    return Timed(float(seconds[0]), float(np.median(seconds[1:])), before if tables else 0.0)


def _plain(images: Any, recipe: Any, weights: Any, steps: int) -> Timed:
    """What one writes without this project. With `steps`, an epoch is cut short and its time scaled up."""
    import keras

    from ham_ray.training import feed

    keras.backend.clear_session()
    keras.config.set_dtype_policy("float32")
    rows = feed.split_rows(images, recipe)
    train, held_out = (feed.decoded(images, rows[name]) for name in ("training", "validation"))
    model = _plain_model(recipe, images.size, weights)
    model.compile(
        keras.optimizers.AdamW(recipe.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    whole = len(train.labels) // recipe.batch_size
    taken = min(steps or whole, whole)
    dataset, validation = _dataset(train, recipe.batch_size, taken), _dataset(held_out, recipe.batch_size, 0)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        model.fit(dataset, epochs=1, verbose=0)
        trained = (time.perf_counter() - started) * whole / taken
        started = time.perf_counter()
        model.evaluate(validation, verbose=0)
        seconds.append(trained + time.perf_counter() - started)
    return Timed(seconds[0], seconds[1])


def _plain_model(recipe: Any, size: int, weights: Any) -> Any:
    import keras
    from keras import layers

    from ham_ray.models.families import build
    from ham_ray.models.weights import load_backbone

    inputs = keras.Input((size, size, 3))
    x = layers.RandomRotation(0.5)(layers.RandomFlip()(inputs))
    if recipe.family == "simple_cnn":
        network = build(recipe.changed(precision="float32"), size, weights)
        return keras.Model(inputs, network.head(network.body(x)))
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(size, size, 3))
    load_backbone(base, weights)
    trained = ("conv5", "conv4", "conv3", "conv2", "conv1")[: recipe.unfreeze_depth]
    for layer in base.layers:
        layer.trainable = bool(trained) and layer.name.startswith(trained)
    x = base(keras.applications.resnet50.preprocess_input(x), training=False)
    return keras.Model(inputs, layers.Dense(7)(layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))))


def _dataset(part: Any, batch_size: int, steps: int) -> Any:
    import tensorflow as tf

    found = tf.data.Dataset.from_tensor_slices((part.inputs, part.labels))
    if steps:
        found = found.shuffle(len(part.labels)).batch(batch_size, drop_remainder=True).take(steps)
    else:
        found = found.batch(batch_size)
    return found.map(lambda x, y: (tf.cast(x, tf.float32), y)).prefetch(tf.data.AUTOTUNE)


if __name__ == "__main__":
    console.run(main)
