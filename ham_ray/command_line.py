"""Command lines made from options: of one job for `python jobs/NAME.py`, of all of them for `ham-ray NAME`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Generic, TypeVar, get_type_hints

import typer
from rich.markup import escape
from typer.models import OptionInfo

from ham_ray import console
from ham_ray.errors import listed

JOBS = ("ingest", "baseline", "tune", "predict", "evaluate", "export")  # modules of `ham_ray.workflows`
OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Job(Generic[OptionsT]):
    """A job as a value: what its command line takes, what it does then, and how it is spoken of in a terminal.

    Args:
        options: a frozen dataclass, keywords only. Each field has its default, and in `Annotated` a `typer.Option` or
            `typer.Argument` with its help.
        run: does the work. It calls `options.check()` first, and only then imports what takes long to load.
        help: for `--help`: a sentence, then paragraphs; lines that are indented stay as they are.
        loads: what takes long to load before `run` can print anything.
        kept: what an interrupted job leaves, and what to do then.
    """

    options: type[OptionsT]
    run: Callable[[OptionsT], None]
    help: str
    loads: str
    kept: str = console.NOTHING_KEPT

    @property
    def function(self) -> Callable[..., None]:
        """The job as a function whose signature says to Typer what the command line takes."""

        def job(**values: Any) -> None:
            self.run(self.options(**values))

        parameters = _parameters(self.options)
        job.__doc__ = _for_typer(self.help)
        job.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        job.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return job

    def main(self) -> None:
        """Run the job by this process's arguments."""
        console.run(self.function, self.loads, self.kept)


def choice(names: Sequence[str], more: str = "") -> OptionInfo:
    """Make an option that takes one of these names: `--help` lists them and shells complete them.

    What is none of them is refused by `checks.choice` in the options' `check`, on one line, as any other value is.
    """

    def completed(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    help = f"{listed(names)}; {more}" if more else listed(names)
    return typer.Option(help=help, autocompletion=completed)


def job_of(name: str) -> Job[Any]:
    """Import the job of that name."""
    return importlib.import_module(f"ham_ray.workflows.{name}").JOB


def main() -> None:
    """Run `ham-ray` by this process's arguments."""
    console.start(all_jobs())


def all_jobs() -> typer.Typer:
    """Make the command line of `ham-ray`: a command for each job, and `fields`."""
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Skin-lesion classification on dermatoscopic images: from an archive to trained and evaluated models.",
    )
    for name in JOBS:
        job = job_of(name)
        app.command(name)(console.command(job.function, job.loads, job.kept))
    app.command("fields")(_show_fields)
    return app


def _show_fields() -> None:
    """List the fields of a recipe, which --set and search spaces change."""
    from ham_ray import recipe_fields  # here: most commands need no recipes

    recipe_fields.show()


def _parameters(options: type) -> list[inspect.Parameter]:
    """Make the fields of a dataclass parameters of a function, keywords only."""
    kinds = get_type_hints(options, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, keyword, default=_default(field), annotation=kinds[field.name])
        for field in dataclasses.fields(options)
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _for_typer(help: str) -> str:
    """Escape text so that Typer shows it as it is: no markup in it, and only indented lines keep their line breaks."""
    paragraphs = inspect.cleandoc(help).split("\n\n")
    joined = [text if "\n " in text or text.startswith(" ") else text.replace("\n", " ") for text in paragraphs]
    return escape("\n\n".join(joined))
