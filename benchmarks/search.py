"""Trials an hour, seconds of overhead a trial, memory and best score: this project, KerasTuner, plain Optuna.

    pip install -e '.[benchmark]'
    python benchmarks/search.py --data ham10000.zip --weights FILE.h5 [--trials 6] [--epochs 3] [--depths 0,1]
    python benchmarks/search.py --data ham10000.zip --weights FILE.h5 --no-work [--trials 12]

All three search learning rate, unfreeze depth and class-weight scaling of the same ResNet50 on the same images in
memory, with the same batch size, epochs and augmentation (the eight symmetries of the square), and take turns in
blocks, each block in a process of its own that goes on where its last one ended. KerasTuner (BayesianOptimization) and
plain Optuna (TPE) train with `model.fit` in float32 and write no weights; ours is the search job, in bfloat16 where
that is faster, and leaves a checkpoint each epoch. The first 12 trials of all three are the same points, with the
depths in turn: else the rate would measure who drew the cheaper ones. Later trials are each method's own choice.

Trials an hour: by the time from a block's first ask to the end of its last trial, gaps included, and for ours the start
of the process that trains; the next column also has the block's own start, reading the data, and our ACTIVATIONS.
Overhead: from the end of one trial to the end of the next, without the seconds in `fit` or in our HISTORY, so that our
checkpoints count and compiling, which falls into the first epoch, does not. With `--no-work` trials are one epoch of 64
images and the overhead is all they take, compiling and that one step included. Both are medians over all trials but the
first of each block. Memory is that of all processes together, at its highest; what they share counts in each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import psutil
import typer
import yaml

from ham_ray import console
from ham_ray.errors import UserError

METHODS = ("ham_ray", "KerasTuner", "Optuna + fit")
BATCH = 64
POINTS = 12  # trials that are the same for all methods


@dataclass(frozen=True)
class _Block:
    """Trials `first` to `last` (not included) of a method, in a folder that all blocks share."""

    data: str
    weights: str
    epochs: int
    depths: tuple[int, int]
    no_work: bool
    first: int
    last: int
    folder: Path

    @property
    def points(self) -> list[dict[str, Any]]:
        """The values that are fixed for its trials and those before them."""
        random, (low, high) = np.random.default_rng(0), self.depths
        return [
            {
                "learning_rate": float(10 ** random.uniform(-5, -2)),
                "unfreeze_depth": low + number % (high - low + 1),
                "class_weight_scale": float(random.uniform(0.0, 1.2)),
            }
            for number in range(min(POINTS, self.last))
        ]

    def told(self, marks: list[float], inside: list[float], best: float) -> dict[str, Any]:
        """Report from when the first trial started and each one ended, and the seconds each spent in its epochs."""
        each = np.diff(marks) - (0.0 if self.no_work else np.array(inside))
        return {"seconds": marks[-1] - marks[0], "overheads": each[1:].tolist(), "best": best}


def main(
    data: Annotated[str, typer.Option(help="HAM10000 archive or IMAGES table")],
    weights: Annotated[str, typer.Option(help="none, or a ResNet50 no-top .h5 file")] = "none",
    trials: Annotated[int, typer.Option(help="of each, in all")] = 6,
    blocks: Annotated[int, typer.Option(help="turns of each")] = 2,
    epochs: Annotated[int, typer.Option(help="of each trial")] = 3,
    depths: Annotated[str, typer.Option(help="lowest and highest unfreeze depth")] = "0,1",
    no_work: Annotated[bool, typer.Option("--no-work", help="one epoch of 64 images: overhead alone")] = False,
    method: Annotated[str | None, typer.Option(hidden=True)] = None,
    turn: Annotated[int, typer.Option(hidden=True)] = 0,
    folder: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print a table, a line a method."""
    low, high = (int(depth) for depth in (depths.split(",") * 2)[:2])
    epochs = 1 if no_work else epochs
    if trials < 2 * blocks:
        raise UserError(f"--trials {trials}: at least 2 for each of {blocks} blocks")
    if method:
        first, last = (trials * block // blocks for block in (turn, turn + 1))
        _run(method, _Block(data, weights, epochs, (low, high), no_work, first, last, Path(folder)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as place:
        for block in range(blocks):
            for name in METHODS:
                own = ["--method", name, "--turn", str(block), "--folder", place]
                found[name].append(_measured([*sys.argv[1:], *own]))
                print(f"{name}, block {block + 1}: {found[name][-1]}", file=console.terminal(), flush=True)
    print(f"{trials} trials of {epochs} epochs each in {blocks} blocks, unfreeze depth {low}–{high}, batch {BATCH}")
    print("| | trials an hour | with start and ACTIVATIONS | overhead, s a trial | peak memory, GiB | best macro-F1 |")
    print("|---|---|---|---|---|---|")
    for name, turns in found.items():
        print(_line(name, turns, trials), flush=True)


def _line(name: str, turns: list[dict[str, Any]], trials: int) -> str:
    inside, whole = sum(turn["seconds"] for turn in turns), sum(turn["whole"] for turn in turns)
    overhead = np.nanmedian([value for turn in turns for value in turn["overheads"]])
    best, memory = max(turn["best"] for turn in turns), max(turn["memory"] for turn in turns)
    rates = f"{3600 * trials / inside:.0f} | {3600 * trials / whole:.0f}"
    return f"| {name} | {rates} | {overhead:.2f} | {memory / 2**30:.1f} | {best:.3f} |"


def _measured(arguments: list[str]) -> dict[str, Any]:
    """Run a block in a process of its own, whose last line is the block's results."""
    started, peak, done = time.perf_counter(), [0], threading.Event()
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)

    def watch() -> None:
        while not done.wait(0.5):
            peak[0] = max(peak[0], _memory(psutil.Process(process.pid)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    out, _ = process.communicate()
    done.set()
    thread.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{out}")
    return {**json.loads(out.strip().splitlines()[-1]), "whole": time.perf_counter() - started, "memory": peak[0]}


def _memory(process: psutil.Process) -> int:
    """Sum the bytes of a process and all below it; what they share counts once for each."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _run(method: str, block: _Block) -> None:
    from ham_ray.training import input_pipeline

    def few(*arguments: Any) -> Any:
        return {name: rows.head(BATCH) for name, rows in split_rows(*arguments).items()}

    split_rows = input_pipeline.split_rows
    with mock.patch.object(input_pipeline, "split_rows", few if block.no_work else split_rows):
        if method == "ham_ray":
            result = _ours(block)
        else:
            peer = _keras_tuner if method == "KerasTuner" else _optuna
            result = peer(block, _Peer(block))
    print(json.dumps(result))


def _space(block: _Block) -> dict[str, Any]:
    low, high = block.depths
    fixed = {"head_epochs": 0, "batch_size": BATCH, "augmentation": "light", "patience": 0}
    return {
        "family": "resnet50_finetuned",
        "objective": "macro_f1",
        "scheduler": {"name": "none"},
        "recipe": {"epochs": block.epochs, **fixed},
        "parameters": {
            "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
            "unfreeze_depth": {"type": "int", "low": low, "high": high},
            "class_weight_scale": {"type": "float", "low": 0.0, "high": 1.2},
        },
        "points": block.points,
    }


def _ours(block: _Block) -> dict[str, Any]:
    import optuna

    from ham_ray.cluster import connected
    from ham_ray.workflows.steps import tuning
    from ham_ray.workflows.tune import Options

    place, space = block.folder, block.folder / "space.yaml"
    space.write_text(yaml.safe_dump(_space(block)))
    options = Options(
        data=block.data,
        name="ours",
        trials=block.last,
        space=str(space),
        max_concurrent=1,
        max_failures=0,
        weights=[block.weights],
        activations=16.0,
        finalists=0,
        out=str(place),
    )
    with connected():
        table = tuning.run(options).trials
    study = optuna.load_study(study_name="ours", storage=f"sqlite:///{place}/ours/study.db")
    spans = [(t.datetime_start, t.datetime_complete) for t in study.get_trials()[block.first : block.last]]
    marks = [spans[0][0], *(end for _, end in spans)]
    inside = table["seconds"].iloc[block.first : block.last].tolist()
    return block.told([mark.timestamp() for mark in marks if mark], inside, float(table["macro_f1"].max()))


class _Peer:
    """What both peers share: images in memory, a model for given values, and `fit` with its seconds kept."""

    def __init__(self, block: _Block) -> None:
        import plain

        from ham_ray.data.prepare import prepare
        from ham_ray.models.architectures import resnet50
        from ham_ray.models.weights import resolve_weights
        from ham_ray.recipe import baseline

        images = prepare(block.data, str(block.folder), 128)
        parts = plain.splits(images, baseline("resnet50_finetuned"))
        self.size, self.epochs = images.size, block.epochs
        self.weights = resolve_weights(block.weights, resnet50.ARCHITECTURE)
        self.training, self.validation = (plain.dataset(*parts[name], BATCH, name == "training") for name in parts)
        self.counts = np.bincount(parts["training"][1], minlength=7)
        self.inside: list[float] = []

    def model(self, learning_rate: float, depth: int) -> Any:
        """Build a compiled ResNet50 with its top `depth` stages unfrozen."""
        import plain

        return plain.compiled(plain.resnet50(self.size, self.weights, depth), learning_rate)

    def fit(self, model: Any, scale: float) -> float:
        """Train with class weights; return the best validation macro-F1."""
        import keras

        from ham_ray.training.objectives import class_weights

        started = time.perf_counter()
        history = model.fit(
            self.training,
            validation_data=self.validation,
            epochs=self.epochs,
            class_weight=dict(enumerate(class_weights(self.counts, scale).tolist())),
            verbose=0,
        )
        self.inside.append(time.perf_counter() - started)
        keras.backend.clear_session()
        return float(max(history.history["val_f1"]))


def _keras_tuner(block: _Block, peer: _Peer) -> dict[str, Any]:
    import keras_tuner

    marks: list[float] = []

    class Tuner(keras_tuner.BayesianOptimization):
        def run_trial(self, trial: Any, *arguments: Any, **options: Any) -> dict[str, float]:
            values = trial.hyperparameters
            return {"f1": peer.fit(self.hypermodel.build(values), values.get("class_weight_scale"))}

        def on_trial_end(self, trial: Any) -> None:
            super().on_trial_end(trial)
            marks.append(time.perf_counter())

    def build(values: Any) -> Any:
        values.Float("class_weight_scale", 0.0, 1.2)
        return peer.model(
            values.Float("learning_rate", 1e-5, 1e-2, sampling="log"), values.Int("unfreeze_depth", *block.depths)
        )

    tuner = Tuner(
        build, objective=keras_tuner.Objective("f1", "max"), max_trials=block.last, seed=0,
        directory=str(block.folder), project_name="keras_tuner",
    )  # fmt: skip
    propose = tuner.oracle.populate_space

    def fixed_first(trial_id: str) -> dict[str, Any]:
        """Replace the tuner's proposal, which is made and paid for, as Optuna's is for an enqueued trial."""
        proposed, number = propose(trial_id), len(tuner.oracle.trials)
        return {**proposed, "values": block.points[number]} if number < len(block.points) else proposed

    tuner.oracle.populate_space = fixed_first
    marks.append(time.perf_counter())
    tuner.search(verbose=0)
    scores = [trial.score for trial in tuner.oracle.trials.values()]
    assert None not in scores, "a trial of KerasTuner failed; it told why above"
    return block.told(marks, peer.inside, max(scores))


def _optuna(block: _Block, peer: _Peer) -> dict[str, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="plain", storage=f"sqlite:///{block.folder}/plain.db", direction="maximize", load_if_exists=True
    )
    for point in block.points[block.first :]:
        study.enqueue_trial(point)

    def objective(trial: optuna.Trial) -> float:
        model = peer.model(
            trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
            trial.suggest_int("unfreeze_depth", *block.depths),
        )
        return peer.fit(model, trial.suggest_float("class_weight_scale", 0.0, 1.2))

    marks = [time.perf_counter()]
    ended = [lambda study, trial: marks.append(time.perf_counter())]
    study.optimize(objective, n_trials=block.last - block.first, callbacks=ended)
    return block.told(marks, peer.inside, study.best_value)


if __name__ == "__main__":
    console.run(main)
