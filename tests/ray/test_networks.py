"""Every registered family: shapes, gradients, freezing, preprocessing, and a saved model that needs nothing of ours."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import USUAL, family, parameters
from here import train_here

from ham_ray.data.images import Images
from ham_ray.data.stored import decode
from ham_ray.errors import UserError
from ham_ray.models import folding, registry
from ham_ray.models import network as networks
from ham_ray.models.architectures import resnet50
from ham_ray.models.architectures.resnet50 import bgr_minus_imagenet_mean
from ham_ray.models.folding import Graph, folded
from ham_ray.models.weights import RANDOM, Weights, resolve_weights
from ham_ray.recipe import baseline

pytestmark = pytest.mark.model
STAGES = [stage.name for stage in resnet50.STAGES]
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@functools.cache
def built(family: str, **changes) -> networks.Network:
    """Build it once for all tests: none depends on the values of its variables."""
    return networks.build(baseline(family).changed(**changes), 32, RANDOM, 7)


@pytest.mark.parametrize("name", parameters())
def test_uint8_images_become_probabilities(name: str):
    probabilities = built(family(name)).classifier()(PIXELS).numpy()
    assert probabilities.shape == (4, 7) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", parameters())
def test_the_gradient_reaches_every_trained_variable(name: str):
    network = built(family(name))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(
            network.head(network.body(network.prefix(PIXELS), training=network.trains_statistics)) ** 2
        )
    gradients = tape.gradient(loss, [variable.value for variable in network.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    assert sum(float(tf.norm(gradient)) > 0 for gradient in gradients) == len(gradients)


@pytest.mark.parametrize(
    "names",
    [pytest.param(USUAL, id="usual"), pytest.param([*registry.architectures()], id="all", marks=pytest.mark.long)],
)
def test_a_saved_model_gives_the_same_in_a_process_without_this_package(names: list[str], tmp_path: Path):
    classifiers = {name: built(family(name)).classifier() for name in names}
    for name, classifier in classifiers.items():
        classifier.save(tmp_path / f"{name}.keras")
    np.save(tmp_path / "pixels.npy", PIXELS)
    code = (
        "import keras, numpy as np, pathlib, sys\n"
        "for path in pathlib.Path().glob('*.keras'):\n"
        "    np.save(path.stem, keras.models.load_model(path)(np.load('pixels.npy')))\n"
        "assert not any(name.startswith('ham_ray') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    for name, classifier in classifiers.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), classifier(PIXELS), atol=1e-6, err_msg=name)


def test_preprocessing_is_keras_own():
    inputs = keras.Input((32, 32, 3))
    ours = keras.Model(inputs, bgr_minus_imagenet_mean(inputs))(PIXELS.astype(np.float32))
    theirs = keras.applications.resnet50.preprocess_input(PIXELS.astype(np.float32))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "lowest"), [(0, None), (1, "conv5"), (2, "conv4"), (3, "conv3"), (4, "conv2"), (5, "conv1")]
)
def test_unfreeze_depth_counts_residual_stages_from_the_top(depth: int, lowest: str | None):
    body = built("resnet50_finetuned", unfreeze_depth=depth).body
    trained = {variable.path.split("/")[0].split("_")[0] for variable in body.trainable_variables}
    expected = set() if lowest is None else set(STAGES[STAGES.index(lowest) :])
    assert trained == expected


@pytest.mark.parametrize("depth", range(6))
def test_the_cut_changes_nothing_and_what_is_below_it_is_frozen(depth: int):
    network, whole = built("resnet50_finetuned", unfreeze_depth=depth), built("resnet50_finetuned", unfreeze_depth=5)
    assert not network.prefix.trainable_variables
    assert len(network.variables) == len(whole.variables)
    named = {variable.path: variable for variable in whole.variables}
    for variable in network.variables:
        named[variable.path].assign(variable)
    np.testing.assert_allclose(network.classifier()(PIXELS), whole.classifier()(PIXELS), atol=1e-6)


@pytest.mark.parametrize("depth", [0, 2, 5])
def test_what_is_trained_and_what_is_saved_are_one_function_of_the_same_variables(depth: int):
    network = built("resnet50_finetuned", unfreeze_depth=depth)
    random = np.random.default_rng(0)
    for variable in network.full_model.variables:
        if variable.path.endswith(("bias", "beta", "moving_mean", "gamma", "moving_variance")):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    shared = [variable for variable in network.full_model.variables if variable.trainable]
    weights, found = random.normal(size=(4, 7)).astype(np.float32), []
    for forward in (lambda: network.logits(network.prefix(PIXELS)), lambda: network.head(network.full_model(PIXELS))):
        with tf.GradientTape() as tape:
            logits = forward()
            loss = tf.reduce_sum(logits * weights)
        found.append((logits.numpy(), tape.gradient(loss, [variable.value for variable in shared])))
    (ours, mine), (plain, theirs) = found
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())
    assert len(mine) == len(shared) and (depth == 0) == (not shared)
    for a, b in zip(mine, theirs, strict=True):
        assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b)


@pytest.mark.parametrize("size", [50, 64])
def test_positions_that_no_later_layer_reads_are_not_computed_and_none_other_is_left_out(size: int):
    """conv3 to conv5 begin with a stride of 2, which the block before takes: its activations have a quarter's bytes."""
    whole = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(size, size, 3), name="resnet50")
    thin = folded(whole, resnet50.unread_positions)
    images = np.random.default_rng(0).normal(0, 50, (3, size, size, 3)).astype(np.float32)
    theirs = whole(images, training=False).numpy()
    np.testing.assert_allclose(thin(images).numpy(), theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    for end in ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out"):
        every = whole.get_layer(end).output.shape[1]
        assert Graph(thin).output(end).shape[1] == -(-every // 2)


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (5, 3)])
def test_the_gradients_at_few_positions_are_those_of_tensorflow(kernel_size: tuple[int, int]):
    random = np.random.default_rng(0)
    inputs, kernel, upstream = (
        tf.constant(random.normal(size=shape), tf.float32)
        for shape in [(5, 4, 6, 8), (*kernel_size, 8, 3), (5, 4, 6, 3)]
    )
    found = []
    for convolve in (folding._at_few_positions, lambda x, k: tf.nn.conv2d(x, k, 1, "SAME")):
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = convolve(inputs, kernel)
        found.append((outputs, *tape.gradient(outputs, [inputs, kernel], upstream)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_conv5_and_nothing_larger_counts_as_few_positions(monkeypatch: pytest.MonkeyPatch):
    shapes, convolve = [], folding._at_few_positions

    def told(inputs, kernel):
        shapes.append(kernel.shape)
        return convolve(inputs, kernel)

    monkeypatch.setattr(folding, "_at_few_positions", told)
    whole = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(128, 128, 3))
    folded(whole, resnet50.unread_positions)
    conv5 = [(1, 1, 1024, 512), (1, 1, 1024, 2048), *[(1, 1, 512, 2048)] * 3, *[(3, 3, 512, 512)] * 3]
    assert sorted(map(tuple, shapes)) == sorted([*conv5, *[(1, 1, 2048, 512)] * 2, (1, 1, 256, 1024)])  # conv4's last


def test_no_batchnorm_of_a_backbone_is_left_to_run_while_it_is_trained():
    body = built("resnet50_finetuned", unfreeze_depth=5).body
    called = {type(layer).__name__ for layer in body.get_layer("resnet50").layers}
    assert "FoldedConv" in called and not called & {"BatchNormalization", "Conv2D"}


def test_the_head_is_float32_in_mixed_precision():
    network = built("resnet50_frozen", precision="bfloat16")
    assert (
        network.body(network.prefix(PIXELS)).dtype == tf.float32 and network.head.layers[-1].compute_dtype == "float32"
    )


@pytest.mark.parametrize("name", parameters(usual=("simple_cnn", "resnet50", "dinov2_small")))
def test_an_epoch_on_the_sample_changes_what_is_trained_and_nothing_else(name: str, images: Images, tmp_path: Path):
    architecture = registry.architectures()[name]
    depth = 1 if architecture.pretrained else 0
    recipe = baseline(family(name)).changed(epochs=1, head_epochs=0, batch_size=64, unfreeze_depth=depth)
    trained = train_here(recipe, images, tmp_path)
    assert len(trained.history) == 1 and np.isfinite(trained.history[["train_loss", "validation_loss"]]).all(axis=None)
    np.testing.assert_allclose(trained.probabilities["test"].sum(axis=1), 1, rtol=1e-5)
    fresh = networks.build(recipe, images.size, RANDOM, 7)
    learned = {id(variable) for variable in trained.network.learned_variables}
    for before, after in zip(fresh.variables, trained.network.variables, strict=True):
        same = np.array_equal(before.numpy(), after.numpy())
        assert not same if after.trainable and "kernel" in after.path else same or id(after) in learned, after.path


def test_the_same_seed_builds_the_same_network():
    recipes = [baseline("simple_cnn").changed(seed=seed) for seed in (1, 1, 2)]
    a, b, c = (networks.build(recipe, 32, RANDOM, 7).head.get_weights()[0] for recipe in recipes)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    weights = resolve_weights(str(tmp_path / "other.weights.h5"), resnet50.ARCHITECTURE)
    with pytest.raises(UserError, match="weights other.weights.h5 do not fit resnet50 without top"):
        networks.build(baseline("resnet50_frozen"), 32, weights, 7)


def test_a_file_that_is_no_weights_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="do not fit resnet50"):
        networks.build(baseline("resnet50_frozen"), 32, Weights("broken.weights.h5", b"no HDF5", ".weights.h5"), 7)
    with pytest.raises(UserError, match="--weights: no file"):
        resolve_weights(str(tmp_path / "nothing.h5"), resnet50.ARCHITECTURE)


def test_imagenet_without_a_network_is_one_line_with_the_remedy(tmp_path: Path):
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise OSError('no network in this test')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from ham_ray.errors import UserError\n"
        "from ham_ray.models.architectures.resnet50 import ARCHITECTURE\n"
        "from ham_ray.models.weights import resolve_weights\n"
        "try: resolve_weights('imagenet', ARCHITECTURE)\n"
        "except UserError as error: print(error)\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if line.startswith("--weights imagenet")]
    assert len(told) == 1 and "--weights resnet50=FILE" in told[0] and "--weights none" in told[0]


@pytest.mark.real
@pytest.mark.skipif("HAM_RAY_TEST_WEIGHTS" not in os.environ, reason="HAM_RAY_TEST_WEIGHTS names no ImageNet weights")
def test_imagenet_features_differ_between_images_only_with_the_right_preprocessing(images: Images):
    weights = resolve_weights(os.environ["HAM_RAY_TEST_WEIGHTS"], resnet50.ARCHITECTURE)
    network = networks.build(baseline("resnet50_frozen"), 32, weights, 7)
    encoded = next(iter(_encoded(images)))
    pixels = np.stack([decode(image) for image in encoded[:64]])
    right, scaled = (network.feature_spread(network.prefix(p)) for p in (pixels, (pixels / 255).astype(np.uint8)))
    assert right > 0.3 > 0.1 > scaled


def _encoded(images: Images):
    import pyarrow.dataset as pads

    for batch in pads.dataset(images.uri, exclude_invalid_files=True).to_batches(columns=["image"]):
        yield batch["image"].to_pylist()
