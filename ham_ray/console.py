"""What all jobs share on the command line: errors on one line, progress of counted work."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ham_ray.errors import UserError

EVERY = 30.0  # seconds between lines of progress


def run(command: Callable[..., None]) -> None:
    """Run a job's function as a command line; a user's mistake is one line on stderr and exit code 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written, a store that does not answer
        print(f"error: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Import TensorFlow without the notices its C++ code writes to stderr before any setting can reach it.

    What was written is shown where the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as notices:
        stderr = os.dup(2)
        os.dup2(notices.fileno(), 2)
        try:
            yield
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def for_tables() -> Console:
    """Standard output, 100 columns wide where it is no terminal (rich would take 80)."""
    console = Console()
    console.width = console.width if console.is_terminal else 100
    return console


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with pace and time left; the block calls what it is given with (done, total).

    Outside a terminal, where a bar cannot be, a line every half minute.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
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
            bar.update(task, completed=done, total=total, visible=True, pace=f"{speed:.0f} images/s" if speed else "")

        yield told


def _lines(what: str) -> Callable[[int, int], None]:
    """What counts by lines; work that was done before the first call does not count for the pace."""
    first, last = None, time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        first = first or (done, last)
        if now - last < EVERY or done == first[0]:
            return
        last, pace = now, (done - first[0]) / (now - first[1])
        left = (total - done) / pace
        print(
            f"{what}: {done:,} of {total:,} images, {pace:.0f} images/s, {left:.0f} s left", file=sys.stderr, flush=True
        )

    return told
