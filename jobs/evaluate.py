"""Evaluate tables of predictions, of any model from anywhere: one by itself, or several compared on the same images.

    python jobs/evaluate.py --predictions predictions.parquet --out report/
    python jobs/evaluate.py --predictions a.parquet b.csv --truth HAM10000_metadata.csv --out report/

Takes Parquet or CSV as jobs/predict.py writes it, and the ISIC challenge's CSV with --truth. Seconds, without Ray.
"""

from typing import Annotated

from typer import Argument, Option

from ham_ray import console


def main(
    predictions: Annotated[
        list[str], Option(help="tables of predictions; of several, the first against each other one")
    ],
    truth: Annotated[
        str | None, Option(help="archive, IMAGES table, metadata or ground-truth file with the diagnoses")
    ] = None,
    raw: Annotated[bool, Option("--raw", help="of the probabilities before calibration")] = False,
    images: Annotated[
        str | None, Option(help="IMAGES table, archive or folder: thumbnails of the confident errors")
    ] = None,
    out: Annotated[str, Option(help="folder for report.html, metrics.json and model_card.md")] = "report",
    split: Annotated[
        str, Option(help="labelled images to report: test, new, all (as one result), both (each by itself)")
    ] = "both",
    more: Annotated[list[str] | None, Argument(metavar="[PREDICTIONS]...", help="further tables")] = None,
) -> None:
    """Write a page, numbers and a model card."""
    given = locals()
    from ham_ray.options.evaluate import Options  # here, so that --help is quick

    options = Options([*given.pop("predictions"), *(given.pop("more") or [])], **given)
    options.check()
    from ham_ray.commands import evaluating
    from ham_ray.evaluation import summary

    summary.show(evaluating.run(options))
    print(f"report: {out}/report.html; numbers: {out}/metrics.json; model card: {out}/model_card.md")


if __name__ == "__main__":
    console.run(main, "pandas and scikit-learn", "the same command starts afresh")
