"""How a job ends, in real processes with real signals: one line, an exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.job
KEPT = "half of it is kept; the same command goes on"
JOB = f"""
from ham_ray import console, supervision
supervision.PATIENCE = 600
def main(work: str) -> None:
    exec(work, {{}})
console.run(main, "nothing", "{KEPT}")
"""
# Short sleeps: Python sleeps on where a signal comes between its look for signals and the system's call.
WAIT = "import time; print('working', flush=True); [time.sleep(0.2) for _ in range(3000)]"
STUBBORN = """
import time
line = "working"
while True:
    try:
        print(line, flush=True)
        for _ in range(3000):
            time.sleep(0.2)
    except KeyboardInterrupt:
        line = "goes on"
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where jobs keep their logs while they run."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def start(work: str, *options: str, patience: int = 600, **more) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", JOB.replace("600", str(patience)), work, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **more)


def run(work: str, *options: str, **more) -> tuple[int, str, str]:
    job = start(work, *options, **more)
    out, err = job.communicate(timeout=60)
    return job.returncode, out, err


def interrupted(work: str, number: signal.Signals, times: int, group: bool, **more) -> tuple[int, str, str, float]:
    """Send a signal to a working job, or to all its processes as a terminal does; with the seconds until it ended.

    Who does not end by the signal works on for ten minutes, longer than this waits.
    """
    job = start(work, **more)
    assert job.stdout and job.stdout.readline() and job.stdout.readline() == "working\n"
    sent = time.monotonic()
    for _ in range(times):
        (os.killpg if group else os.kill)(job.pid, number)
        if times > 1:
            assert job.stdout.readline() in ("goes on\n", "")
    out, err = job.communicate(timeout=120)
    return job.returncode, out, err, time.monotonic() - sent


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_job_says_what_it_loads_first_and_leaves_no_log(temporary: Path):
    assert run("print('done')") == (0, "loading nothing …\ndone\n", "")
    assert not list(temporary.iterdir())


def test_what_libraries_write_to_standard_error_is_not_shown(temporary: Path):
    work = """
import logging, os, sys, warnings
from ham_ray.console import terminal
os.write(2, b"core_worker.cc: a line from C++\\n")
os.system("echo a line of a process >&2")
logging.getLogger("ray").warning("a line of a logger")
warnings.warn("a warning")
print("a line of ours", file=terminal())
"""
    assert run(work) == (0, "loading nothing …\n", "a line of ours\n")


@pytest.mark.parametrize(
    ("work", "line"),
    [
        ("from ham_ray.errors import UserError; raise UserError('--size 3: at least 16')", "--size 3: at least 16"),
        ("open('/no/such')", "No such file or directory: /no/such"),
        ("import errno; raise OSError(errno.ENOSPC, 'No space left on device')", "No space left on device"),
        ("raise ConnectionResetError('peer is gone')", "peer is gone"),
        ("raise TimeoutError", "TimeoutError"),
    ],
)
def test_an_expected_error_is_one_line(temporary: Path, work: str, line: str):
    code, _, err = run(work)
    assert (code, err) == (2, f"error: {line}\n")
    assert not list(temporary.iterdir())


def test_a_temporary_folder_that_cannot_be_written_is_one_line():
    job = f"import tempfile; tempfile.tempdir = '/no/such'{JOB}"
    done = subprocess.run([sys.executable, "-c", job, "print('done')"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "loading nothing …\n")
    assert (
        done.stderr.startswith("error: No such file or directory: /no/such/ham_ray-") and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("work", "line"),
    [
        ("raise Exception('Ray is old\\n[2026] some.log line\\nanother')", "Exception: Ray is old"),
        ("raise MemoryError", "MemoryError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            "from ray.exceptions import NodeDiedError; raise NodeDiedError('10.88.0.2 is gone')",
            f"a node is gone (10.88.0.2 is gone); {KEPT}",
        ),
    ],
)
def test_any_other_error_is_one_line_too_and_its_traceback_is_in_the_log(temporary: Path, work: str, line: str):
    code, _, err = run(work)
    (log,) = temporary.glob("ham_ray-*/log.txt")
    assert (code, err) == (1, f"error: {line}; its traceback is in {log}, and --traceback prints it\n")
    assert "Traceback (most recent call last)" in log.read_text()


def test_the_traceback_is_printed_where_it_is_asked_for(temporary: Path):
    for work, code in (("1 / 0", 1), ("open('/no/such')", 2)):
        ended, _, err = run(work, "--traceback")
        assert ended == code and err.startswith("Traceback (most recent call last)")
        assert err.splitlines()[-1].startswith("error: ")


def test_a_job_whose_output_nobody_reads_any_more_ends_without_a_word(temporary: Path):
    job = start("import sys; print('working', flush=True); sys.stdin.read(); print('more', flush=True)", stdin=-1)
    assert job.stdout and job.stderr and job.stdin
    assert [job.stdout.readline() for _ in range(2)][1] == "working\n"
    job.stdout.close()
    job.stdin.close()
    with job.stderr:
        assert (job.stderr.read(), job.wait(timeout=60)) == ("", 1)


DIES_AS_RAY_DOES = """
import os
os.write(2, b"[2026-11-25 16:06:45,747 W 11 11] network_util.cc:330: No local IP\\n")
os.write(2, b"[2026-11-25 16:09:40,959 E 11 389] rpc_client.h:204: Failed to connect to GCS within 60 seconds. GCS\\n")
os.write(2, b"[2026-11-25 16:11:48,943 E 11 448] core_worker.cc:609: :info_message: Attempting to recover objects\\n")
os._exit(1)
"""


@pytest.mark.parametrize(
    ("work", "how", "code"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL: as for want of memory", 137),
        (
            "import os; os.write(2, b'no reason\\n'); os.abort()",
            "SIGABRT: as when one of Ray's own processes is gone",
            134,
        ),
        (DIES_AS_RAY_DOES, "exit code 1: Failed to connect to GCS within 60 seconds", 1),
    ],
)
def test_a_job_that_dies_without_a_word_is_spoken_for(temporary: Path, work: str, how: str, code: int):
    ended, _, err = run(work)
    (log,) = temporary.glob("ham_ray-*/log.txt")
    told = f"error: the job's process died ({how}); {KEPT}; what Ray and TensorFlow wrote: {log}\n"
    assert (ended, err) == (code, told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_ends_a_job_with_one_line(temporary: Path, number: signal.Signals, group: bool):
    code, out, err, _ = interrupted(WAIT, number, 1, group)
    assert (code, out, err) == (128 + number, "", f"interrupted: {KEPT}\n")
    assert not list(temporary.iterdir())


def test_a_second_ctrl_c_ends_a_job_that_does_not_stop(temporary: Path):
    code, _, err, _ = interrupted(STUBBORN, signal.SIGINT, 2, True)
    assert (code, err) == (130, f"interrupted: {KEPT}\n")


def test_a_job_that_does_not_stop_is_ended_in_time(temporary: Path):
    code, _, err, seconds = interrupted(STUBBORN, signal.SIGINT, 1, True, patience=1)
    assert (code, err) == (130, f"interrupted: {KEPT}\n") and seconds >= 1


def test_the_context_managers_of_an_interrupted_job_are_left(temporary: Path):
    work = f"try:\n    {WAIT}\nfinally:\n    time.sleep(1)\n    print('lock released')"
    assert interrupted(work, signal.SIGINT, 1, True)[:2] == (130, "lock released\n")  # a terminal sends it to all


def test_a_job_that_ends_well_in_spite_of_a_signal_has_ended_well(temporary: Path):
    work = f"try:\n    {WAIT}\nexcept KeyboardInterrupt:\n    print('done')"
    assert interrupted(work, signal.SIGTERM, 1, False)[:3] == (0, "done\n", "")


def test_a_signal_that_a_shell_has_told_to_ignore_is_ignored(temporary: Path):
    work = "import os, signal, time; os.kill(os.getppid(), signal.SIGHUP); time.sleep(0.5); print('done')"
    nohup = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    assert run(work, **nohup) == (0, "loading nothing …\ndone\n", "")


ORPHANS = """
import os, subprocess, sys, time
code = "import subprocess; print(subprocess.Popen(['sleep', '300'], start_new_session=True, stdout=-3).pid)"
first = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout.strip()
second = subprocess.Popen(["sleep", "300"], start_new_session=True).pid
print("working", flush=True)
print(first, second, flush=True)
"""


@pytest.mark.parametrize("end", ["", "os.abort()", "time.sleep(600)"])
def test_no_process_of_a_job_stays_however_it_ends(temporary: Path, end: str):
    job = start(ORPHANS + end)
    assert job.stdout
    pids = [int(word) for word in [job.stdout.readline() for _ in range(3)][2].split()]
    if "sleep" in end:
        job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


def test_a_killed_supervisor_takes_the_job_with_it(temporary: Path):
    job = start("import os; print(os.getpid(), flush=True)\n" + WAIT)
    assert job.stdout and job.stdout.readline()
    pid = int(job.stdout.readline())
    job.kill()
    job.communicate(timeout=60)  # its output is closed once nobody has it open
    deadline = time.monotonic() + 60
    while not gone(pid) and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


_OWN = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # the locale's encoding, not Python's choice


@pytest.mark.parametrize(
    ("settings", "encoding", "shown"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1", "0.5-0.7 × ... é \\u2603 \\udce9"),
        (
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            "ascii",
            "0.5-0.7 x ... \\xe9 \\u2603 \\udce9",
        ),
        ({"LC_ALL": "C"}, "utf-8", "0.5–0.7 × … é ☃ \\udce9"),
    ],
)
def test_any_encoding_of_the_terminal_will_do(temporary: Path, settings: dict[str, str], encoding: str, shown: str):
    work = "text = '0.5–0.7 × … é ☃ \\udce9'; print(text)\nfrom ham_ray.errors import UserError; raise UserError(text)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    job = subprocess.run([sys.executable, "-c", JOB, work], capture_output=True, env={**environment, **settings})
    assert job.returncode == 2
    assert job.stdout.decode(encoding).splitlines()[1] == shown
    assert job.stderr.decode(encoding).splitlines() == [f"error: {shown}"]


def test_keras_is_set_right_whatever_the_user_has_set(temporary: Path):
    (temporary / "home" / "models").mkdir(parents=True)
    (temporary / "home" / "keras.json").write_text(
        '{"backend": "torch", "floatx": "float64", "epsilon": 0.5, "image_data_format": "channels_first"}'
    )
    work = """
import json, os, keras
config = keras.config
print(json.dumps([config.backend(), config.floatx(), config.epsilon(), config.image_data_format()]))
print(os.path.realpath(os.path.join(os.environ["KERAS_HOME"], "models")))
"""
    settings = {"KERAS_HOME": str(temporary / "home"), "KERAS_BACKEND": "jax", "TF_USE_LEGACY_KERAS": "1"}
    code, out, err = run(work, env={**os.environ, **settings})
    assert code == 0, err
    assert json.loads(out.splitlines()[1]) == ["tensorflow", "float32", 1e-7, "channels_last"]
    assert out.splitlines()[2] == str(temporary / "home" / "models")  # downloads go where they always do
