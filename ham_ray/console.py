"""What all jobs share in a terminal: first and last line, errors on one line, progress of counted work."""

from __future__ import annotations

import codecs
import functools
import inspect
import io
import sys
import time
import traceback as tracebacks
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ham_ray.errors import UserError, cause, in_words
from ham_ray.progress import duration
from ham_ray.supervision import Ending, Supervised, supervise, supervised

EVERY = 30.0  # seconds between lines of progress
NOTHING_KEPT = "nothing is kept; the same command starts afresh"
_ASCII = {"–": "-", "−": "-", "×": "x", "…": "...", "→": "->", "±": "+-", "≥": ">=", "≤": "<=", "·": "-"}
_process: Supervised | None = None  # where this is the working process of a job


def run(main: Callable[..., None], loads: str = "", kept: str = NOTHING_KEPT) -> None:
    """Run a function as a command line of its own, see `command`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command(main, loads, kept))
    start(app)


def start(app: typer.Typer) -> None:
    """Run a command line, whose commands `command` made."""
    global _process
    _process = supervised()
    _accept_any_encoding()
    app()


def command(main: Callable[..., None], loads: str, kept: str) -> Callable[..., None]:
    """Make a command for Typer of a job's function, with the options that all jobs have.

    The command works in a process of its own under a supervisor. Whatever ends it is one line on standard error: a
    user's mistake (exit code 2, or that of the `UserError`), a signal (128 + its number), any other exception (1; the
    line names the log that has its traceback, and `--traceback` prints it).

    Args:
        loads: what takes long to load before the job can print anything, for the first line.
        kept: what an interrupted job leaves, and what to do then, for the last line.
    """

    @functools.wraps(main)
    def job(traceback: bool, **options: Any) -> None:
        if _process:
            _process.end(_worked(functools.partial(main, **options), _process, kept))
        _supervise(loads, kept)

    own = inspect.signature(main, eval_str=True)
    option = Annotated[bool, typer.Option("--traceback", help="print the traceback of an error too")]
    more = inspect.Parameter("traceback", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
    job.__signature__ = own.replace(parameters=[*own.parameters.values(), more])  # type: ignore[attr-defined]
    job.__annotations__ = {**main.__annotations__, "traceback": option}
    return job


def _supervise(loads: str, kept: str) -> None:
    if loads:
        print(f"loading {loads} …", flush=True)
    try:
        ending = supervise(kept)
    except OSError as error:  # no temporary folder, no process
        ending = Ending(2, f"error: {in_words(error)}")
    if ending.line:
        print(ending.line, file=sys.stderr, flush=True)
    raise typer.Exit(ending.code)


def _worked(main: Callable[[], None], process: Supervised, kept: str) -> Ending:
    """Run the job, and return how it ended."""
    try:
        main()
        sys.stdout.flush()
        return Ending(0)
    except KeyboardInterrupt:
        return Ending(130)
    except BrokenPipeError:  # nobody reads standard output any more
        return Ending(1)
    except SystemExit as error:
        return Ending(error.code if isinstance(error.code, int) else int(error.code is not None))
    except BaseException as error:  # the last resort: of any library
        trace = tracebacks.format_exc()
        print(trace, file=sys.stderr, flush=True)
        line, root = f"error: {in_words(error)}".replace("\n", " "), cause(error)
        expected = isinstance(root, (UserError, OSError))
        if type(root).__module__.startswith("ray."):  # a node, a process or Ray itself is gone: no fault of the job's
            line += f"; {kept}"
        if not expected:
            line += f"; its traceback is in {process.log}, and --traceback prints it"
        code = getattr(root, "exit_code", 2) if expected else 1
        return Ending(code, f"{trace}{line}" if "--traceback" in sys.argv else line)


def terminal() -> TextIO:
    """Return standard error as the user sees it; in a job, what libraries write to `sys.stderr` goes to its log."""
    return _process.terminal if _process else sys.stderr


def _accept_any_encoding() -> None:
    """Print to standard output and error whatever their encoding is: by look-alikes, else by escapes."""
    codecs.register_error("look_alike", _look_alike)
    for stream in (sys.stdout, sys.stderr, terminal()):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="look_alike", line_buffering=True)


def _look_alike(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(char, ascii(char)[1:-1]) for char in text), error.end


def for_tables() -> Console:
    """Make a console on standard output, 100 columns wide where that is no terminal (rich would take 80)."""
    console = Console()
    console.width = console.width if console.is_terminal else 100
    return console


@contextmanager
def progress(what: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Show a bar with pace and time left; the block gets a function to call with (done, total) in `unit`.

    Outside a terminal, where a bar cannot be, print a line every half minute.
    """
    console = Console(file=terminal())
    if not console.is_terminal:
        yield _lines(what, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, pace="", visible=False)  # shown once there is something to count

        def told(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, visible=True, pace=f"{speed:.0f} {unit}/s" if speed else "")

        yield told


def _lines(what: str, unit: str) -> Callable[[int, int], None]:
    """Make what prints progress by lines; work that was done before the first call does not count for the pace."""
    first, last = None, time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        first = first or (done, last)
        if now - last < EVERY or done == first[0]:
            return
        last, pace = now, (done - first[0]) / (now - first[1])
        left = duration((total - done) / pace)
        print(f"{what}: {done:,} of {total:,} {unit}, {pace:.0f} {unit}/s, {left} left", file=terminal(), flush=True)

    return told
