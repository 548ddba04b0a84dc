"""Search the fine-tuned ResNet50's learning rate, unfreeze depth and class-weight scaling: Ray Tune runs, Optuna asks.

    python jobs/tune_resnet.py --smoke                                            # synthetic sample; 2 minutes
    python jobs/tune_resnet.py --data images/ham10000 --name resnet50-a --trials 30    # hours on two cores
    ray job submit --working-dir . -- python jobs/tune_resnet.py --data … --out …

The same command goes on after a kill; with more --trials it extends a finished search.
"""

from typing import Annotated

from typer import Option

from ham_ray import console


def main(
    data: Annotated[
        str | None, Option(help="HAM10000 archive or IMAGES table; without it the synthetic sample")
    ] = None,
    name: Annotated[str | None, Option(help="of the search; by default made from what it depends on")] = None,
    trials: Annotated[int | None, Option(help="finished trials wanted in all; default 30, smoke 4")] = None,
    space: Annotated[str | None, Option(help="YAML; default search_spaces/resnet50.yaml")] = None,
    max_concurrent: Annotated[int | None, Option(help="trials at once")] = None,
    workers_per_trial: Annotated[int, Option(help="training workers of a trial; 1 is the fastest way")] = 1,
    cpus_per_worker: Annotated[float | None, Option(help="of those, instead of an even share")] = None,
    max_failures: Annotated[int, Option(help="restarts of a trial of which a process died")] = 2,
    epochs: Annotated[int | None, Option(help="of each trial and of the finals, instead of the space's")] = None,
    weights: Annotated[
        list[str],
        Option(help="imagenet, none, a no-top .h5 file, a folder of such, or ARCHITECTURE=FILE; repeatable"),
    ] = ["imagenet"],  # noqa: B006
    precision: Annotated[str, Option(help="auto, float32 or bfloat16")] = "auto",
    shard_memory: Annotated[
        float, Option(help="GiB of decoded images a worker may keep; trials of one worker share theirs")
    ] = 4.0,
    activations: Annotated[float, Option(help="GiB that outputs of frozen layers may take, each depth")] = 8.0,
    size: Annotated[int | None, Option(help="pixels, when an archive is ingested; default 128, sample 64")] = None,
    storage: Annotated[str | None, Option(help="database URL of the study; default a file in its folder")] = None,
    mixed: Annotated[bool, Option(help="go on with other data, space or weights; values do not compare")] = False,
    finalists: Annotated[int | None, Option(help="best trials trained again; default 3, smoke 1; 0 = none")] = None,
    finals_data: Annotated[str | None, Option(help="IMAGES table of another size, for those")] = None,
    seeds: Annotated[int | None, Option(help="trainings of each, over validation folds; default 3, smoke 1")] = None,
    ensemble: Annotated[int, Option(help="also average the probabilities of that many of them")] = 1,
    views: Annotated[int, Option(help="symmetries of each image predicted and averaged in the finals, up to 8")] = 1,
    refit: Annotated[bool, Option(help="train what was chosen once more, on the validation folds too")] = False,
    smoke: Annotated[bool, Option(help="four short trials on few images, to see that all works")] = False,
    out: Annotated[str, Option(help="folder for runs")] = "runs",
) -> None:
    """Run a Bayesian search, or go on with one."""
    given = locals()
    from ham_ray.options.search import Options  # here, so that --help is quick

    counts = {"trials": 4, "finalists": 1, "seeds": 1} if smoke else {"trials": 30, "finalists": 3, "seeds": 3}
    options = Options(**{**given, **{name: n for name, n in counts.items() if given[name] is None}})
    options.check()
    from ham_ray.cluster import connected  # after the checks, which need neither Ray nor TensorFlow
    from ham_ray.commands import tuning
    from ham_ray.evaluation import summary

    with connected():
        found = tuning.run(options)
    tuning.show(found)
    if found.summary:
        summary.show(found.summary)
    print(f"report: {found.place}/report.html; trials: {found.place}/trials.csv")


if __name__ == "__main__":
    console.run(main, "Ray and TensorFlow", "finished trials and epochs are kept; the same command goes on")
