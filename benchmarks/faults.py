"""A campaign of faults: jobs whose processes are killed at random moments, beside the same jobs left alone.

    python benchmarks/faults.py                                    # as root; ten minutes
    python benchmarks/faults.py --minutes 60 --kills 100
    python benchmarks/faults.py --jobs search --faults driver,worker --seed 3
    python benchmarks/faults.py --seed 3 --only 7                  # the eighth experiment of that seed again

Each experiment starts a job on a small drawn sample, kills processes of one kind in random phases of it, and starts
the same command again until it ends by itself: alone on a host, where the job starts its own Ray, or on a cluster of
two hosts (tests/hosts.py), which is made anew where the fault broke it. The end must be that of the reference run:
nothing lost, nothing hung, no epoch trained twice more often than it was interrupted. Exit code 1 where it is not.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Annotated

import pandas as pd
import psutil
import typer

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # where the hosts are: they serve tests first

from hosts import Host, Hosts, Process, hosts, lacking  # noqa: E402

from ham_ray.data.sample import write_sample  # noqa: E402

FAULTS = ("driver", "worker", "raylet", "gcs", "node")
TOPOLOGIES = ("alone", "cluster")
MOST_KILLS = 3  # of an experiment, where the fault leaves Ray alive
EPOCHS = 6
SPACE = f"""\
family: simple_cnn
objective: macro_f1
sampler: {{name: tpe, seed: 3}}
scheduler: {{name: none}}
recipe: {{epochs: {EPOCHS}, batch_size: 16, patience: 0, precision: float32}}
parameters:
  learning_rate: {{type: float, low: 1.0e-4, high: 1.0e-2, log: true}}
  dropout: {{type: float, low: 0.0, high: 0.5}}
"""
# Ray's own processes: idle workers, agents (their loss ends the raylet), and helpers of Ray Data
RAYS_OWN = r"^ray::IDLE|Agent$|^ray::_StatsActor|^ray::_AutoscalingCoordinator|^ray::_UsageCollection"
TIMINGS = ["seconds", "images_per_second", "run"]  # columns that differ from run to run


@dataclass(frozen=True)
class Job:
    """A command, the lines of its log with which its phases begin, and the tables of its result.

    command: from the folder of inputs and the folder of results to arguments of Python.
    phases: name and pattern of the first line; what comes before the first is the phase "start".
    """

    command: Callable[[Path, Path], list[str]]
    phases: dict[str, str]
    result: Callable[[Path], dict[str, pd.DataFrame]]


def _ingest(inputs: Path, out: Path) -> list[str]:
    return ["jobs/ingest.py", f"{inputs}/many.zip", "--out", f"{out}/images", "--size", "32"]


def _baseline(inputs: Path, out: Path) -> list[str]:
    families = ["--families", "simple_cnn,resnet50_frozen", "--epochs", str(EPOCHS), "--set", "batch_size=16"]
    return ["jobs/baseline.py", *_common(inputs, out), "--name", "b", *families]


def _search(inputs: Path, out: Path) -> list[str]:
    counts = ["--trials", "3", "--max-concurrent", "1", "--finalists", "1", "--seeds", "1", "--max-failures", "3"]
    return ["jobs/tune_resnet.py", *_common(inputs, out), "--name", "s", "--space", f"{inputs}/space.yaml", *counts]


def _predict(inputs: Path, out: Path) -> list[str]:
    where = ["--model", f"{inputs}/model", "--images", f"{inputs}/many.zip", "--out", f"{out}/predictions.parquet"]
    return ["jobs/predict.py", *where, "--precision", "float32"]


def _common(inputs: Path, out: Path) -> list[str]:
    return ["--data", f"{inputs}/images", "--out", str(out), "--weights", "none", "--precision", "float32"]


def _tables(*patterns: str) -> Callable[[Path], dict[str, pd.DataFrame]]:
    """Read the Parquet files that the patterns match, without the columns that hold times."""

    def read(out: Path) -> dict[str, pd.DataFrame]:
        paths = [path for pattern in patterns for path in sorted(out.glob(pattern))]
        return {str(p.relative_to(out)): pd.read_parquet(p).drop(columns=TIMINGS, errors="ignore") for p in paths}

    return read


JOBS = {
    "ingest": Job(_ingest, {}, _tables("images/*.parquet")),
    "baseline": Job(
        _baseline,
        {
            "training": r"^simple_cnn: epoch \d",
            "activations": "^resnet50_frozen: run folder",
            "training on activations": r"^resnet50_frozen: epoch \d",
            "report": f"^resnet50_frozen: epoch {EPOCHS}/",
        },
        _tables("b/*/history.parquet", "b/*/predictions.parquet"),
    ),
    "search": Job(
        _search,
        {"trials": r"^trial \d+ epoch", "finals": ": run folder", "report": f": epoch {EPOCHS}/"},
        _tables("s/trials.parquet", "s/finals/*/history.parquet", "s/finals/*/predictions.parquet"),
    ),
    "predict": Job(_predict, {"prediction": "^model:"}, _tables("predictions.parquet")),
}


@dataclass
class Reference:
    """What an uninterrupted run gave: tables, paths of all files, and the seconds of its phases in their order."""

    tables: dict[str, pd.DataFrame]
    files: set[str]
    phases: dict[str, float]

    @property
    def seconds(self) -> float:
        """The seconds of the whole run."""
        return sum(self.phases.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.phases.items())


@dataclass
class Outcome:
    """The result of an experiment."""

    number: int
    job: str
    fault: str
    topology: str
    folder: Path
    kills: list[str] = field(default_factory=list)
    starts: int = 0
    lost: str = ""
    hung: str = ""
    repeated: int = 0
    tracebacks: int = 0
    left: list[str] = field(default_factory=list)  # files that the reference run has not
    seconds: float = 0.0

    @property
    def failure(self) -> str:
        """What was lost, hung, or trained twice more often than it was interrupted; empty where nothing was."""
        often = f"{self.repeated} epochs trained twice" if self.repeated > len(self.kills) else ""
        return self.lost or self.hung or often

    def __str__(self) -> str:
        kills = "; ".join(self.kills) or "it ended before a kill"
        counts = f"{self.starts} starts, {self.repeated} epochs repeated, {self.tracebacks} tracebacks"
        counts += f", {len(self.left)} files left ({', '.join(self.left[:3])})" if self.left else ""
        result = f"FAILED, see {self.folder}: {self.failure}" if self.failure else "ok"
        return (
            f"{self.number} {self.job} {self.topology} {self.fault}: {kills}: {counts}, {self.seconds:.0f} s: {result}"
        )


@dataclass
class Start:
    """A job that was started, until `end` by the monotonic clock."""

    process: Process
    log: Path
    end: float

    @property
    def said(self) -> str:
        """The job's output so far."""
        return self.log.read_text(errors="replace")

    @property
    def last(self) -> str:
        """The last line of the job's output."""
        return (self.said.strip().splitlines() or ["nothing"])[-1]

    def wait(self, condition: Callable[[], object]) -> bool:
        """Wait for the condition; False where the job or its time ended before."""
        while self.process.poll() is None and time.monotonic() < self.end:
            if condition():
                return True
            time.sleep(0.05)
        return False


class Ground:
    """Where jobs run: a host without Ray, and two hosts with a cluster that is made when it is first needed."""

    def __init__(self, alone: Host, cluster: Hosts) -> None:
        self.alone, self.cluster = alone, cluster
        self._broken = True

    def start(self, topology: str, command: list[str], log: Path, deadline: float) -> Start:
        """Start a job on a topology; a broken cluster is made anew first."""
        if topology == "cluster":
            self._mend()
        outside = ["env", "-u", "RAY_ADDRESS"] if topology == "alone" else []
        with log.open("w") as file:
            command = [*outside, sys.executable, *command]
            process = self.hosts(topology)[0].start(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        return Start(process, log, time.monotonic() + deadline)

    def hosts(self, topology: str) -> list[Host]:
        """List the running hosts of a topology."""
        return [host for host in ([self.alone] if topology == "alone" else self.cluster) if host.running]

    def clear(self) -> None:
        """End what earlier experiments left on the host without Ray."""
        self.alone.kill()
        self.alone.boot()

    def strike(self, fault: str, topology: str, driver: Process, chance: random.Random) -> str:
        """Kill one process of that kind, or the host beside the driver's; return its name, empty if there is none."""
        if fault == "node":
            self._broken = True
            self.cluster[1].kill()
            return self.cluster[1].address
        if fault == "driver":
            found = _drivers(driver)
        else:
            found = [process for host in self.hosts(topology) for process in host.processes() if _is(process, fault)]
        if found:
            victim = chance.choice(sorted(found, key=lambda process: process.pid))
            with contextlib.suppress(psutil.NoSuchProcess):
                name = Path(victim.cmdline()[0]).name
                victim.kill()
                self._broken |= fault in ("raylet", "gcs") and topology == "cluster"
                return f"{name} {victim.pid}"
        return ""

    def give_up(self, topology: str, start: Start, folder: Path) -> None:
        """Write the list of running processes into `folder`, and end the job."""
        lists = [host.run(["ps", "-Aww", "-o", "pid,stat,etime,args"], 30).stdout for host in self.hosts(topology)]
        (folder / "hung.txt").write_text("\n".join(lists))
        start.process.kill()
        start.process.wait()
        self._broken |= topology == "cluster"

    def _mend(self) -> None:
        """Make the cluster anew where a fault broke it."""
        if not self._broken:
            return
        for host in self.cluster:
            host.kill()
            host.boot()
        for host in self.cluster:
            host.start_ray(head=host is self.cluster[0])
        self.cluster.wait_for_nodes()
        self._broken = False


def _drivers(job: Process) -> list[psutil.Process]:
    """Find the process that was started on the host, which supervises, and the one that works."""
    with contextlib.suppress(psutil.NoSuchProcess):
        supervisor = psutil.Process(job.pid).children()[:1]
        working = [child for one in supervisor for child in one.children() if child.cmdline() == one.cmdline()]
        return supervisor + working
    return []


def _is(process: psutil.Process, fault: str) -> bool:
    try:
        first = (process.cmdline() or [""])[0]
    except psutil.Error:
        return False
    if fault == "worker":  # one that works for the job
        return first.startswith("ray::") and not re.search(RAYS_OWN, first)
    return Path(first).name == {"raylet": "raylet", "gcs": "gcs_server"}[fault]


class Epochs:
    """A counter of epochs that were trained twice, by the checkpoints that appear again below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._seen, self._done = folder, dict[Path, set[tuple[int, int]]](), threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Epochs:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def repeated(self) -> int:
        """The number of checkpoints that were written again."""
        return sum(len(files) - 1 for files in self._seen.values())

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            for path in self._folder.glob("**/checkpoints/epoch-*.npz"):
                with contextlib.suppress(FileNotFoundError):
                    about = path.stat()
                    self._seen.setdefault(path, set()).add((about.st_ino, about.st_mtime_ns))


def reference(ground: Ground, name: str, inputs: Path, folder: Path, deadline: float) -> Reference:
    """Run a job to its end, on the host without Ray.

    Raises:
        RuntimeError: the job fails, or its log lacks the line that begins a phase.
    """
    ground.clear()
    folder.mkdir()
    job, begun = JOBS[name], {"start": time.monotonic()}
    start = ground.start("alone", job.command(inputs, folder), folder / "start-1.log", deadline)

    def note_phases() -> None:
        for phase, pattern in job.phases.items():
            if phase not in begun and re.search(pattern, start.said, re.MULTILINE):
                begun[phase] = time.monotonic()

    start.wait(note_phases)
    if start.process.returncode != 0:
        raise RuntimeError(f"{name} fails without any fault, see {start.log}")
    if unseen := [phase for phase in job.phases if phase not in begun]:
        raise RuntimeError(
            f"{name}: no line of {start.log} begins {', '.join(unseen)}; mend the patterns of its phases"
        )
    ends = [*begun.values(), time.monotonic()][1:]
    seconds = {phase: end - begun[phase] for phase, end in zip(begun, ends, strict=True)}
    return Reference(job.result(folder), _files(folder), seconds)


def experiment(ground: Ground, outcome: Outcome, inputs: Path, expected: Reference, deadline: float) -> None:
    """Start the job, kill, start it again, until it ends by itself; fill in the outcome."""
    chance = random.Random(outcome.folder.name)
    wanted = chance.randint(1, MOST_KILLS) if outcome.fault in ("driver", "worker") else 1
    command = JOBS[outcome.job].command(inputs, outcome.folder)
    began = time.monotonic()
    if outcome.topology == "alone":
        ground.clear()
    with Epochs(outcome.folder) as epochs:
        ended = False
        while not ended:
            outcome.starts += 1
            log = outcome.folder / f"start-{outcome.starts}.log"
            start = ground.start(outcome.topology, command, log, deadline)
            ended = _run(ground, outcome, expected, start, wanted, chance)
            outcome.tracebacks += start.said.count("Traceback (most recent call last)")
    outcome.repeated = epochs.repeated
    outcome.seconds = time.monotonic() - began
    outcome.left = sorted(_files(outcome.folder) - expected.files)
    if not outcome.lost and not outcome.hung:
        outcome.lost = _difference(expected.tables, JOBS[outcome.job].result(outcome.folder))


def _run(
    ground: Ground, outcome: Outcome, expected: Reference, start: Start, wanted: int, chance: random.Random
) -> bool:
    """Kill in one start of the job and wait for its end; False where the job has to be started again."""
    before = len(outcome.kills)
    most = before + 1 if outcome.fault == "driver" else wanted
    while len(outcome.kills) < min(most, wanted) and (kill := _kill(ground, outcome, expected, start, chance)):
        outcome.kills.append(kill)
    start.wait(lambda: False)
    if start.process.returncode is None:
        outcome.hung = f"start {outcome.starts} did not end; its last line: {start.last}"
        ground.give_up(outcome.topology, start, outcome.folder)
    elif start.process.returncode and len(outcome.kills) == before:
        outcome.lost = f"start {outcome.starts} ended with {start.process.returncode} though nothing was killed in it"
        outcome.lost += f"; its last line: {start.last}"
    return start.process.returncode == 0 or bool(outcome.lost or outcome.hung)


def _kill(ground: Ground, outcome: Outcome, expected: Reference, start: Start, chance: random.Random) -> str:
    """Wait for a random moment and kill; empty where the job ended before."""
    phase = chance.choice([*expected.phases])
    delay = chance.uniform(0, 0.8 * expected.phases[phase])
    # A start that goes on may have nothing to do in the phase: then the next one counts.
    later = [*expected.phases][[*expected.phases].index(phase) :]
    pattern = "|".join(JOBS[outcome.job].phases.get(name, "") for name in later)
    if not start.wait(lambda: re.search(pattern, start.said, re.MULTILINE)):
        return ""
    moment = time.monotonic() + delay
    start.wait(lambda: time.monotonic() >= moment)
    victim = ""

    def struck() -> bool:
        nonlocal victim
        victim = ground.strike(outcome.fault, outcome.topology, start.process, chance)
        return bool(victim)

    if not start.wait(struck):
        return ""
    return f"{victim} {delay:.1f} s into {phase} of start {outcome.starts}"


def _files(folder: Path) -> set[str]:
    """List the paths of all files below the folder, but for the logs of this campaign."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if not re.match(r"start-\d+\.log$|hung\.txt$", str(path))}


def _difference(expected: dict[str, pd.DataFrame], found: dict[str, pd.DataFrame]) -> str:
    """Return the first difference of two results in one line; empty where there is none."""
    if [*expected] != [*found]:
        return f"tables {[*found]}, not {[*expected]}"
    for name, table in expected.items():
        try:
            pd.testing.assert_frame_equal(found[name], table, check_exact=False, rtol=1e-3, atol=1e-4)
        except AssertionError as error:
            return f"{name}: " + " ".join(str(error).split())[:300]
    return ""


def make_inputs(folder: Path) -> None:
    """Draw the samples, ingest the small one, train the model that predicts."""
    write_sample(folder / "small.zip", lesions=200, size=(64, 48))
    write_sample(folder / "many.zip", lesions=1500, size=(64, 48))
    (folder / "space.yaml").write_text(SPACE)
    ingest = ["jobs/ingest.py", f"{folder}/small.zip", "--out", f"{folder}/images", "--size", "32"]
    subprocess.run([sys.executable, *ingest], cwd=ROOT, check=True, capture_output=True)
    code = f"import sys; from faults import write_model; write_model({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", check=True, capture_output=True)


def write_model(folder: str) -> None:
    """Write an untrained model into `folder`/model, in a process of its own: TensorFlow is not for this one."""
    from ham_ray.models.network import build
    from ham_ray.models.weights import RANDOM
    from ham_ray.recipe import baseline

    model = Path(folder, "model")
    model.mkdir()
    build(baseline("simple_cnn"), 32, RANDOM, classes=7).classifier().save(model / "model.keras")


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Format the campaign in lines, by job, topology and fault: what was tried, lost, repeated, hung and left over."""
    form = "{:10} {:8} {:8} {:>11} {:>6} {:>5} {:>9} {:>5} {:>11} {:>11}"
    headings = "experiments", "kills", "lost", "repeated", "hung", "tracebacks", "files left"
    yield form.format("job", "topology", "fault", *headings)

    def line(names: tuple[str, ...], of: list[Outcome]) -> str:
        counts = [len(of), sum(len(o.kills) for o in of), sum(bool(o.lost) for o in of)]
        counts += [sum(o.repeated for o in of), sum(bool(o.hung) for o in of), sum(o.tracebacks for o in of)]
        counts.append(sum(len(o.left) for o in of))
        return form.format(*names, *counts)

    for names in sorted({(o.job, o.topology, o.fault) for o in outcomes}):
        yield line(names, [o for o in outcomes if (o.job, o.topology, o.fault) == names])
    yield line(("all", "", ""), outcomes)


def main(
    jobs: Annotated[str, typer.Option(help="comma-separated")] = ",".join(JOBS),
    faults: Annotated[str, typer.Option(help="comma-separated")] = ",".join(FAULTS),
    topologies: Annotated[
        str, typer.Option(help="comma-separated: alone (its own Ray), cluster (of two hosts)")
    ] = ",".join(TOPOLOGIES),
    minutes: Annotated[float, typer.Option(help="no new experiment after that")] = 10.0,
    kills: Annotated[int, typer.Option(help="no new experiment after that many")] = 100,
    seed: Annotated[int, typer.Option(help="of the choice of faults and moments")] = 0,
    only: Annotated[int | None, typer.Option(help="number of the one experiment to run")] = None,
    deadline: Annotated[
        float | None, typer.Option(help="seconds after which a start hangs; default 180 and 4 times the reference")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of logs and results, emptied first")] = ROOT / "runs" / "faults",
) -> None:
    """Run the campaign and print its table."""
    if reason := lacking():
        sys.exit(f"error: {reason}")
    out = out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    inputs = out / "inputs"
    inputs.mkdir(parents=True)
    make_inputs(inputs)
    chosen = (jobs.split(","), faults.split(","), topologies.split(","))
    outcomes, references = list[Outcome](), dict[str, Reference]()
    with hosts(out, cpus=(2,), ray=False) as alone, hosts(out, cpus=(2, 2), ray=False) as cluster:
        ground, end = Ground(alone[0], cluster), time.monotonic() + 60 * minutes
        with contextlib.suppress(KeyboardInterrupt):  # the table is of what was done
            for number in count() if only is None else [only]:
                if time.monotonic() > end or sum(len(outcome.kills) for outcome in outcomes) >= kills:
                    break
                outcome = _drawn(number, seed, *chosen, out)
                if outcome.job not in references:
                    folder = out / f"reference-{outcome.job}"
                    references[outcome.job] = reference(ground, outcome.job, inputs, folder, deadline or 1800)
                    print(f"reference {outcome.job}: {references[outcome.job]}", flush=True)
                expected = references[outcome.job]
                experiment(ground, outcome, inputs, expected, deadline or 180 + 4 * expected.seconds)
                outcomes.append(outcome)
                print(outcome, flush=True)
    print(*table(outcomes), sep="\n")
    sys.exit(any(outcome.failure for outcome in outcomes))


def _drawn(number: int, seed: int, jobs: list[str], faults: list[str], topologies: list[str], out: Path) -> Outcome:
    """Draw the experiment of that number: each kind once before one comes again, the same for equal options."""
    kinds = [
        (job, fault, topology)
        for job, fault, topology in product(jobs, faults, topologies)
        if topology == "cluster" or (fault != "node" and (job != "ingest" or fault == "driver"))  # it uses no Ray alone
    ]
    turn, place = divmod(number, len(kinds))
    random.Random(f"{seed} {turn}").shuffle(kinds)
    folder = out / f"seed-{seed}-{number:03d}"
    folder.mkdir()
    return Outcome(number, *kinds[place], folder)


if __name__ == "__main__":
    typer.run(main)
