"""Command lines of all jobs: what `--help` names, what is refused, and `ham-ray NAME` beside `jobs/NAME.py`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from ham_ray import console, recipe
from ham_ray.command_line import JOBS, Job, all_jobs, job_of
from ham_ray.errors import UserError

pytestmark = pytest.mark.job
ROOT = Path(__file__).parents[2]
WIDE = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
HEAVY = ("ray", "tensorflow", "keras")
SCRIPTS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))


def script(name: str) -> Any:
    """The module of `jobs/NAME.py`, imported as its process imports it."""
    spec = importlib.util.spec_from_file_location(f"job_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass(frozen=True)
class Taken:
    """A field of Options as a command line takes it: its type, and the names that shells complete."""

    field: dataclasses.Field
    name: str  # --option, or the field's of a positional argument
    kind: Any
    help: str
    switch: bool  # without --no-option
    offered: tuple[str, ...]

    @property
    def required(self) -> bool:
        return self.field.default is self.field.default_factory  # both are missing

    @property
    def choices(self) -> tuple[str, ...]:
        """All that it may be, where that is a few names."""
        return self.offered if self.kind in (str, str | None) and self.name != "--families" else ()


def taken(job: Job[Any]) -> list[Taken]:
    kinds = get_type_hints(job.options, include_extras=True)
    parameters = {parameter.name: parameter for parameter in typer.main.get_command(alone(job.function)).params}
    found = []
    for field in dataclasses.fields(job.options):
        kind, info = get_args(kinds[field.name])[:2]
        parameter = parameters[field.name]
        offered = tuple(info.autocompletion("")) if info.autocompletion else ()
        switch = kind is bool and not parameter.secondary_opts
        name = parameter.metavar or parameter.opts[0]
        found.append(Taken(field, name, kind, info.help, switch, offered))
    return found


def alone(function: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return app


def required(job: Job[Any]) -> list[str]:
    """Arguments without which the job is refused."""
    return [f"{one.name}=x" if one.name.startswith("--") else "x" for one in taken(job) if one.required]


def python(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **WIDE}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, **more)


def test_every_job_has_a_script_and_a_command():
    assert {*JOBS} == {*SCRIPTS} - {"tune_resnet"}
    listed = CliRunner().invoke(all_jobs(), ["--help"], env=WIDE).stdout
    for name in JOBS:
        assert re.search(rf"^│ {name} +{re.escape(job_of(name).help.splitlines()[0][:40])}", listed, re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_each_option_once_with_its_default_and_the_examples(name: str):
    job = script(name).JOB
    words = CliRunner().invoke(alone(job.function), ["--help"], env=WIDE).stdout
    assert f"python jobs/{name}.py " in words
    for one in taken(job):
        (row,) = (line for line in words.splitlines() if re.search(rf"^│ [* ]*{one.name} ", line))
        assert one.help and one.help in row and all(choice in row for choice in one.choices)
        default = one.field.default
        if one.required:
            assert "[required]" in row
        elif one.switch:
            assert default is False and "--no-" not in row
        elif one.field.default_factory is not dataclasses.MISSING:
            assert all(f"[default: {item}]" in row for item in one.field.default_factory())
        elif default is not None:
            assert f"[default: {one.name.replace('--', 'no-') if default is False else default}]" in row


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_command_line_loads_neither_ray_nor_tensorflow(name: str):
    code = f"""
import runpy, sys
for words in (["--help"], ["--no-such-option"]):
    sys.argv = ["job", *words]
    try:
        runpy.run_path({str(ROOT / "jobs" / f"{name}.py")!r}, run_name="__main__")
    except SystemExit as end:
        print("ended with", end.code)
print("loaded", *(name for name in {(*HEAVY, "pandas")} if name in sys.modules))
"""
    done = python("-c", code)
    assert re.findall(r"^(?:ended with|loaded).*", done.stdout, re.MULTILINE) == [
        "ended with 0",
        "ended with 2",
        "loaded",
    ]
    assert "No such option: --no-such-option" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_required_is_asked_for_before_anything_starts(name: str):
    app = alone(console.command(script(name).JOB.function, "much", "all"))
    words = required(script(name).JOB)
    for left_out in words:
        result = CliRunner().invoke(app, [word for word in words if word != left_out])
        missing = left_out.partition("=")[0] if "=" in left_out else "argument"
        assert result.exit_code == 2 and f"Missing {'option' if '=' in left_out else ''}" in result.output
        assert missing in result.output and "loading" not in result.output


CHOICES = [(name, one.name, one.choices) for name in SCRIPTS for one in taken(script(name).JOB) if one.choices]


def none_such(name: str, option: str) -> list[str]:
    """Arguments of a job with no such choice."""
    return [*(word for word in required(script(name).JOB) if not word.startswith(f"{option}=")), f"{option}=none-such"]


@pytest.mark.parametrize(("name", "option", "names"), CHOICES)
def test_what_is_none_of_a_few_names_is_refused_with_them(
    name: str, option: str, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(alone(script(name).JOB.function), none_such(name, option))
    *first, last = names
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == f"{option} none-such: choose {', '.join(first)} or {last}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "option"), {name: option for name, option, _ in CHOICES}.items())
def test_a_process_says_so_in_one_line(name: str, option: str, tmp_path: Path):
    done = python(str(ROOT / "jobs" / f"{name}.py"), *none_such(name, option), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {option} none-such: choose ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def every(job: Job[Any]) -> tuple[list[str], dict[str, Any]]:
    """Arguments that set every option to another value than its default, and the options that they make."""
    words: list[str] = []
    values: dict[str, Any] = {}
    for one in taken(job):
        kinds, option, value = {one.kind, *get_args(one.kind)}, one.name, None
        if one.kind is bool:
            value, texts = not one.field.default, []
            words.append(option if value else option.replace("--", "--no-"))
        elif kinds & {int, float}:
            value, texts = 7, ["7"]
        elif list[str] in kinds:
            value = texts = [f"first {one.field.name}", "a=b,c"]
        else:
            value = next(text for text in (*one.offered, "some é text") if text != one.field.default)
            texts = [value]
        words += [f"{option}={text}" for text in texts] if option.startswith("--") else texts
        values[one.field.name] = value
    return words, values


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that work in this process."""
    monkeypatch.setattr(console, "command", lambda function, loads, kept: function)


def made(app: typer.Typer, words: list[str]) -> None:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", JOBS)
def test_a_script_and_a_command_make_the_same_options(name: str, here: None, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    module = importlib.import_module(f"ham_ray.workflows.{name}")
    monkeypatch.setattr(module, "JOB", dataclasses.replace(module.JOB, run=seen.append))
    words, values = every(module.JOB)
    made(alone(script(name).JOB.function), words)
    made(all_jobs(), [name, *words])
    assert seen == [module.Options(**values)] * 2
    unlike = [getattr(seen[0], one.field.name) != one.field.default for one in taken(module.JOB) if not one.required]
    assert all(unlike)


def as_module(folder: Path) -> list[str]:
    return [sys.executable, "-m", "ham_ray"]


def as_installed(folder: Path) -> list[str]:
    """The script that pip makes of `[project.scripts]`."""
    ((name, entry),) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
    module, function = entry.split(":")
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    path.chmod(0o755)
    return [str(path)]


@pytest.mark.parametrize("command", [as_module, as_installed])
def test_a_command_works_in_a_process_of_its_own_as_the_script_does(
    command: Callable[[Path], list[str]], tmp_path: Path
):
    (tmp_path / "bin").mkdir()
    words = [*command(tmp_path / "bin"), "evaluate", "--predictions", "nothere.csv", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "loading pandas and scikit-learn …\n")
    assert done.stderr == (
        "error: --predictions nothere.csv: no such file or folder; give a table as jobs/predict.py writes it, Parquet "
        "or CSV\n"
    )


def completed(words: str) -> list[str]:
    environment = {"_HAM_RAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        result = CliRunner().invoke(all_jobs(), prog_name="ham-ray")
    return result.stdout.split()


def test_a_shell_completes_choices_families_and_fields():
    assert completed("ham-ray ingest --geometry ") == ["crop", "squash"]
    assert completed("ham-ray predict --precision f") == ["float32"]
    assert completed("ham-ray baseline --families simple_cnn,s") == []
    assert completed("ham-ray baseline --families resnet50_frozen,s") == ["resnet50_frozen,simple_cnn"]
    assert completed("ham-ray baseline --set label") == ["label_smoothing="]


def test_fields_are_all_listed_with_both_names_values_and_defaults():
    done = python("-X", "importtime", "-m", "ham_ray", "fields")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 100
    assert not re.search(r"\| +(ray|tensorflow|keras|pandas)$", done.stderr, re.MULTILINE)
    words = done.stdout.split()
    for dotted, shortest in recipe.SHORTEST.items():
        assert dotted in words and shortest in words
        assert recipe.field_info(shortest).description, f"{dotted} says not what it is"
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    for name, begin in {
        "learning_rate": "float the family's",
        "optimizer.learning_rate": "> 0",
        "test_fold": "int 0",
        "data.test_fold": "≥ 0, < 5",
        "augmentation": "off, light, strong",
    }.items():
        assert " ".join(rows[name]).startswith(begin)


def test_a_space_is_asked_for_by_tune_alone_and_smoke_has_its_own():
    tune, resnet = job_of("tune").options, script("tune_resnet").JOB.options
    assert {path.name for path in (ROOT / "search_spaces").glob("*.yaml")} >= {"smoke.yaml", "resnet50.yaml"}
    assert Path(tune(smoke=True).space_file).name == Path(resnet(smoke=True).space_file).name == "smoke.yaml"
    assert Path(resnet().space_file).name == "resnet50.yaml"
    assert tune(space="a.yaml", smoke=True).space_file == resnet(space="a.yaml").space_file == "a.yaml"
    assert (tune().counts, tune(smoke=True, trials=9).counts) == ((30, 3, 3), (9, 1, 1))
    assert resnet(finalists=0, smoke=True).counts == (4, 0, 1)
