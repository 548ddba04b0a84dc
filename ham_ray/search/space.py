"""Search spaces: a YAML file to a validated space, its Optuna distributions and its prior points.

Every mistake is reported with file and line before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ham_ray.errors import UserError, unknown_name
from ham_ray.recipe import BASELINES, FIELDS, SHORTEST, Recipe, baseline, field_info
from ham_ray.search import space_file

Value = bool | int | float | str
Place = tuple[str | int, ...]
_UNSEARCHED = {
    **dict.fromkeys(("family", "test_fold", "validation_fold", "select_by", "seed"), "it decides what is measured"),
    "precision": "the processor decides it, or --precision",
}

_DOTTED = {short: dotted for dotted, short in SHORTEST.items()}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sampler(_Strict):
    """How values are drawn: by Optuna's TPE, or at random to compare with it."""

    name: Literal["tpe", "random"] = "tpe"
    seed: int = Field(default=0, ge=0, lt=2**31)
    multivariate: bool = True


class Scheduler(_Strict):
    """What stops trials after `grace` epochs: successive halving (ASHA), the median of the others, or nothing."""

    name: Literal["asha", "median", "none"] = "asha"
    grace: int = Field(default=3, ge=1, description="epochs every trial may train")
    reduction: int = Field(default=3, ge=2, description="one in this many goes on at each rung (ASHA)")


class Numbers(_Strict):
    """A range of numbers, ends included."""

    type: Literal["float", "int"]
    low: float
    high: float
    log: bool = False
    step: Annotated[float | None, BeforeValidator(lambda value: None if value == "null" else value)] = Field(
        default=None, gt=0
    )
    when: dict[str, list[Value] | Value] = {}

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Draw the trial's value of the parameter `name`."""
        if self.type == "int":
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def distribution(self) -> BaseDistribution:
        """Return the distribution that `suggest` draws from."""
        if self.type == "int":
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def wrong(self) -> str | None:
        """Say what is wrong with the range; None where nothing is."""
        if self.low > self.high:
            return f"empty range: low {self.low:g} is above high {self.high:g}"
        if self.log and self.low <= 0:
            return f"log: true needs low above 0, got {self.low:g}"
        if self.log and self.step:
            return "log and step exclude each other"
        if self.type == "int" and any(value != int(value) for value in (self.low, self.high, self.step or 1)):
            return "type int needs whole numbers in low, high and step"
        return None

    def values(self) -> Sequence[Value]:
        """List all values of a range of whole numbers."""
        return range(int(self.low), int(self.high) + 1, int(self.step or 1))

    def ends(self) -> Sequence[Value]:
        """Return the ends of the range, both of which a recipe has to accept."""
        return [int(self.low), int(self.high)] if self.type == "int" else [self.low, self.high]


class Choices(_Strict):
    """Values without order."""

    type: Literal["choice"]
    choices: list[Value] = Field(min_length=1)
    when: dict[str, list[Value] | Value] = {}

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Draw the trial's value of the parameter `name`."""
        chosen: Any = trial.suggest_categorical(name, self.choices)
        return chosen

    def distribution(self) -> BaseDistribution:
        """Return the distribution that `suggest` draws from."""
        return CategoricalDistribution(self.choices)

    def wrong(self) -> str | None:
        """Say what is wrong with the choices; None where nothing is."""
        return f"choices are given twice: {self.choices}" if len({*self.choices}) < len(self.choices) else None

    def values(self) -> Sequence[Value]:
        """Return all choices."""
        return self.choices

    def ends(self) -> Sequence[Value]:
        """Return all choices, each of which a recipe has to accept."""
        return self.choices


Parameter = Annotated[Numbers | Choices, Field(discriminator="type")]


class Space(_Strict):
    """What a search varies, what it holds fixed, what it maximises and how it goes about it.

    `finals` are recipe fields that have other values when the best trials are trained again, such as more epochs.
    """

    family: str
    recipe: dict[str, Value] = {}
    finals: dict[str, Value] = {}
    objective: Literal["balanced_accuracy", "macro_f1"] = "balanced_accuracy"
    sampler: Sampler = Sampler()
    scheduler: Scheduler = Scheduler()
    parameters: dict[str, Parameter] = Field(min_length=1)
    points: list[dict[str, Value]] = []

    def base(self) -> Recipe:
        """Return the family's baseline with the space's fixed fields; early stopping follows the objective."""
        return baseline(self.family).changed(**{"select_by": self.objective, **self.recipe})

    def record(self) -> dict[str, Any]:
        """Return what a study's values depend on, as JSON: what is searched and for what, but not how.

        A field that is new to the code belongs here only where it differs from its default; see `Recipe.record`.
        """
        return self.model_dump(include={"family", "recipe", "objective", "parameters"})

    def combinations(self, *names: str) -> list[dict[str, Value]]:
        """List the combinations of values that fields of whole numbers or choices may have in a trial."""
        result: list[dict[str, Value]] = [{}]
        for name, parameter in self.parameters.items():
            if name in names:
                inside = {other: values for other, values in parameter.when.items() if other in names}
                always = len(inside) == len(parameter.when)  # else also without this parameter
                result = [
                    {**chosen, **more}
                    for chosen in result
                    for more in (
                        [{name: value} for value in parameter.values()] + ([] if always else [{}])
                        if _holds(inside, chosen)
                        else [{}]
                    )
                ]
        return result

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """Ask the trial for every parameter that is active, in the order of the file."""
        chosen: dict[str, Value] = {}
        for name, parameter in self.parameters.items():
            if _active(parameter, chosen):
                chosen[name] = parameter.suggest(trial, name)
        return chosen


def load_space(path: str | Path) -> Space:
    """Read and check a space.

    Raises:
        UserError: `file:line: what is wrong`, with the near names where one is unknown.
    """
    root, content = space_file.read(path)
    try:
        return _checked(content)
    except _Wrong as error:
        raise UserError(f"{path}:{_line(root, error.place)}: {error}") from None


class _Wrong(Exception):
    """A mistake in the file, with the path of the entry that has it."""

    def __init__(self, path: Place, message: str) -> None:
        super().__init__(message)
        self.place = path


def _checked(content: dict[str, Any]) -> Space:
    _known("name", content, Space.model_fields, ())
    content = {name: _with_shortest_names(inside, (name,)) for name, inside in content.items()}
    try:
        space = Space(**content)
    except ValidationError as error:
        raise _first(error, content) from None
    _known("family", [space.family], BASELINES, ("family",))
    _known("recipe field", space.recipe, FIELDS, ("recipe",))
    _known("recipe field", space.finals, FIELDS, ("finals",))
    _known("recipe field", space.parameters, FIELDS, ("parameters",))
    _accepted(space, {}, ("recipe",) if space.recipe else ("family",))
    for name, value in space.finals.items():
        _accepted(space, {name: value}, ("finals", name))
    for name in space.parameters:
        _check_parameter(space, name)
    for index, point in enumerate(space.points):
        _check_point(space, point, ("points", index))
    return space


def _with_shortest_names(content: Any, path: Place) -> Any:
    """Give each recipe field below an entry of the file its shortest name: `Space` knows no other."""
    if isinstance(content, list):
        return [_with_shortest_names(one, (*path, index)) for index, one in enumerate(content)]
    if not isinstance(content, dict):
        return content
    renamed: dict[Any, Any] = {}
    for name, inside in content.items():
        short = SHORTEST.get(name) or name
        if short in renamed:
            raise _Wrong((*path, name), f"{short} is here twice, also as {_DOTTED[short]}; choose one")
        renamed[short] = _with_shortest_names(inside, (*path, short))
    return renamed


def _first(error: ValidationError, content: dict[str, Any]) -> _Wrong:
    """Return pydantic's first error as a mistake in the file.

    pydantic's path of the entry names a union's member, which the file does not: it is left out.
    """
    result = error.errors()[0]
    path = tuple(part for part in result["loc"] if part not in ("float", "int", "choice"))
    if result["type"] == "extra_forbidden":
        fields = {
            "sampler": [*Sampler.model_fields],
            "scheduler": [*Scheduler.model_fields],
            "parameters": [*({*Numbers.model_fields} | {*Choices.model_fields})],
        }
        return _Wrong(path, str(unknown_name("name", str(path[-1]), fields.get(str(path[0]), []))))
    if result["input"] is None:
        return _Wrong(path, f"{'.'.join(map(str, path))}: nothing is given")
    got = "" if result["type"] == "missing" else f", got {result['input']!r}"[:100]
    return _Wrong(path, f"{'.'.join(map(str, path))}: {result['msg']}{got}"[:300])


def _known(kind: str, names: Iterable[str], known: Iterable[str], path: Place) -> None:
    listed = [*known]
    for name in names:
        if name not in listed:
            raise _Wrong(path if kind == "family" else (*path, name), str(unknown_name(kind, str(name), listed)))


def _check_parameter(space: Space, name: str) -> None:
    parameter, path = space.parameters[name], ("parameters", name)
    if reason := _UNSEARCHED.get(name):
        raise _Wrong(path, f"{name} is no parameter of a search: {reason}")
    if name in space.recipe:
        raise _Wrong(path, f"{name} is fixed under recipe: and searched as well; choose one")
    if name in space.finals:
        raise _Wrong(("finals", name), f"{name} is searched: the finals take it from the trial")
    if parameter.type == "float" and field_info(name).annotation is int:
        raise _Wrong((*path, "type"), f"{name} is a whole number: type: int")
    if problem := parameter.wrong():
        raise _Wrong(path, f"{name}: {problem}")
    for end in parameter.ends():
        _accepted(space, {name: end}, path)
    _check_condition(space, name)


def _check_condition(space: Space, name: str) -> None:
    path, before = ("parameters", name, "when"), [*space.parameters][: [*space.parameters].index(name)]
    for other, values in space.parameters[name].when.items():
        if other not in before:
            raise _Wrong(path, f"{name}: 'when' names {other!r}; known above it: {', '.join(before)}")
        for value in _listed(values):
            if not _contains(space.parameters[other], value):
                raise _Wrong(path, f"{name}: {other} never is {value!r}")


def _check_point(space: Space, point: Mapping[str, Value], path: Place) -> None:
    for name, value in point.items():
        if name in FIELDS and name not in space.parameters:
            raise _Wrong((*path, name), f"{name} is a constant in this space: leave it out of the point")
        _known("parameter", [name], space.parameters, path)
        if not _contains(space.parameters[name], value):
            raise _Wrong((*path, name), f"{name}: {value!r} is outside {_range(space.parameters[name])}")
        if not _active(space.parameters[name], point):
            raise _Wrong((*path, name), f"{name} is not searched at this point: its 'when' does not hold")


def _accepted(space: Space, changes: dict[str, Any], path: Place) -> None:
    try:
        space.base().changed(**changes)
    except UserError as error:
        culprit = str(error).partition(":")[0]  # of a value; fields that contradict each other have none
        raise _Wrong((*path, culprit) if culprit in space.recipe else path, str(error)) from None


def _contains(parameter: Numbers | Choices, value: Value) -> bool:
    if isinstance(parameter, Choices):
        return value in parameter.choices
    if isinstance(value, bool | str):
        return False
    if not parameter.low <= value <= parameter.high or (parameter.type == "int" and value != int(value)):
        return False
    places = (value - parameter.low) / parameter.step if parameter.step else 0.0
    return abs(places - round(places)) < 1e-6


def _range(parameter: Numbers | Choices) -> str:
    if isinstance(parameter, Choices):
        return f"the choices {parameter.choices}"
    return f"{parameter.low:g}–{parameter.high:g}" + (f" in steps of {parameter.step:g}" if parameter.step else "")


def _active(parameter: Numbers | Choices, chosen: Mapping[str, Value]) -> bool:
    return _holds(parameter.when, chosen)


def _holds(when: Mapping[str, list[Value] | Value], chosen: Mapping[str, Value]) -> bool:
    return all(chosen.get(name) in _listed(values) for name, values in when.items())


def _listed(values: list[Value] | Value) -> list[Value]:
    return values if isinstance(values, list) else [values]


def _line(node: yaml.Node | None, path: Place) -> int:
    """Return the line of an entry, counted from 1, or of the nearest entry around it."""
    line = node.start_mark.line + 1 if node else 1
    for part in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
        elif isinstance(node, yaml.MappingNode):
            names = (str(part), _DOTTED.get(str(part)))
            result = next(((key, value) for key, value in node.value if key.value in names), None)
            if result is None:
                return line
            line, node = result[0].start_mark.line + 1, result[1]
            continue
        else:
            return line
        line = node.start_mark.line + 1
    return line
