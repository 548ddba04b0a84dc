"""Images a second of jobs/predict.py's pipeline beside a plain loop: decode a batch, `model.predict`, the next batch.

    python benchmarks/predict.py --model runs/baseline-1234/resnet50_finetuned --images ham10000.zip [--most 4000]

Both read the same files with the same decoding and the same saved model, and take turns. The plain loop is what one
writes from Keras's guide: float32, one thing after the other. Ours decodes in tasks beside the actor that computes, in
bfloat16 where the processor is faster in it; the greatest difference of a probability is shown.

The start of Ray's workers and of TensorFlow in them is shown apart. Ours is timed from the first chunk that arrives,
without the images of the first two: Ray hands out a chunk when the next one is there. While the models start, tasks may
decode ahead; how much cannot be seen from outside, so all decoding, as the plain loop measured it and shared by all
cores, is added to the time of ours. The ratio is a lower bound.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import typer

from ham_ray import console

BATCH = 128


def main(
    model: Annotated[str, typer.Option(help="run folder or .keras file")],
    images: Annotated[str, typer.Option(help="archive or folder of pictures")],
    most: Annotated[int, typer.Option(help="images taken of them")] = 4000,
    rounds: Annotated[int, typer.Option(help="turns of each")] = 3,
    views: Annotated[int, typer.Option(help="symmetries of each image")] = 1,
) -> None:
    """Print a table, a line each."""
    from ham_ray.cluster import connected
    from ham_ray.data.gallery import FileGallery, open_gallery
    from ham_ray.errors import UserError
    from ham_ray.hardware import cores, fast_in_bfloat16, machine
    from ham_ray.inference import saved
    from ham_ray.inference.pipeline import InferenceConfig, chunks

    found = saved.find(model)
    gallery = open_gallery(images, found.size, found.geometry or "crop")
    if not isinstance(gallery, FileGallery):
        raise UserError(f"--images {images}: an IMAGES table; give the archive or folder of pictures itself")
    gallery = replace(gallery, rows=gallery.rows.head(most), files=gallery.files[:most])
    if (count := len(chunks(gallery, found.size))) < 3:
        raise UserError(f"--most {most}: {len(gallery.rows)} images are {count} chunk(s), at least 3 are needed")
    precision = "bfloat16" if fast_in_bfloat16() else "float32"
    network = saved.load(next(iter(found.members)))
    network.predict(np.zeros((BATCH, found.size, found.size, 3), np.uint8), verbose=0)  # compiled outside of the times
    print(f"{len(gallery.rows):,} images, {views} view(s), {found.size} px, {precision}, {machine()}")
    pace: dict[str, list[float]] = {"plain": [], "ours": [], "start": []}
    with connected():
        for _ in range(rounds):
            each, decoding, expected = _plain(gallery, network, views)
            pace["plain"].append(1 / each)
            start, each, given = _ours(
                gallery, InferenceConfig((found.members,), (found.size,), views, precision, BATCH)
            )
            pace["ours"].append(1 / (each + decoding / cores()))
            pace["start"].append(start)
            difference = np.abs(expected - given).max()
    print("| | images/s (min, median, max) |\n|---|---|")
    for name in ("plain", "ours"):
        print(f"| {name} | {', '.join(f'{value:.0f}' for value in np.quantile(pace[name], [0, 0.5, 1]))} |")
    ratio = np.median(np.array(pace["ours"]) / np.array(pace["plain"]))
    print(f"ratio {ratio:.2f}; greatest difference of a probability {difference:.4f}; start {pace['start'][-1]:.1f} s")


def _plain(gallery: Any, network: Any, views: int) -> tuple[float, float, np.ndarray]:
    """Predict by a plain loop: return the seconds an image, those of them that decode, and the probabilities."""
    from ham_ray.training.augment import view

    started, decoding, found = time.perf_counter(), 0.0, []
    for start in range(0, len(gallery.rows), BATCH):
        began = time.perf_counter()
        pixels = gallery.load(slice(start, start + BATCH)).pixels
        decoding += time.perf_counter() - began
        found.append(np.mean([network.predict(view(pixels, v), verbose=0, batch_size=BATCH) for v in range(views)], 0))
    images = len(gallery.rows)
    return (time.perf_counter() - started) / images, decoding / images, np.concatenate(found)


def _ours(gallery: Any, way: Any) -> tuple[float, float, np.ndarray]:
    """Predict by the pipeline; return seconds to the first chunk, seconds an image after it, and probabilities."""
    from ham_ray.inference.pipeline import chunks, predicted

    stretches = chunks(gallery, max(way.pixels))
    started, marks, found = time.perf_counter(), [], {}
    for number, table in predicted(gallery, way, range(len(stretches))):
        found[number] = np.stack(table["raw"].to_numpy(zero_copy_only=False))
        marks.append(time.perf_counter())
    each = (marks[-1] - marks[0]) / sum(len(found[n]) for n in [*found][2:])
    return marks[0] - started, each, np.concatenate([found[n] for n in sorted(found)])


if __name__ == "__main__":
    console.run(main)
