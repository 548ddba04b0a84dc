"""Weight files of others: one line, whatever is in them."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import pytest

from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.models.architecture import Architecture, Pretrained
from ham_ray.models.weights import Weights, load_backbone, resolve_weights

pytestmark = pytest.mark.model


def backbone() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, keras.layers.Conv2D(4, 3, name="conv")(inputs), name="small")


def saved(model: keras.Model, path: Path) -> bytes:
    model.save_weights(path)
    return path.read_bytes()


def test_weights_are_loaded(tmp_path: Path):
    first, second = backbone(), backbone()
    load_backbone(second, Weights("w", saved(first, tmp_path / "w.weights.h5"), ".weights.h5"))
    np.testing.assert_array_equal(first.get_weights()[0], second.get_weights()[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float):
    model = backbone()
    kernel, bias = model.get_weights()
    bias[1] = value
    model.set_weights([kernel, bias])
    content = saved(model, tmp_path / "w.weights.h5")
    with pytest.raises(UserError, match=r"weights w are of no use: 1 arrays are not all finite .*conv/bias"):
        load_backbone(backbone(), Weights("w", content, ".weights.h5"))


@pytest.mark.parametrize("content", [b"", b"no hdf5", b"\x89HDF\r\n\x1a\n" + b"\0" * 300])
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_files_that_are_no_weights_are_one_line(content: bytes, suffix: str):
    with pytest.raises(UserError, match="weights w do not fit small without top: .") as caught:
        load_backbone(backbone(), Weights("w", content, suffix))
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "w.weights.h5")
    with pytest.raises(UserError, match=r"--weights .*w.weights.h5 is no plain file"):
        resolve_weights(str(tmp_path / "w.weights.h5"), registry.architectures()["resnet50"])


@pytest.mark.parametrize("others", [True, False])
def test_downloaded_weights_of_a_network_with_other_layers_are_refused(others: bool):
    """Kernels alone would fit: what lies between them decides what they see."""

    def download() -> keras.Model:
        inputs = keras.Input((8, 8, 3))
        scaled = keras.layers.Rescaling(2.0)(inputs) if others else inputs
        return keras.Model(inputs, keras.layers.Conv2D(4, 3, name="conv")(scaled), name="small")

    small = Architecture(
        "small", lambda size: backbone(), lambda images: images, (), {}, Pretrained("a small file", download)
    )
    if others:
        message = "Keras's small has other layers than small here.*; give a small file with --weights small=FILE"
        with pytest.raises(UserError, match=message):
            resolve_weights("imagenet", small)
    else:
        model = backbone()
        load_backbone(model, resolve_weights("imagenet", small))
        assert np.isfinite(model.get_weights()[0]).all()
