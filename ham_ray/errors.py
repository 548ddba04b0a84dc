"""The errors a user can mend: each message names the culprit, the value and the remedy; and any error on one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave. Jobs print its message on one line and exit with its code, no traceback."""

    exit_code = 2


def shown(value: object) -> str:
    """Write a value as an error shows it: on one line, and cut where it is long."""
    text = str(value)
    text = text if text and text.isprintable() else repr(text)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def listed(names: Iterable[str]) -> str:
    """List choices as a sentence has them: `a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def some(names: Iterable[str], most: int = 5) -> str:
    """List the first of the names as a message has them: `a, b, …`; each as `shown` writes it."""
    names = [*names]
    return ", ".join([*map(shown, names[:most]), *(["…"] if len(names) > most else [])])


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Make the error for a name that is in no list, with the near ones (or all, where none is near)."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name[:100]!r}; {hint}")


def cause(error: BaseException) -> BaseException:
    """Unwrap what Ray puts around an error that was raised in a task, in an actor or in a worker of a training."""
    while (inner := _wrapped(error)) is not None:
        error = inner
    return error


def in_words(error: BaseException) -> str:
    """Say the cause of an error on one line: what was raised, or what became of the process that should have worked.

    A UserError gives its message, an OSError the reason and the file where that is known.
    """
    error = cause(error)
    if isinstance(error, UserError):
        return str(error)
    kind = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [kind]
    if isinstance(error, OSError):
        # Ray Data adds advice of several lines where the file's name stands.
        file = f": {error.filename}" if error.filename and "\n" not in str(error.filename) else ""
        return f"{(error.strerror or lines[0]).splitlines()[0]}{file}"
    if not _is_of_ray(error):
        return kind if lines == [kind] else f"{kind}: {lines[0]}"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    known = next((words for kind, words in _ENDS.items() if kind in kinds), kind)
    # Ray's reason stands in the last line; of an OutOfMemoryError, whose further lines are advice, in the first.
    reason = lines[0] if "OutOfMemoryError" in kinds else lines[-1]
    return f"{known} ({reason[:300]})"


_ENDS = {  # by the names of Ray's classes: this module does not import it
    "OutOfMemoryError": "Ray ended a process because its node ran out of memory",
    "NodeDiedError": "a node is gone",
    "ObjectLostError": "data were lost with the node or the process that held them",
    "RayActorError": "a process died",
    "WorkerCrashedError": "a process died",
}


def _wrapped(error: BaseException) -> BaseException | None:
    """Return the error inside one of Ray's; None where it is the cause itself."""
    if not _is_of_ray(error):
        return None
    failures = getattr(error, "worker_failures", None)  # of a training, by rank
    if failures:
        return failures[min(failures)]
    names = ("cause", "controller_failure", "health_check_failure", "_base_exc", "__cause__")
    result = (getattr(error, name, None) for name in names)
    return next((inner for inner in result if isinstance(inner, BaseException)), None)


def _is_of_ray(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] == "ray"
