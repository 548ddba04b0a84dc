"""Seconds, images/s, memory and bytes read of each job as the images grow: 10,000, 100,000, and more if asked.

    python benchmarks/scale.py [--images 10000,100000] [--size 32] [--archive ham10000_300x225.zip]

An archive of so many images is made from a small one (the drawn sample, or --archive): copies whose pixels are moved
and encoded anew, with ids of their own, so that none is a duplicate. Each job is a process of its own with its own Ray.
Memory is PSS, what processes share divided among them, sampled each second: of the largest process, and the highest
sum of all. Bytes read are those of the process that read most, by read().
A million images take ten times what 100,000 take, and their archive some 15 GB.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer
import yaml
from PIL import Image, ImageChops

from ham_ray import console
from ham_ray.data import archives, layouts
from ham_ray.data.sample import write_sample
from ham_ray.errors import UserError

ROOT = Path(__file__).parents[1]
COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
JOBS = ("ingest", "baseline", "frozen", "search", "predict", "evaluate")
SPACE = {
    "family": "resnet50_finetuned",
    "objective": "balanced_accuracy",
    "recipe": {"unfreeze_depth": 0, "head_epochs": 0, "epochs": 3, "augmentation": "light"},
    "parameters": {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}},
}


@dataclass
class Usage:
    """What the processes of a job took: PSS in bytes at their highest, bytes read."""

    largest: int = 0
    together: int = 0
    read: dict[int, int] = field(default_factory=dict)

    def look(self, job: psutil.Process) -> None:
        """Add what is there now."""
        pss = {process.pid: _pss(process) for process in [job, *job.children(recursive=True)]}
        self.largest = max(self.largest, *pss.values())
        self.together = max(self.together, sum(pss.values()))
        self.read |= {pid: max(self.read.get(pid, 0), _read(pid)) for pid in pss}


def main(
    images: Annotated[str, typer.Option(help="numbers of images, separated by commas")] = "10000,100000",
    size: Annotated[int, typer.Option(help="of the table's images in pixels")] = 32,
    archive: Annotated[str | None, typer.Option(help="HAM10000 archive to multiply; else the drawn sample")] = None,
    jobs: Annotated[str, typer.Option(help=f"of {', '.join(JOBS)}")] = ",".join(JOBS),
    shard_memory: Annotated[float, typer.Option(help="GiB of decoded images a worker may keep")] = 0.5,
    out: Annotated[str | None, typer.Option(help="folder to work in and keep; a temporary one by default")] = None,
) -> None:
    """Print a table, a line for each job and number of images."""
    chosen = jobs.split(",")
    if unknown := set(chosen) - set(JOBS):
        raise UserError(f"--jobs {','.join(unknown)}: none of {', '.join(JOBS)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(out or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        source = Path(archive) if archive else write_sample(folder / "sample.zip", size=(300, 225))
        print("| images | job | seconds | images/s | largest process, GiB | all together | read by one, GiB |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for count in map(int, images.split(",")):
            for line in _lines(source, count, size, chosen, shard_memory, folder / str(count)):
                print(line, flush=True)


def _lines(source: Path, count: int, size: int, jobs: list[str], shard_memory: float, folder: Path) -> Iterator[str]:
    folder.mkdir(exist_ok=True)
    many = folder / "many.zip"
    if not many.exists():
        multiply(source, count, many)
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    for job in jobs:
        started = time.monotonic()
        usage = _measured(_command(job, folder, size, shard_memory), folder / f"{job}.log")
        seconds = time.monotonic() - started
        gib = [f"{value / 2**30:.2f}" for value in (usage.largest, usage.together, max(usage.read.values()))]
        yield f"| {count:,} | {job} | {seconds:.0f} | {count / seconds:.0f} | {' | '.join(gib)} |"


def _command(job: str, folder: Path, size: int, shard_memory: float) -> list[str]:
    table, model = ["--data", str(folder / "images")], str(folder / "baseline" / "simple_cnn")
    common = [*table, "--out", str(folder), "--weights", "none", "--shard-memory", str(shard_memory)]
    predicted = str(folder / "predictions.parquet")
    return {
        "ingest": ["jobs/ingest.py", str(folder / "many.zip"), "--size", str(size), "--out", str(folder / "images")],
        "baseline": ["jobs/baseline.py", *common, "--families", "simple_cnn", "--epochs", "2", "--name", "baseline"],
        "frozen": ["jobs/baseline.py", *common, "--families", "resnet50_frozen", "--epochs", "2", "--name", "frozen"],
        "search": [
            *["jobs/tune.py", *common, "--space", str(folder / "space.yaml"), "--name", "search", "--trials", "3"],
            *["--finalists", "0", "--max-concurrent", "1"],
        ],
        "predict": ["jobs/predict.py", "--model", model, "--images", str(folder / "many.zip"), "--out", predicted],
        "evaluate": ["jobs/evaluate.py", "--predictions", predicted, "--out", str(folder / "evaluation")],
    }[job]


def _measured(command: list[str], log: Path) -> Usage:
    """Run a job to its end beside a look at its processes each second."""
    usage, ended = Usage(), threading.Event()
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        job = psutil.Process(process.pid)

        def watch() -> None:
            while not ended.wait(1.0):
                usage.look(job)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        process.wait()
        ended.set()
        thread.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return usage


def _pss(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def _read(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/io").read_text().split()[1])  # rchar
    except OSError:
        return 0


def multiply(source: Path, count: int, target: Path) -> None:
    """Write a HAM10000 archive of `count` images at `target`: copies of those of `source`, each moved."""
    archive = layouts.open_archive(source)
    rows = archive.metadata[COLUMNS]
    turns = [(rows.iloc[number % len(rows)], number // len(rows)) for number in range(count)]
    members = [archives.read(archive.images[image_id][0]) for image_id in rows["image_id"]]
    lines = [",".join(COLUMNS)]
    with zipfile.ZipFile(target.with_suffix(".part"), "w") as file, ProcessPoolExecutor() as pool:
        work = ((members[number % len(rows)], turn) for number, (_, turn) in enumerate(turns))
        for (row, turn), data in zip(turns, pool.map(_moved, work, chunksize=64), strict=True):
            own = {**row, "lesion_id": f"{row['lesion_id']}_{turn}", "image_id": f"{row['image_id']}_{turn}"}
            lines.append(",".join(str(own[name]) for name in COLUMNS))
            file.writestr(f"HAM10000_images/{own['image_id']}.jpg", data)
        file.writestr("HAM10000_metadata.csv", "\n".join(lines) + "\n")
    target.with_suffix(".part").rename(target)


def _moved(work: tuple[bytes, int]) -> bytes:
    data, turn = work
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        ImageChops.offset(image.convert("RGB"), 1 + turn % 150, 1 + turn // 150).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    console.run(main)
