"""An ingest that dies: nothing half-written is readable, and the same command finishes the work."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ham_ray.data import sample
from ham_ray.data.chunks import CHUNK, over_threads
from ham_ray.data.images import open_images
from ham_ray.data.ingest import ingest
from ham_ray.errors import UserError

pytestmark = pytest.mark.data
ROOT = Path(__file__).parents[2]
SIZE = 64


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """About 1,700 images: seven chunks."""
    return sample.write_sample(tmp_path_factory.mktemp("sample") / "sample.zip", lesions=1300, size=(64, 48))


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory):
    """The report of an ingest nobody disturbed."""
    return ingest(archive, tmp_path_factory.mktemp("whole") / "images", size=SIZE)


def command(archive: Path, out: Path) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / "ingest.py"), str(archive), "--out", str(out), "--size", str(SIZE)]


def run(archive: Path, out: Path, **options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command(archive, out), capture_output=True, text=True, env=environment, **options)


def kill_when(archive: Path, out: Path, moment: Callable[[], bool]) -> None:
    """Start the job and SIGKILL it as soon as the moment has come."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(command(archive, out), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not moment():
        assert job.poll() is None, "it ended before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL


def kill_at(place: str, archive: Path, out: Path) -> None:
    """Run an ingest that kills itself when it calls the function of that name."""
    module, _, function = place.rpartition(".")
    code = (
        f"import os, {module}, ham_ray.data.ingest as ingest\n"
        f"{module}.{function} = lambda *arguments: os.kill(os.getpid(), 9)\n"
        f"ingest.ingest({str(archive)!r}, {str(out)!r}, size={SIZE})"
    )
    job = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert job.returncode == -signal.SIGKILL


def check_unreadable(out: Path) -> None:
    with pytest.raises(UserError, match="is not a finished IMAGES table"):
        open_images(str(out))


def test_killed_at_several_moments_it_ends_in_the_same_table(archive, whole, tmp_path):
    out = tmp_path / "images"
    work = tmp_path / "images.partial"
    for parts in (1, 3):
        kill_when(archive, out, lambda parts=parts: len(list(work.glob("part-*.arrow"))) >= parts)
        check_unreadable(out)
    for place in ("ham_ray.data.table._images_a_file", "ham_ray.data.ingest._publish"):
        kill_at(place, archive, out)
        check_unreadable(out)
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("part-*.arrow")}
    assert len(kept) == -(-whole.card["images"] // CHUNK) >= 6
    shutil.copytree(work, tmp_path / "copy", copy_function=shutil.copy2)

    done = run(archive, out)
    assert done.returncode == 0, done.stderr
    assert open_images(str(out)).fingerprint == whole.card["fingerprint"]
    assert not work.exists()
    for name in sorted(path.name for path in out.glob("*.parquet")):
        assert (out / name).read_bytes() == Path(whole.uri, name).read_bytes()

    (tmp_path / "copy").rename(work)  # as if it had been killed between its last two steps
    assert ingest(archive, out, size=SIZE).reused
    assert not work.exists()


def test_parts_are_reused_for_the_same_source_and_options_only(archive, tmp_path):
    out, first_calls = tmp_path / "images", []

    class Stop(Exception):
        pass

    def stop_after_two(work, chunks):
        for number, result in enumerate(over_threads(work, chunks)):
            if number == 2:
                raise Stop
            yield result

    def watch(done, total):
        first_calls.append(done)

    for _ in range(2):
        with pytest.raises(Stop):
            ingest(archive, out, size=SIZE, on_progress=watch, executor=stop_after_two)
    assert first_calls[0] == 0 and first_calls[3] == 2 * CHUNK, first_calls
    first_calls.clear()
    with pytest.raises(Stop):
        ingest(archive, out, size=SIZE, geometry="squash", on_progress=watch, executor=stop_after_two)
    assert first_calls[0] == 0
    first_calls.clear()
    os.utime(archive)  # touched since: perhaps another content
    with pytest.raises(Stop):
        ingest(archive, out, size=SIZE, geometry="squash", on_progress=watch, executor=stop_after_two)
    assert first_calls[0] == 0


def test_a_file_that_could_not_be_opened_is_tried_again_by_the_same_command(builder, tmp_path):
    archive, out = builder.to_folder(), tmp_path / "images"
    picture = archive / builder.name(3)
    content, stamp = picture.read_bytes(), picture.stat()

    def away(work, chunks):
        """Run the work while a file is away, as on a node that does not see it."""
        picture.unlink()
        found = [(chunk.number, work(chunk)) for chunk in chunks]
        picture.write_bytes(content)
        os.utime(picture, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        return iter(found)

    with pytest.raises(UserError, match=r"1 of 42 images quarantined \(1 cannot be opened\), more than"):
        ingest(archive, out, size=32, executor=away)
    assert "No such file or directory" in (tmp_path / "images.quarantine.csv").read_text()
    assert ingest(archive, out, size=32).card["images"] == 42


def test_a_second_ingest_to_the_same_place_is_refused(archive, tmp_path):
    out, refusals = tmp_path / "images", []

    def second(done, total):
        if not refusals:
            with pytest.raises(UserError, match=r"another process is at work in .*images\.partial") as caught:
                ingest(archive, out, size=SIZE)
            refusals.append(str(caught.value))

    report = ingest(archive, out, size=SIZE, on_progress=second)
    assert len(refusals) == 1
    assert open_images(report.uri).fingerprint == report.card["fingerprint"]


def test_a_file_size_limit_is_one_line_and_the_same_command_goes_on(archive, whole, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    full = run(archive, tmp_path / "images", preexec_fn=limit)
    check_refused_for_room(full, "File too large", tmp_path / "images")
    assert ingest(archive, tmp_path / "images", size=SIZE).card["fingerprint"] == whole.card["fingerprint"]


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(archive, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        check_refused_for_room(run(archive, disk / "images"), "No space left on device", disk / "images")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert ingest(archive, disk / "images", size=SIZE).card["fingerprint"] == whole.card["fingerprint"]
    finally:
        subprocess.run(["umount", disk], check=True)


def check_refused_for_room(job, reason: str, out: Path) -> None:
    assert job.returncode == 2, job.stderr
    assert job.stderr.startswith(f"error: cannot write {out}: ") and job.stderr.count("\n") == 1, job.stderr
    assert reason in job.stderr and "make room and start the same command" in job.stderr
    check_unreadable(out)
