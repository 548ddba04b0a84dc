"""A job in two processes: one works, the other supervises it.

The supervisor takes the signals, keeps what libraries write to standard error out of the terminal, says the last line,
and leaves no process behind: it adopts every orphan of the job (Ray's processes among them) and ends it, also where
process 1 reaps nobody.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

PATIENCE = 10  # seconds for a job to end by itself after the first signal
_REAPING = 5.0  # seconds for the kernel to end what was killed
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPT = signal.SIGUSR2  # to the working process; Tune and Train take SIGINT and SIGUSR1 for themselves
_MARK = "HAM_RAY_SUPERVISED"  # in its environment: the supervisor's pid, two file descriptors and the log
# Of Ray's C++ code: [date time level pid thread] file:line: message
_ERROR = re.compile(r"^\[[-\d]+ [:,\d]+ [EFC] \d+ \d+\] \S+: (?!:info_message:)(.+?)(?:\. |\.?$)", re.MULTILINE)
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)


@dataclass(frozen=True)
class Ending:
    """How a job ended: its exit code, and its last line for standard error, which may be empty."""

    code: int
    line: str = ""


@dataclass(frozen=True)
class Supervised:
    """What the working process has of its supervisor: the terminal's standard error, and the log, which is its own."""

    terminal: TextIO
    log: Path
    _result: int

    def end(self, ending: Ending) -> NoReturn:
        """End this process at once: what would be cleaned up at an interpreter's exit ends with it."""
        os.write(self._result, f"{ending.code} {ending.line}".encode(errors="backslashreplace"))
        os._exit(ending.code)


def supervised() -> Supervised | None:
    """Make this the working process where a supervisor has started it; else None."""
    mark = os.environ.pop(_MARK, "")  # popped: jobs that this one starts have supervisors of their own
    if not mark:
        return None
    parent, terminal, result, log = mark.split(",", 3)
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)  # the supervisor died before the line above
    for descriptor in (int(terminal), int(result)):
        os.set_inheritable(descriptor, False)
    signal.signal(_INTERRUPT, _raise_interrupt)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})  # a terminal's Ctrl-C is the supervisor's business
    stream = open(int(terminal), "w", buffering=1, encoding=sys.stdout.encoding)  # noqa: SIM115, PTH123
    return Supervised(stream, Path(log), int(result))


def supervise(kept: str) -> Ending:
    """Start this command again as a working process, and see it to its end.

    Args:
        kept: what an interrupted job leaves, and what to do then, for its last line.
    """
    folder = Path(tempfile.mkdtemp(prefix="ham_ray-"))
    log = folder / "log.txt"
    watch = _Watch()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    reader = watch.start(folder, log)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with os.fdopen(reader, "rb") as words:
        said = words.read().decode()  # until the process has ended
    status = watch.job.wait()
    signal.alarm(0)
    _end_orphans()
    if status < 0 and os.isatty(2):
        os.write(2, b"\r\n\x1b[?25h")  # killed under a progress bar, which hides the cursor
    ending = _ending(said, status, watch.signal, kept, log)
    shutil.rmtree(folder / "keras", ignore_errors=True)
    if str(log) not in ending.line:
        shutil.rmtree(folder, ignore_errors=True)
    return ending


class _Watch:
    """The working process, and the first signal that came for it."""

    job: subprocess.Popen[bytes]
    signal: int = 0

    def start(self, folder: Path, log: Path) -> int:
        """Start the process and return the file descriptor of its last words. Call it while signals are blocked."""
        reader, result = os.pipe()
        terminal = os.dup(2)
        mark = f"{os.getpid()},{terminal},{result},{log}"
        with log.open("wb") as stderr:
            self.job = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env={**_environment(folder), _MARK: mark},
                stderr=stderr,
                pass_fds=[terminal, result],
            )
        os.close(terminal)
        os.close(result)
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background
                signal.signal(number, self._interrupt)
        signal.signal(signal.SIGALRM, lambda number, frame: self.job.kill())
        return reader

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Let the job end what it is at; kill it at the second signal, or when it takes too long."""
        if self.signal:
            self.job.kill()
            return
        self.signal = number
        self.job.send_signal(_INTERRUPT)
        signal.alarm(PATIENCE)


def _environment(folder: Path) -> dict[str, str]:
    """Make the working process's environment: libraries take only the settings that this project is made for."""
    own = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    return {
        **own,
        "PYTHONUTF8": "1",  # files are UTF-8 whatever the terminal is
        "PYTHONIOENCODING": f"{sys.stdout.encoding}:backslashreplace",
        "TF_CPP_MIN_LOG_LEVEL": own.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "KERAS_BACKEND": "tensorflow",
        "KERAS_HOME": str(_keras_home(folder / "keras")),
    }


def _keras_home(own: Path) -> Path:
    """Make a folder without keras.json (it may ask for channels_first, float64 or nonsense), but with Keras's cache."""
    cache = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"
    own.mkdir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        (own / "models").symlink_to(cache.absolute())
    except OSError:
        pass  # a home that may not be written: what is downloaded is not kept
    return own


def _ending(said: str, status: int, number: int, kept: str, log: Path) -> Ending:
    """Return the job's own ending, unless a signal came first or the job died without a word."""
    code, _, line = said.partition(" ")
    if said and not (number and int(code)):
        return Ending(int(code), line)
    if number:
        return Ending(128 + number, f"interrupted: {kept}")
    how = f"exit code {status}" if status >= 0 else signal.Signals(-status).name
    guess = "as for want of memory" if status == -signal.SIGKILL else "as when one of Ray's own processes is gone"
    cause = _last_error(log) or guess
    line = f"error: the job's process died ({how}: {cause}); {kept}; what Ray and TensorFlow wrote: {log}"
    return Ending(status if status > 0 else 128 - status, line)


def _last_error(log: Path) -> str:
    """Return the first sentence of the last error that Ray's C++ code wrote to the log; "" without one."""
    errors = _ERROR.findall(log.read_text(encoding="utf-8", errors="replace"))
    return errors[-1] if errors else ""


def _end_orphans() -> None:
    """Kill what the job has left, and what that leaves, until nothing is.

    `ray.shutdown` alone leaves the dashboard's processes to process 1 (Ray 2.60), a killed driver all of Ray's.
    """
    deadline = time.monotonic() + _REAPING
    while time.monotonic() < deadline:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _children() -> list[int]:
    """List this process's own children by pid, zombies included; none where there is no /proc."""
    result = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if parent == os.getpid():
            result.append(int(stat.parent.name))
    return result


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
