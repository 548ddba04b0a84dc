"""Export a trained model for other programs, and show that it agrees with the original.

    python jobs/export.py --model runs/baseline-1234/resnet50_finetuned --to onnx --out model.onnx --images pictures/

It takes uint8 RGB images of the model's size and gives seven probabilities, in the order akiec, bcc, bkl, df, mel, nv,
vasc; preprocessing is inside. Calibration is not: see calibration.json beside the model.
"""

from typing import Annotated

from typer import Option

from ham_ray import console


def main(
    model: Annotated[str, Option(help="run folder or .keras file")],
    to: Annotated[str, Option(help="keras, savedmodel, tflite or onnx")],
    out: Annotated[
        str | None, Option(help="file, or folder for savedmodel; default model with the usual ending")
    ] = None,
    images: Annotated[str | None, Option(help="images to compare on; without them the synthetic sample")] = None,
) -> None:
    """Write, read back, compare."""
    given = locals()
    from ham_ray.options.export import Options  # here, so that --help is quick

    options = Options(**given)
    options.check()
    from ham_ray.commands import exporting  # after the checks, which need no TensorFlow

    done = exporting.export(options)
    told = f"no probability of {done.images} images of {done.source} differs by more than {done.difference:.1e}"
    print(f"{done.place}: {told} (tolerated: {exporting.TOLERANCE:g})")


if __name__ == "__main__":
    console.run(main, "TensorFlow", "no file was written; the same command starts afresh")
