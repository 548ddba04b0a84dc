"""Text of the pages can be read: WCAG 2.2, AA asks for 4.5 to 1, and 3 to 1 of what is drawn."""

import re
from importlib.resources import files

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ham_ray.report import figures

pytestmark = pytest.mark.unit

CSS = (files("ham_ray.report") / "templates" / "report.css.jinja").read_text()
COLOURS = dict(re.findall(r"--([\w-]+): (#\w{6});", CSS))


def luminance(colour) -> float:
    """Relative luminance of an sRGB colour, as WCAG defines it."""
    c = np.array(to_rgb(colour))
    return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(one, other) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("white", "black") == pytest.approx(21)
    assert contrast("#777777", "white") == pytest.approx(4.478, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("ink", "white"),
        ("soft", "white"),
        ("warn", "warn-back"),
        ("ink", "warn-back"),
        ("white", "alarm"),
        ("white", "warn"),
    ],
)
def test_text_of_the_page(text: str, ground: str):
    assert contrast(COLOURS.get(text, text), COLOURS.get(ground, ground)) >= 4.5


@pytest.mark.parametrize("colour", [figures.BLUE, figures.ORANGE, figures.GREEN, figures.GREY])
def test_lines_of_figures(colour: str):
    assert contrast(colour, "white") >= (4.5 if colour in (figures.BLUE, figures.GREY) else 3)


def test_numbers_in_every_cell_of_a_confusion_matrix():
    ground = matplotlib.colormaps["Blues"]
    for share in np.linspace(0, 1, 201):
        for count in {0, 1} if share == 0 else {1}:
            assert contrast(figures.cell_ink(share, count), ground(share)) >= 4.5, share
