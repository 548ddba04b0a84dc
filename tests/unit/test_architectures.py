"""What every architecture has to hold: those of the project, and some that only tests register."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import RESNET101, USUAL, family, parameters
from ham10000 import CLASSES

from ham_ray.errors import UserError
from ham_ray.inference import saved
from ham_ray.models import network as networks
from ham_ray.models import registry
from ham_ray.models.architecture import Architecture
from ham_ray.models.folding import folded
from ham_ray.models.saving import save
from ham_ray.models.weights import RANDOM, layer_kinds
from ham_ray.recipe import Recipe, baseline

pytestmark = pytest.mark.model
SIZE = 48  # 3 × 3 positions and then 2 × 2 at the end: odd sides too
PIXELS = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


@dataclass(frozen=True)
class Built:
    """An architecture without pretrained weights, all of whose scales, shifts and statistics are random."""

    architecture: Architecture
    network: networks.Network
    base: keras.Model  # the network without preprocessing and pooling, of plain Keras layers
    computed: keras.Model  # what stands for it in training

    @property
    def depths(self) -> range:
        return range(len(self.architecture.stages) + 1)


def recipe(architecture: Architecture) -> Recipe:
    return baseline(family(architecture.name))


@pytest.fixture(scope="module", params=parameters(RESNET101.name, usual=(*USUAL, "efficientnet_b0", "convnext_tiny")))
def built(request: pytest.FixtureRequest) -> Iterator[Built]:
    if request.param == RESNET101.name:
        registry.register(RESNET101)
    architecture = registry.architectures()[request.param]
    network = networks.build(recipe(architecture), SIZE, RANDOM, 7)
    base = next(layer for layer in network.full_model.layers if isinstance(layer, keras.Model))
    disturb(base)
    computed = base if architecture.trains_statistics else folded(base, architecture.thin)
    yield Built(architecture, network, base, computed)
    if request.param == RESNET101.name:
        registry.unregister(request.param)


def disturb(model: keras.Model) -> None:
    """Random biases, scales, shifts and statistics: new ones are 0 and 1, with which folding would be nothing."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("bias", "beta", "moving_mean", "gamma", "moving_variance")):
            variable.assign(random.uniform(0.8, 1.2, variable.shape))


def near(ours: np.ndarray, theirs: np.ndarray, share: float = 1e-4) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=share, atol=share * np.abs(theirs).max())


def test_every_layer_with_weights_is_of_one_stage(built: Built):
    for layer in built.base.layers:
        if layer.variables:
            stages = [stage.name for stage in built.architecture.stages if re.match(stage.layers, layer.name)]
            assert len(stages) == 1, layer.name


def test_at_every_depth_the_cut_is_the_whole_and_all_above_it_is_trained_and_nothing_below(built: Built):
    theirs, counts = built.network.full_model(PIXELS, training=False).numpy(), []
    assert theirs.std(axis=0).max() > 0
    for depth in built.depths:
        networks.unfreeze(built.base, built.architecture, depth)
        prefix, body = networks.cut(built.architecture, built.computed, SIZE, depth)
        near(body(prefix(PIXELS, training=False), training=False).numpy(), theirs)
        trained = {id(variable) for variable in built.base.trainable_variables}
        assert not prefix.trainable_variables
        assert {id(variable) for variable in body.trainable_variables} == trained
        counts.append(len(trained))
    built.base.trainable = True
    kept = () if built.architecture.trains_statistics else ("_bn/gamma", "_bn/beta")
    every = [variable for variable in built.base.trainable_variables if not variable.path.endswith(kept)]
    assert counts[0] == 0 and all(np.diff(counts) > 0) and counts[-1] == len(every)


def test_gradients_are_those_of_the_plain_network(built: Built):
    """To 1 %: rounding alone makes .4 % in a hundred layers; a wrong stride made 55 % of the features."""
    networks.unfreeze(built.base, built.architecture, len(built.architecture.stages))
    _, body = networks.cut(built.architecture, built.computed, SIZE, len(built.architecture.stages))
    variables = built.base.trainable_variables
    upstream = np.random.default_rng(0).normal(size=body.output_shape[1:]).astype(np.float32)
    ours, theirs = (gradients(network, variables, upstream) for network in (body, built.network.full_model))
    for variable, a, b in zip(variables, ours, theirs, strict=True):
        assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(b), variable.path


def gradients(network: keras.Model, variables: list[keras.Variable], upstream: np.ndarray) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(PIXELS, training=False) * upstream)
    return [gradient.numpy() for gradient in tape.gradient(loss, [variable.value for variable in variables])]


def test_a_saved_classifier_gives_the_same_and_in_bfloat16_about_the_same(built: Built, tmp_path: Path):
    classifier, path = built.network.classifier(), tmp_path / "model.keras"
    save(classifier, path, CLASSES.codes)
    theirs = classifier(PIXELS).numpy()
    assert theirs.shape == (3, 7) and theirs.dtype == np.float32
    loaded = saved.load(str(path))
    np.testing.assert_allclose(loaded(PIXELS), theirs, atol=1e-5)
    whole = saved._lowered(loaded).get_layer(built.architecture.name)
    assert next(layer for layer in whole.layers if isinstance(layer, keras.Model)).output.dtype == "bfloat16"
    about(whole(PIXELS).numpy(), built.network.full_model(PIXELS).numpy())


def test_trained_in_bfloat16_it_gives_about_the_same_features(built: Built):
    network = networks.build(recipe(built.architecture).changed(precision="bfloat16"), SIZE, RANDOM, 7)
    keras.config.set_dtype_policy("float32")
    for ours, theirs in zip(network.variables, built.network.variables, strict=True):
        ours.assign(theirs)
    features = network.body(network.prefix(PIXELS), training=False).numpy()
    assert features.dtype == np.float32
    about(features, built.network.full_model(PIXELS).numpy())


def about(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


def test_its_saliency_map_is_a_share_of_each_pixel_or_there_is_none(built: Built):
    classifier = built.network.classifier()
    assert registry.of_classifier(classifier) is built.architecture
    if built.architecture.saliency is not None:
        maps = built.architecture.saliency(classifier, PIXELS, np.array([0, 3, 6]))
        assert maps.shape == PIXELS.shape[:3] and maps.min() >= 0
        np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-4)


def test_it_has_the_layers_that_keras_has_with_its_own_weights(built: Built, monkeypatch: pytest.MonkeyPatch):
    """Keras's EfficientNet has a second Rescaling then: without it every kernel would fit and the input would not."""
    if built.architecture.pretrained is None or built.architecture.pretrained.download is None:
        return
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *names, **options: "nothing.h5")
    monkeypatch.setattr(keras.Model, "load_weights", lambda model, path: None)
    if built.architecture.pretrained.load:  # whose own network has other layers: test_weights.py compares what it gives
        return
    theirs = built.architecture.pretrained.download()
    assert layer_kinds(theirs) == layer_kinds(built.base)


def test_sizes_it_does_not_take_are_refused(built: Built):
    with pytest.raises(UserError, match=f"{built.architecture.name} takes images of .* pixels, not 8"):
        networks.build(recipe(built.architecture), 8, RANDOM, 7)


NAMED_ELSEWHERE = {
    "workflows/baseline.py": "the baselines of the original study, which are trained by default",
    "data/datasets/ham10000.py": "the published figures of the data set",
}


def test_nothing_else_names_a_network():
    """What is added is one file: whoever else names a network would have to be changed with it."""
    root = Path(networks.__file__).parents[1]
    words = "res_?net|simple_?cnn|efficient_?net|conv_?next|mobile_?net|dense_?net|dino|vit_?base"
    names = re.compile(words, re.IGNORECASE)
    files = [path.relative_to(root) for path in root.rglob("*") if path.suffix in (".py", ".jinja")]
    naming = {str(path) for path in files if names.search((root / path).read_text())}
    assert {path for path in naming if not path.startswith("models/architectures/")} == {*NAMED_ELSEWHERE}
    assert len(naming) > len(NAMED_ELSEWHERE) + 1
