"""What goes wrong in a task of Ray Data reaches the user on one line, with the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ham_ray.data.images import Images, open_images
from ham_ray.errors import cause, in_words
from ham_ray.training import decoding

pytestmark = pytest.mark.ray


def test_a_file_that_a_task_does_not_see_is_named(cluster: str, images: Images, tmp_path: Path):
    table = open_images(shutil.copytree(images.uri, tmp_path / "table"))
    dataset = decoding.dataset(table.stored(table.fold(0)), 1.0)
    missing = sorted(Path(table.uri).glob("*.parquet"))
    for path in missing:
        path.unlink()  # as on a node that does not see it: the driver has opened the table already
    with pytest.raises(Exception) as caught:
        list(dataset.iter_batches())
    told = in_words(caught.value)
    assert isinstance(cause(caught.value), FileNotFoundError)
    assert str(missing[0]) in told and "\n" not in told and "ray::" not in told and len(told) < 400
