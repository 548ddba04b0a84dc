"""Networks that are ours in layers and keras-hub's in weights: they give what keras-hub's give."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import pytest

from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.models.architectures import dinov2_small, vit_base
from ham_ray.models.vision_transformer import Shape, resized
from ham_ray.models.weights import Weights, load_backbone

pytestmark = pytest.mark.model
SMALL = Shape(patch=14, width=24, blocks=2, heads=2, hidden=48, scaled=True)
IMAGES = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
REAL = Path(os.environ.get("HAM_RAY_TEST_WEIGHTS", "")).parent / "dinov2_small.weights.h5"


def disturbed(network: keras.Model) -> keras.Model:
    """All variables random: new scales are 1 and biases 0, which hides what goes where."""
    random = np.random.default_rng(0)
    for variable in network.variables:
        variable.assign(random.normal(0.1, 0.2, variable.shape))
    return network


def saved(network: keras.Model, folder: Path) -> Weights:
    network.save_weights(folder / "theirs.weights.h5")
    return Weights("theirs", (folder / "theirs.weights.h5").read_bytes(), ".weights.h5")


@pytest.mark.parametrize("size", [224, 126])
def test_a_dinov2_gives_what_keras_hubs_gives(tmp_path: Path, size: int):
    architecture, theirs = dinov2_small.made("tiny", SMALL, {}), disturbed(dinov2_small._hub(SMALL, size))
    weights = saved(theirs, tmp_path)
    theirs.load_weights(tmp_path / "theirs.weights.h5")  # and interpolates the file's positions
    ours = architecture.build(size)
    load_backbone(ours, weights, architecture.pretrained.load)
    images = IMAGES[:, :size, :size]
    np.testing.assert_allclose(ours(images), theirs({"images": images}), rtol=1e-3, atol=1e-4)


def test_a_vit_gives_what_keras_hubs_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vit_base, "SHAPE", Shape(patch=16, width=24, blocks=2, heads=2, hidden=48))
    theirs, ours = disturbed(vit_base._hub()), vit_base.ARCHITECTURE.build(224)
    load_backbone(ours, saved(theirs, tmp_path), vit_base.ARCHITECTURE.pretrained.load)
    np.testing.assert_allclose(ours(IMAGES), theirs(IMAGES), rtol=1e-3, atol=1e-4)


def test_positions_of_another_square_are_interpolated_and_the_class_tokens_stays():
    ramp = np.repeat(np.arange(4.0), 4)  # rises from row to row
    positions = np.concatenate([[7.0], ramp])[:, None]
    fewer = resized(positions, 4)
    assert fewer[0] == 7 and fewer.shape == (5, 1)
    np.testing.assert_allclose(fewer[1:, 0], [0.5, 0.5, 2.5, 2.5], atol=0.1)
    np.testing.assert_array_equal(resized(positions, 16), positions)


def test_weights_of_another_transformer_are_refused(tmp_path: Path):
    deeper = Shape(patch=14, width=24, blocks=3, heads=2, hidden=48, scaled=True)
    weights = saved(dinov2_small._hub(deeper, 224), tmp_path)
    architecture = dinov2_small.made("tiny", SMALL, {})
    with pytest.raises(UserError, match="weights theirs do not fit tiny"):
        load_backbone(architecture.build(224), weights, architecture.pretrained.load)


def test_lite0_is_of_keras_own_layers():
    """So that a saved one needs nothing but Keras."""
    network = registry.architectures()["efficientnet_lite0"].build(64)
    assert {type(part).__module__.split(".")[0] for part in [network, *network.layers]} == {"keras"}


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason=f"no {REAL.name} beside HAM_RAY_TEST_WEIGHTS")
def test_the_real_dinov2_gives_what_keras_hubs_gives():
    architecture, theirs = registry.architectures()["dinov2_small"], dinov2_small._hub(dinov2_small.SHAPE, 224)
    ours = architecture.build(224)
    load_backbone(ours, Weights(REAL.name, REAL.read_bytes(), ".weights.h5"), architecture.pretrained.load)
    theirs.load_weights(REAL)
    a, b = np.asarray(ours(IMAGES)), np.asarray(theirs({"images": IMAGES}))
    assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(b) and np.linalg.norm(b) > 1
