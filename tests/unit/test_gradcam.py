"""Grad-CAM on a network whose answer is known: its class speaks where its colour is."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES
from keras import layers

from ham_ray.evaluation.predictions import predictions
from ham_ray.models.gradcam import CORNER, grad_cam, has_vignette, in_corners
from ham_ray.report import gradcam_sheet
from ham_ray.report.gradcam_sheet import Corners

pytestmark = pytest.mark.model
SIZE = 32


@pytest.fixture(scope="module")
def reds_and_blues() -> keras.Model:
    """Class 0 is as probable as the image is red, class 2 as it is blue; every second pixel is looked at."""
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = layers.Conv2D(3, 1, strides=4, use_bias=False, name="same")(layers.Rescaling(1 / 255)(images))
    whole = keras.Model(images, layers.GlobalAveragePooling2D()(x), name="colours")
    whole.get_layer("same").set_weights([np.eye(3)[None, None]])
    inputs = keras.Input((3,))
    head = keras.Model(inputs, layers.Dense(7, name="logits", use_bias=False)(inputs), name="head")
    head.get_layer("logits").set_weights([np.eye(3, 7)])
    outer = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    return keras.Model(outer, layers.Softmax(name="probabilities")(head(whole(outer))), name="ham_ray")


def painted() -> np.ndarray:
    """Red at the upper left, blue at the lower right."""
    pixels = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    pixels[:, :8, :8, 0] = 255
    pixels[:, -8:, -8:, 2] = 255
    return pixels


@pytest.mark.parametrize(
    ("label", "here", "there"), [(0, slice(0, 12), slice(20, 32)), (2, slice(20, 32), slice(0, 12))]
)
def test_a_class_speaks_where_its_colour_is(reds_and_blues, label, here, there):
    (found,) = grad_cam(reds_and_blues, painted(), np.array([label]))
    assert found.shape == (SIZE, SIZE) and found.sum() == pytest.approx(1, abs=1e-5)
    assert found[here, here].sum() > 0.9 and found[there, there].sum() < 0.01


def test_a_cell_lies_where_it_looks_and_not_in_the_middle_of_its_square(reds_and_blues):
    pixels = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    pixels[0, 16, 16, 0] = 255  # one of the pixels that the stride does not skip
    (found,) = grad_cam(reds_and_blues, pixels, np.array([0]))
    centre = (found.sum(axis=1) * np.arange(SIZE)).sum()
    assert abs(centre - 16.5) < 1  # bands are two pixels wide


def test_nothing_to_speak_of_is_even(reds_and_blues):
    (found,) = grad_cam(reds_and_blues, np.zeros((1, SIZE, SIZE, 3), np.uint8), np.array([0]))
    np.testing.assert_allclose(found, 1 / SIZE**2, rtol=1e-5)


def test_corners_by_hand():
    even, middle = np.ones((1, 20, 20)), np.zeros((1, 20, 20))
    middle[0, 10, 10] = 1
    np.testing.assert_allclose(in_corners(np.concatenate([even, middle])), [(2 * CORNER) ** 2, 0])


def test_dark_corners_are_seen_and_a_dark_image_is_none():
    rows, columns = np.mgrid[:64, :64] - 31.5
    circle = np.where(np.hypot(rows, columns) < 36, 150, 5).astype(np.uint8)
    one_corner = np.full((64, 64), 150, np.uint8)
    one_corner[:6, :6] = 5
    found = has_vignette(np.stack([circle, one_corner, np.full((64, 64), 20, np.uint8)])[..., None].repeat(3, axis=3))
    assert found.tolist() == [True, False, False]


def test_the_sheet_has_right_and_wrong_examples_of_each_class():
    label = np.arange(70) % 7
    called = np.where(np.arange(70) < 35, label, (label + 1) % 7)
    names = [f"i{place}" for place in range(70)]
    rows = pd.DataFrame({"image_id": names, "lesion_id": names, "group_id": names, "fold": 0, "label": label})
    shown = gradcam_sheet.choose(predictions(rows, "test", np.eye(7)[called], CLASSES))
    assert shown.groupby(["y_true", "right"]).size().tolist() == [2] * 14
    sheet = gradcam_sheet.draw(shown, np.zeros((28, 32, 32, 3), np.uint8), np.ones((28, 32, 32)), CLASSES)
    assert sheet.startswith(b"\xff\xd8\xff") and len(sheet) < 300_000


def test_what_is_said_of_dark_corners_is_what_the_figures_say():
    commoner, looks = "commoner with melanoma here", "the model looks there"
    said = " ".join(Corners(0.04, 0.09, 0.02, 31, "melanoma", 0.2, 0.1).sentences())
    assert "31 images have dark corners" in said and "20 % of them melanomas; of the other images 10 %" in said
    assert "are 4 % of the area and get 9.0 % of the attention where they are dark, 2.0 % elsewhere" in said
    assert commoner in said and looks in said
    rarer = " ".join(Corners(0.04, 0.09, 0.02, 6, "melanoma", 0.0, 0.1).sentences())
    assert "0 % of them melanomas" in rarer and commoner not in rarer
    assert commoner not in " ".join(
        Corners(0.04, 0.03, 0.02, 31, "melanoma", 0.2, 0.1).sentences()
    )  # it does not look there
    assert Corners(0.04, None, 0.02, 0, "melanoma", None, 0.1).sentences() == [
        "No image here has dark corners (the edge of the dermatoscope)."
    ]
