"""Predict pictures by a trained model, or by several averaged: PREDICTIONS, a quarantine list and a manifest.

    python jobs/predict.py --model runs/baseline-1234/resnet50_finetuned --images pictures/ --out predictions.parquet
    python jobs/predict.py --model runs/resnet50-a --images ham10000.zip --out predictions.parquet --tta
    ray job submit --working-dir . -- python jobs/predict.py --model s3://… --images /shared/… --out s3://…

Pictures: JPEG, PNG, BMP, GIF, TIFF, WebP, AVIF, JPEG 2000; HEIC with pip install 'ham_ray[heic]'. Others are listed.
100 to 200 images a second and network on two cores. Started again after a kill, it goes on where it was.
"""

from typing import Annotated

from typer import Option

from ham_ray import console


def main(
    model: Annotated[
        list[str], Option(help="run folder, finished search or .keras file; repeated: their probabilities are averaged")
    ],
    images: Annotated[str, Option(help="IMAGES table, HAM10000 or ISIC archive, or any folder or zip of pictures")],
    out: Annotated[str, Option(help="file to write, path or URI")],
    format: Annotated[str, Option(help="parquet, csv, or isic for the challenge's scorer")] = "parquet",
    tta: Annotated[bool, Option("--tta", help="average over the eight symmetries of each image")] = False,
    raw: Annotated[bool, Option("--raw", help="do not apply the calibration stored with the model")] = False,
    batch_size: Annotated[int, Option(help="images a forward pass")] = 128,
    precision: Annotated[str, Option(help="auto, float32 or bfloat16")] = "auto",
    geometry: Annotated[str | None, Option(help="crop or squash, where no run beside the model says it")] = None,
) -> None:
    """Predict, or go on with it."""
    given = locals()
    from ham_ray.options.predict import Options  # here, so that --help is quick

    options = Options(models=given.pop("model"), **given)
    options.check()
    from ham_ray.cluster import connected  # after the checks, which need neither Ray nor TensorFlow
    from ham_ray.commands import predicting

    with connected():
        manifest = predicting.run(options)
    predicting.show(manifest, out)


if __name__ == "__main__":
    console.run(main, "Ray and TensorFlow", "what was predicted is kept; the same command goes on")
