"""Does augmentation keep up with training? Seconds of a training step without it, with `light` and with `strong`.

    python benchmarks/augment.py [--size 128] [--rounds 5] [--precision bfloat16]

Augmentation is part of the compiled step, so its whole cost is the difference. The three strengths take turns in one
process, on random pixels and random weights: neither changes the time.
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import typer

STRENGTHS = ("off", "light", "strong")


def main(
    size: Annotated[int, typer.Option(help="pixels")] = 128,
    rounds: Annotated[int, typer.Option(help="turns of each strength")] = 5,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
) -> None:
    """Print a table: family, milliseconds a step by strength, and what augmentation adds."""
    from ham_ray.recipe import BASELINES

    print(f"| family, batch 64, {size} px, {precision} | off, ms a step | light | strong | strong adds |")
    print("|---|---|---|---|---|")
    for family in BASELINES:
        times = measure(family, size, rounds, precision)
        off, light, strong = (1000 * float(np.median(times[strength])) for strength in STRENGTHS)
        print(f"| {family} | {off:.0f} | {light:.0f} | {strong:.0f} | {100 * (strong / off - 1):+.1f} % |", flush=True)


def measure(family: str, size: int, rounds: int, precision: str) -> dict[str, list[float]]:
    """Time training steps: the seconds of each, by strength."""
    import tensorflow as tf

    from ham_ray.models.network import build
    from ham_ray.models.weights import RANDOM
    from ham_ray.recipe import baseline
    from ham_ray.training.schedule import phases
    from ham_ray.training.step import Replica, Trainer

    random = np.random.default_rng(0)
    trainers = {}
    for strength in STRENGTHS:
        recipe = baseline(family).changed(augmentation=strength, precision=precision, batch_size=64)
        network = build(recipe, size, RANDOM, classes=7)
        trainers[strength] = Trainer(recipe, network, Replica(tf.distribute.get_strategy()), np.ones(7, int))
        trainers[strength].enter(phases(recipe)[-1])
    images = random.integers(0, 256, (recipe.data.batch_size, size, size, 3), np.uint8)
    labels = random.integers(0, 7, recipe.data.batch_size).astype(np.int32)
    times: dict[str, list[float]] = {strength: [] for strength in STRENGTHS}
    for turn in range(rounds + 1):
        for strength, trainer in trainers.items():
            started = time.perf_counter()
            trainer.step(images, labels, turn).numpy()
            if turn:  # the first compiles
                times[strength].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    typer.run(main)
