"""Pages without figures, for tests of what is around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def empty_figures() -> Iterator[None]:
    """Leave figures empty while the block runs: to draw them is half of the work of a page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: file.write(b"<svg/>"))
        yield
