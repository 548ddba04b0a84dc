"""Trials an hour, seconds of overhead a trial, memory and best score: this project, KerasTuner, plain Optuna.

    pip install -e '.[benchmark]'
    python benchmarks/search.py --data ham10000.zip --weights FILE.h5 [--trials 6] [--epochs 3] [--depths 0,1]

All three search learning rate, unfreeze depth and class-weight scaling of the same ResNet50 on the same images in
memory, with the same batch size and epochs, with flips and rotations, and take turns in blocks, each block in a process
of its own that goes on where its last one ended. KerasTuner (BayesianOptimization) and plain Optuna (TPE) train with
`model.fit`. Overhead is what a trial takes beyond its epochs. Memory is that of all processes together, at its highest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from ham_ray import console

METHODS = ("ham_ray", "KerasTuner", "Optuna + fit")
BATCH = 64


def main(
    data: Annotated[str, typer.Option(help="HAM10000 archive or IMAGES table")],
    weights: Annotated[str, typer.Option(help="none, or a ResNet50 no-top .h5 file")] = "none",
    trials: Annotated[int, typer.Option(help="of each, in all")] = 6,
    blocks: Annotated[int, typer.Option(help="turns of each")] = 2,
    epochs: Annotated[int, typer.Option(help="of each trial")] = 3,
    depths: Annotated[str, typer.Option(help="lowest and highest unfreeze depth")] = "0,1",
    method: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print a table, a line a method."""
    low, high = (int(depth) for depth in (depths.split(",") * 2)[:2])
    if method and folder:
        _block(method, Path(folder), data, weights, trials, epochs, (low, high))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as place:
        for block in range(1, blocks + 1):
            for name in METHODS:
                options = ["--data", data, "--weights", weights, "--epochs", str(epochs), "--depths", f"{low},{high}"]
                so_far = str(trials * block // blocks)
                found[name].append(_measured([*options, "--trials", so_far, "--method", name, "--folder", place]))
                print(f"{name}, block {block}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(f"{trials} trials of {epochs} epochs each in {blocks} blocks, unfreeze depth {low}–{high}, batch {BATCH}")
    print("| | trials an hour | with start and ACTIVATIONS | overhead, s a trial | peak memory, GiB | best macro-F1 |")
    print("|---|---|---|---|---|---|")
    for name, turns in found.items():
        print(_line(name, turns, trials), flush=True)


def _line(name: str, turns: list[dict[str, Any]], trials: int) -> str:
    inside, whole = sum(turn["seconds"] for turn in turns), sum(turn["whole"] for turn in turns)
    overhead = np.median([value for turn in turns for value in turn["overheads"]])
    best, memory = max(turn["best"] for turn in turns), max(turn["memory"] for turn in turns)
    rates = f"{3600 * trials / inside:.0f} | {3600 * trials / whole:.0f}"
    return f"| {name} | {rates} | {overhead:.2f} | {memory / 2**30:.1f} | {best:.3f} |"


def _measured(arguments: list[str]) -> dict[str, Any]:
    """Run a block in a process of its own; its last line is what it found."""
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
    """Of a process and all below it; what they share counts once for each."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _block(
    method: str, place: Path, data: str, weights: str, trials: int, epochs: int, depths: tuple[int, int]
) -> None:
    if method == "ham_ray":
        result = _ours(place, data, weights, trials, epochs, depths)
    else:
        peer = _keras_tuner if method == "KerasTuner" else _optuna
        result = peer(place, _Peer(data, weights, epochs, str(place)), trials, depths)
    print(json.dumps(result))


def _ours(place: Path, data: str, weights: str, trials: int, epochs: int, depths: tuple[int, int]) -> dict[str, Any]:
    from ham_ray.cluster import connected
    from ham_ray.commands import tuning

    space = place / "space.yaml"
    space.write_text(
        "family: resnet50_finetuned\nobjective: macro_f1\nscheduler: {name: none}\n"
        f"recipe: {{epochs: {epochs}, head_epochs: 0, batch_size: {BATCH}, augmentation: light, patience: 0}}\n"
        "parameters:\n  learning_rate: {type: float, low: 1.0e-5, high: 1.0e-2, log: true}\n"
        f"  unfreeze_depth: {{type: int, low: {depths[0]}, high: {depths[1]}}}\n"
        "  class_weight_scale: {type: float, low: 0.0, high: 1.2}\n"
    )
    options = tuning.Options(
        data=data, name="ours", trials=trials, space=str(space), max_concurrent=1, workers_per_trial=1,
        cpus_per_worker=None, max_failures=0, epochs=None, weights=weights, precision="auto", shard_memory=4.0,
        activations=16.0, size=128, storage=None, mixed=False, finalists=0, seeds=1, ensemble=1, views=1, smoke=False,
        out=str(place),
    )  # fmt: skip
    with connected():
        found = tuning.run(options)
    import optuna

    study = optuna.load_study(study_name="ours", storage=f"sqlite:///{place}/ours/study.db")
    spans = [(t.datetime_start, t.datetime_complete) for t in study.get_trials()]
    times = [(end - start).total_seconds() for start, end in spans if start and end]
    overheads = [taken - trained for taken, trained in zip(times, found.trials["seconds"], strict=True)]
    done = json.loads((place / "ours.json").read_text()) if (place / "ours.json").exists() else 0
    (place / "ours.json").write_text(json.dumps(len(times)))
    best = float(found.trials["macro_f1"].max())
    return {"seconds": sum(times[done:]), "overheads": overheads[done + (not done) :], "best": best}


class _Peer:
    """What both peers share: images in memory, a model for given values, and `fit` with its epochs timed."""

    def __init__(self, data: str, weights: str, epochs: int, place: str) -> None:
        from ham_ray.data.prepare import prepare
        from ham_ray.models.weights import resolve_weights
        from ham_ray.recipe import baseline
        from ham_ray.training import feed

        images = prepare(data, place, 128)
        self.size, self.epochs, self.weights = images.size, epochs, resolve_weights(weights)
        rows = feed.split_rows(images, baseline("resnet50_finetuned"))
        from ham_ray.data.images import read_pixels

        self.parts = {name: (read_pixels(images, rows[name]), rows[name]["label"].to_numpy(np.int32)) for name in rows}
        self.epoch_seconds = 0.0

    def model(self, learning_rate: float, depth: int) -> Any:
        """A compiled ResNet50 with its top `depth` stages unfrozen."""
        import keras
        import plain

        model = plain.resnet50(self.size, self.weights, depth)
        model.compile(
            keras.optimizers.AdamW(learning_rate),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            metrics=[keras.metrics.F1Score(average="macro", name="f1")],
        )
        return model

    def fit(self, model: Any, scale: float) -> float:
        """Train with class weights; the best validation macro-F1."""
        import keras
        import plain

        from ham_ray.models.losses import class_weights

        counts = np.bincount(self.parts["training"][1], minlength=7)
        started = time.perf_counter()
        history = model.fit(
            plain.dataset(*self.parts["training"], BATCH, shuffled=True),
            validation_data=plain.dataset(*self.parts["validation"], BATCH, shuffled=False),
            epochs=self.epochs,
            class_weight=dict(enumerate(class_weights(counts, scale).tolist())),
            verbose=0,
        )
        self.epoch_seconds = time.perf_counter() - started
        keras.backend.clear_session()
        return float(max(history.history["val_f1"]))


def _timed(trial: Callable[[], float], peer: _Peer, spent: dict[str, list[float]]) -> float:
    started = time.perf_counter()
    value = trial()
    spent["seconds"].append(time.perf_counter() - started)
    spent["epochs"].append(peer.epoch_seconds)
    return value


def _told(spent: dict[str, list[float]], seconds: float, best: float) -> dict[str, Any]:
    overheads = [whole - inside for whole, inside in zip(spent["seconds"], spent["epochs"], strict=True)]
    return {"seconds": seconds, "overheads": overheads[1:], "best": best}


def _keras_tuner(place: Path, peer: _Peer, trials: int, depths: tuple[int, int]) -> dict[str, Any]:
    import keras_tuner

    class Tuner(keras_tuner.BayesianOptimization):
        def run_trial(self, trial: Any, *arguments: Any, **options: Any) -> dict[str, float]:
            values = trial.hyperparameters
            model = self.hypermodel.build(values)
            return {"f1": peer.fit(model, values.get("class_weight_scale"))}

    def build(values: Any) -> Any:
        values.Float("class_weight_scale", 0.0, 1.2)
        return peer.model(
            values.Float("learning_rate", 1e-5, 1e-2, sampling="log"), values.Int("unfreeze_depth", *depths)
        )

    tuner = Tuner(
        build, objective=keras_tuner.Objective("f1", "max"), max_trials=trials, seed=0, directory=str(place),
        project_name="keras_tuner",
    )  # fmt: skip
    before = len(tuner.oracle.end_order)
    marks = [time.perf_counter()]
    inside: list[float] = []
    ended = tuner.on_trial_end

    def on_trial_end(trial: Any) -> None:
        ended(trial)
        marks.append(time.perf_counter())
        inside.append(peer.epoch_seconds)

    tuner.on_trial_end = on_trial_end
    tuner.search()
    best = max(tuner.oracle.trials[number].score for number in tuner.oracle.end_order)
    assert len(marks) - 1 == trials - before
    return _told({"seconds": np.diff(marks).tolist(), "epochs": inside}, marks[-1] - marks[0], best)


def _optuna(place: Path, peer: _Peer, trials: int, depths: tuple[int, int]) -> dict[str, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="plain", storage=f"sqlite:///{place}/plain.db", direction="maximize", load_if_exists=True
    )
    spent: dict[str, list[float]] = {"seconds": [], "epochs": []}

    def objective(trial: optuna.Trial) -> float:
        def train() -> float:
            model = peer.model(
                trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
                trial.suggest_int("unfreeze_depth", *depths),
            )
            return peer.fit(model, trial.suggest_float("class_weight_scale", 0.0, 1.2))

        return _timed(train, peer, spent)

    study.optimize(objective, n_trials=trials - len(study.get_trials()))
    return _told(spent, sum(spent["seconds"]), study.best_value)


if __name__ == "__main__":
    console.run(main)
