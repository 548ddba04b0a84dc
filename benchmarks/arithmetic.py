"""Multiply-adds of an epoch in this project and in plain `fit`: how much faster arithmetic alone lets it be.

    python benchmarks/arithmetic.py [--size 128] [--training 5952] [--validation 2003]

Counted are the convolutions of ResNet50, from the built networks: forward for each image, once more for the gradient of
each trained kernel, and once more for the gradient of what enters it where something trained lies below. Plain `fit`
computes all layers forward. This project computes what lies above the cut where ACTIVATIONS are kept, and nowhere the
positions that no later layer reads. What a measured ratio has beyond this one is precision, overhead and memory.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from ham_ray import console


def main(
    size: Annotated[int, typer.Option(help="pixels a side")] = 128,
    training: Annotated[int, typer.Option(help="training images of an epoch: of HAM10000 93 batches of 64")] = 5952,
    validation: Annotated[int, typer.Option(help="validation images of an epoch")] = 2003,
) -> None:
    """Print a table, a line an unfreeze depth."""
    from ham_ray.models.architectures import resnet50
    from ham_ray.models.folding import folded

    network = resnet50.ARCHITECTURE.build(size)
    plain, thinned = _multiply_adds(network), _multiply_adds(folded(network, resnet50.unread_positions))
    millions = (f"{sum(counts.values()) / 1e6:.0f}" for counts in (plain, thinned))
    print("forward, an image: {} million, ours {} million\n".format(*millions))
    print("| unfreeze depth | plain fit, 10¹² multiply-adds an epoch | ours | ratio |\n|---|---|---|---|")
    deepest = resnet50.ARCHITECTURE.deepest_cached
    stages = tuple(stage.name for stage in resnet50.STAGES)
    for depth in range(1, len(stages) + 1):
        trained = stages[len(stages) - depth :]
        above = {name: count for name, count in thinned.items() if depth > deepest or name.startswith(trained)}
        theirs, ours = (_epoch(counts, trained, training, validation) for counts in (plain, above))
        print(f"| {depth} | {theirs / 1e12:.2f} | {ours / 1e12:.2f} | {theirs / ours:.2f} |")


def _multiply_adds(model: Any) -> dict[str, int]:
    """Count the multiply-adds of each convolution, for one image."""
    convolutions = [(layer, getattr(layer, "conv", layer)) for layer in model.layers]
    return {
        convolution.name: math.prod(layer.output.shape[1:3]) * math.prod(convolution.kernel.shape)
        for layer, convolution in convolutions
        if hasattr(convolution, "kernel")
    }


def _epoch(counts: dict[str, int], trained: tuple[str, ...], training: int, validation: int) -> int:
    forward = sum(counts.values())
    kernels = sum(count for name, count in counts.items() if name.startswith(trained))
    lowest = ("conv1_conv", f"{trained[0]}_block1_0_conv", f"{trained[0]}_block1_1_conv")  # nothing trained lies below
    inputs = sum(count for name, count in counts.items() if name.startswith(trained) and name not in lowest)
    return training * (forward + kernels + inputs) + validation * forward


if __name__ == "__main__":
    console.run(main)
