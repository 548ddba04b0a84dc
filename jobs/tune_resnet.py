"""Search the fine-tuned ResNet50's learning rate, unfreeze depth and class-weight scale by Bayesian optimisation.

Examples:
    python jobs/tune_resnet.py --smoke                               # synthetic; 2 minutes
    python jobs/tune_resnet.py --data images/ham10000 --trials 30    # hours
    ray job submit --working-dir . -- python jobs/tune_resnet.py --data … --out …

It is jobs/tune.py with search_spaces/resnet50.yaml as its space. The same command goes on after an interruption; with
more --trials it extends a finished search.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from typer import Option

from ham_ray.workflows import tune


@dataclass(frozen=True, kw_only=True)
class Options(tune.Options):
    """The command line of `jobs/tune.py`, with a space by default."""

    space: Annotated[str | None, Option(help="YAML; default search_spaces/resnet50.yaml")] = None
    default_space: ClassVar[str | None] = "resnet50.yaml"


JOB = replace(tune.JOB, options=Options, help=__doc__)

if __name__ == "__main__":
    JOB.main()
