"""Train the baselines and put them beside two floors and the original study: a table, a page, a folder for each run.

    python jobs/baseline.py                                       # synthetic sample; 2 minutes on two cores
    python jobs/baseline.py --smoke                               # the same, smaller; 1 minute
    python jobs/baseline.py --data ham10000.zip --weights imagenet    # real images; about an hour on two cores
    ray job submit --working-dir . -- python jobs/baseline.py --data s3://bucket/images --out s3://bucket/runs

Started again with the same options after a kill, it goes on where it was.
"""

from typing import Annotated

from typer import Exit, Option

from ham_ray import console


def main(
    data: Annotated[
        str | None, Option(help="HAM10000 archive or IMAGES table; without it the synthetic sample")
    ] = None,
    families: Annotated[str, Option(help="comma-separated")] = "simple_cnn,resnet50_frozen,resnet50_finetuned",
    weights: Annotated[
        list[str],
        Option(help="imagenet, none, a no-top .h5 file, a folder of such, or ARCHITECTURE=FILE; repeatable"),
    ] = ["imagenet"],  # noqa: B006
    epochs: Annotated[int | None, Option(help="for every family, instead of its own")] = None,
    workers: Annotated[int, Option(help="training workers")] = 1,
    cpus_per_worker: Annotated[float | None, Option(help="instead of an even share")] = None,
    wait_for_nodes: Annotated[
        bool, Option(help="wait for the autoscaler instead of refusing what does not fit")
    ] = False,
    precision: Annotated[str, Option(help="auto, float32 or bfloat16")] = "auto",
    changes: Annotated[list[str], Option("--set", help="recipe field=value, for every family; repeatable")] = [],  # noqa: B006
    cross_validate: Annotated[
        bool, Option("--cross-validate", help="each fold as test fold once: five trainings a family, pooled")
    ] = False,
    shard_memory: Annotated[float, Option(help="GiB of decoded images a worker may keep")] = 4.0,
    activations: Annotated[float, Option(help="GiB that outputs of frozen layers may take on disk; 0 = none")] = 8.0,
    size: Annotated[int | None, Option(help="pixels, when an archive is ingested; default 128, sample 64")] = None,
    name: Annotated[str | None, Option(help="of the run; by default made from its settings")] = None,
    smoke: Annotated[bool, Option(help="two epochs, and fewer images of the sample, to see that all works")] = False,
    out: Annotated[str, Option(help="folder or URI for runs")] = "runs",
) -> None:
    """Train baselines on lesion-grouped folds and report them."""
    given = locals()
    from ham_ray.options.baseline import Options  # here, so that --help is quick

    options = Options(**{**given, "families": families.split(",")})
    options.check()
    from ham_ray.cluster import connected  # after the checks, which need neither Ray nor TensorFlow
    from ham_ray.commands import baselines
    from ham_ray.evaluation import summary

    with connected():
        result, page = baselines.run(options)
    summary.show(result)
    print(f"report: {page}")
    if any(row.kind == "model" and not row.metrics for row in result.rows):
        raise Exit(1)


if __name__ == "__main__":
    console.run(main, "Ray and TensorFlow", "finished trainings and epochs are kept; the same command goes on")
