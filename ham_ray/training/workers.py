"""Ray Train: from a recipe and IMAGES to a finished RUN, by one worker or many."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.train
import tensorflow as tf
from ray.exceptions import RayActorError
from ray.train.tensorflow import TensorflowTrainer

from ham_ray import runs, storage
from ham_ray.cluster import Resources, WorkerRange, alive_nodes, configure_data
from ham_ray.data.images import Images
from ham_ray.data.stored import StoredRows
from ham_ray.errors import UserError, in_words
from ham_ray.hardware import cores
from ham_ray.models.network import Network, build
from ham_ray.models.saving import save
from ham_ray.models.weights import RANDOM, Weights
from ham_ray.progress import duration
from ham_ray.recipe import Recipe
from ham_ray.runs import CHECKPOINTS, MODEL
from ham_ray.training import elastic, input_pipeline, log_relay, loop
from ham_ray.training.callbacks import Barrier, Callback, Console, Elastic, RayTrain
from ham_ray.training.checkpoints import Checkpoints
from ham_ray.training.decoding import Decoder
from ham_ray.training.step import Replica, predict

RESTARTS = 3  # of the workers, after one was killed
STOPPED = "stopped at the barrier"


@dataclass(frozen=True)
class Outcome:
    """What a training gives: probabilities float32[N, K] of validation and test in the order of their rows.

    `failed` says why there are none.
    """

    failed: str | None
    probabilities: dict[str, np.ndarray]
    history: pd.DataFrame
    facts: dict[str, Any]


def train(
    recipe: Recipe,
    images: Images,
    splits: input_pipeline.Splits,
    weights: Weights,
    resources: Resources,
    uri: str,
    barrier: Any = None,
    restarts: int = RESTARTS,
    time_left: log_relay.TimeLeft | None = None,
    allowed: WorkerRange | None = None,
) -> Outcome:
    """Train under Ray Train into the run folder at `uri`, going on from its latest checkpoint.

    A killed worker is restarted with all others, at most `restarts` times; Ray Train's controller too. A non-finite
    loss is an Outcome, no exception. Where there is a `barrier` (an `EpochBarrier` actor), each epoch waits for it, and
    the training fails as STOPPED where it is not released. Such a training leaves no model and predicts nothing, and is
    not started again with a new controller: its trial is. Each epoch's line ends in `time_left`. Where a range of
    workers is `allowed`, they are as many as there is room for, at the start and after an interruption, and more of
    them start at an epoch's end.

    Raises:
        ray.train.TrainingFailedError: the workers failed more often than that.
        ray.exceptions.RayActorError: the controller died more often than that.
    """
    config: dict[str, Any] = {
        "recipe": recipe.model_dump(),
        "size": images.size,
        "classes": images.classes.codes,
        "weights": ray.put(weights),
        "uri": uri,
        "kept": splits.kept,
        "activations": splits.activations,
        "window": splits.window,
        "barrier": barrier,
        "end": None,
        "ahead": bool(splits.datasets),
        "stored": ray.put(splits.stored),
        "labels": {name: frame["label"].to_numpy(np.int32) for name, frame in splits.rows.items()},
    }
    workers = f"{resources.workers} worker(s) × {resources.cpus_per_worker:g} CPU"
    workers = f"{allowed.least} to {allowed.most} workers" if allowed else workers
    with log_relay.relay_logs(storage.basename(uri), workers, time_left) as config["mailbox"]:
        if allowed is None:
            result = _fit(config, splits, resources, restarts)
        else:
            result = _fit_elastic(config, splits, allowed, restarts)
    runs.remove_leftovers(uri)
    return Outcome(result["failed"], result["probabilities"], pd.DataFrame(result["history"]), result["facts"])


def _fit(config: dict[str, Any], splits: input_pipeline.Splits, resources: Resources, restarts: int) -> dict[str, Any]:
    """Run Ray Train to its end; where its controller died, again from the latest checkpoint."""
    left = restarts if config["barrier"] is None else 0
    while True:
        runs.remove_leftovers(config["uri"])
        # A new name each time: Ray would silently go on with an old run of the same name, whatever its recipe.
        name = f"ray-{time.time_ns()}"
        try:
            return _trainer(config, splits, resources, name, restarts).fit().return_value
        except RayActorError as error:
            if not left:
                raise
            left -= 1
            print(f"{storage.basename(config['uri'])}: {in_words(error)}; starting again from its latest checkpoint")


def _fit_elastic(
    config: dict[str, Any], splits: input_pipeline.Splits, allowed: WorkerRange, restarts: int
) -> dict[str, Any]:
    """Run Ray Train with the workers there is room for; again, in another number, where nodes are lost or added."""
    run, batch_size, left = storage.basename(config["uri"]), config["recipe"]["data"]["batch_size"], restarts
    checkpoints, before = Checkpoints(storage.join(config["uri"], CHECKPOINTS)), ""
    while True:
        runs.remove_leftovers(config["uri"])
        resources, nodes = elastic.wait_for_nodes(allowed, batch_size), len(alive_nodes())
        print(f"{run}: {resources.reason}", flush=True)
        with elastic.growing(resources.workers, lambda: elastic.fitting(allowed, batch_size)) as config["end"]:
            try:
                trainer = _trainer(config, splits, resources, f"ray-{time.time_ns()}", restarts=0)
                result = trainer.fit().return_value
                if result["failed"] != STOPPED:
                    return result
            except (ray.train.TrainingFailedError, RayActorError) as error:
                left = left - 1 if checkpoints.newest == before else restarts  # who gets on may go on
                if left < 0:
                    raise
                before = checkpoints.newest
                print(f"{run}: {in_words(error)}; going on from its latest checkpoint with the nodes that are there")
                elastic.settle(nodes)


def _trainer(
    config: dict[str, Any], splits: input_pipeline.Splits, resources: Resources, name: str, restarts: int
) -> Any:
    return TensorflowTrainer(
        _worker,  # type: ignore[arg-type]  # what it returns is Result.return_value
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})},
            placement_strategy="SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=config["uri"],
            failure_config=ray.train.FailureConfig(max_failures=restarts),
        ),
        datasets={**splits.datasets},
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
    )


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """Runs on each worker. What would only happen again is told, not raised: Ray would restart the workers for it."""
    os.environ.pop("TF_USE_LEGACY_KERAS", None)  # Ray sets it; it would make Keras 3 refuse to load
    try:
        return _train_here(config)
    except (loop.NonFiniteLossError, loop.WorkersDisagreeError, UserError) as error:
        return {"failed": str(error), "probabilities": {}, "history": [], "facts": {}}


def _train_here(config: dict[str, Any]) -> dict[str, Any]:
    """Train on this worker's shards, then predict the held-out images of all."""
    configure_data()
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    _limit_threads()
    replica = _join()
    recipe, weights = Recipe(**config["recipe"]), ray.get(config["weights"])
    with replica.strategy.scope():
        network = build(recipe, config["size"], weights, len(config["classes"]))
    source = _Source(config, recipe, replica)
    data = source.data()
    checkpoints = Checkpoints(storage.join(config["uri"], CHECKPOINTS))
    first = data.validation.inputs[:128] if data.validation else next(data.batches(0, 0))[0]
    spread = network.feature_spread(first if data.cached else network.prefix(first, training=False))
    say = log_relay.rank0_logger(config["mailbox"], replica.rank, storage.basename(config["uri"]))
    callbacks: list[Callback] = [Console(recipe.epochs, say), RayTrain()]
    if config["barrier"] is not None:
        callbacks.append(Barrier(config["barrier"], recipe.epochs, replica.rank))
    if config["end"] is not None:
        callbacks.append(Elastic(config["end"], recipe.epochs))
    progress = loop.train(recipe, network, data, replica, checkpoints, say, callbacks)
    if (
        config["barrier"] is not None or progress.stopped
    ):  # a trial of a search: its scores are reported, it has no say in the test fold
        failed = STOPPED if progress.stopped else None
        return {"failed": failed, "probabilities": {}, "history": progress.history, "facts": {}}
    facts = {
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "feature_spread": spread,
        "seconds": sum(row["seconds"] for row in progress.history),
    }
    forward = _saved(recipe, config, network, replica)
    probabilities = {}
    for name in [name for name in config["labels"] if name != "training"]:
        decoded = data.validation if name == "validation" and not data.cached else None
        shard, advance = decoded or source.shard(name), _Advance(f"prediction of {name} images", say)
        probabilities[name] = replica.gather(predict(forward, shard.inputs, advance=advance))
    return {"failed": None, "probabilities": probabilities, "history": progress.history, "facts": facts}


class _Source:
    """Where this worker's data come from: tables of activations, datasets decoded before, or streams."""

    def __init__(self, config: dict[str, Any], recipe: Recipe, replica: Replica) -> None:
        self.config, self.recipe, self.replica = config, recipe, replica
        self.stored: dict[str, StoredRows] = ray.get(config["stored"])
        self.decoder = Decoder()

    def data(self) -> loop.WorkerData:
        """What the loop trains and validates on."""
        config, replica = self.config, self.replica
        labels, classes, tables = config["labels"], len(config["classes"]), config["activations"]
        return loop.worker_data(
            self.recipe, labels, classes, tables, self._images, replica.rank, replica.workers, config["window"]
        )

    def shard(self, name: str) -> input_pipeline.Shard:
        """This worker's shard of a split: kept in memory where it was decoded for that, else streamed."""
        replica, training = self.replica, len(self.stored["training"])
        sampler = input_pipeline.make_sampler(self.recipe, training, replica.rank, replica.workers)
        rows = input_pipeline.shard_rows(name, self.stored[name], sampler)
        if name in self.config["kept"]:
            return input_pipeline.kept_shard(name, rows, sampler.rank, self.decoder, self.config["ahead"])
        return input_pipeline.Shard(input_pipeline.StreamedImages(rows, self.decoder), rows.labels)

    def _images(self) -> tuple[input_pipeline.Shard, input_pipeline.Shard | None]:
        return self.shard("training"), self.shard("validation") if "validation" in self.stored else None


def _limit_threads() -> None:
    """Workers that share a node share its cores; TensorFlow alone would start a thread for every core in each."""
    tf.get_logger().setLevel("ERROR")  # it tells of every collective
    share = cores() // ray.train.get_context().get_local_world_size()
    tf.config.threading.set_intra_op_parallelism_threads(max(1, share))
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def _join() -> Replica:
    """This worker's replica: TensorFlow's default strategy for one, MultiWorkerMirroredStrategy for many."""
    context = ray.train.get_context()
    if context.get_world_size() == 1:
        return Replica(tf.distribute.get_strategy())
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rank = strategy.cluster_resolver.task_id
    assert rank == context.get_world_rank(), "TensorFlow's order of workers is not Ray's: shards would be mixed up"
    return Replica(strategy, rank, context.get_world_size())


def _saved(recipe: Recipe, config: dict[str, Any], network: Network, replica: Replica) -> Any:
    """Make the float32 classifier and save it; its compiled forward pass. What PREDICTIONS hold is what it gives."""
    if recipe.model.precision != "float32" or replica.workers > 1:  # other layers, or variables of a strategy
        trained = network.variables
        network = build(recipe.changed(precision="float32"), config["size"], RANDOM, len(config["classes"]))
        for target, source in zip(network.variables, trained, strict=True):
            target.assign(source.numpy())
    classifier = network.classifier()
    if replica.rank == 0:
        with storage.writing(storage.join(config["uri"], MODEL)) as path:
            save(classifier, path, config["classes"])
    return tf.function(lambda images: classifier(images, training=False), autograph=False)


class _Advance:
    """Says every 20 s how far a worker's prediction is, and in the end how long it took where that was long."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self.what, self.say, self.started = what, say, time.monotonic()
        self.said = self.started

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total and now - self.started > 10:
            self.say(f"{self.what}: {duration(now - self.started)}")
        elif now - self.said > 20:
            self.said = now
            left = (total - done) * (now - self.started) / done
            self.say(f"{self.what}: {done:,} of {total:,} of a worker, {duration(left)} left")
