"""`--weights`: what each architecture starts from, and what is refused before TensorFlow starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.models.architecture import Architecture, NamedRecipe, Pretrained, Stage
from ham_ray.recipe import baseline
from ham_ray.workflows.weights import sources

pytestmark = pytest.mark.unit
FIELDS = {"epochs": 1, "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def other() -> Iterator[None]:
    """A second pretrained architecture, whose name begins with that of the first."""
    registry.register(
        Architecture(
            "resnet50_wide",
            build=lambda size: pytest.fail("nothing is built to read options"),
            preprocess=lambda images: images,
            stages=(Stage("all", "", "out"),),
            recipes={"wide": NamedRecipe(FIELDS)},
            pretrained=Pretrained("a file of wide"),
        )
    )
    yield
    registry.unregister("resnet50_wide")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("resnet50_imagenet.weights.h5", "resnet50_wide.h5", "notes.h5"):
        h5py.File(tmp_path / name, "w").close()
    (tmp_path / "resnet50_readme.txt").write_text("no weights")
    return tmp_path


def found(*specs: str, families: str = "simple_cnn,resnet50_frozen,resnet50_finetuned,wide") -> dict[str, str]:
    return sources([*specs], [baseline(family) for family in families.split(",")])


def test_what_names_no_architecture_is_for_all_of_them(folder: Path):
    for spec in ("imagenet", "none"):
        assert found(spec) == {"resnet50": spec, "resnet50_wide": spec}
        assert found(spec, families="simple_cnn") == {}
    assert found(str(folder)) == {
        "resnet50": f"{folder}/resnet50_imagenet.weights.h5",
        "resnet50_wide": f"{folder}/resnet50_wide.h5",
    }


def test_a_file_alone_is_for_the_only_one(folder: Path):
    file = f"{folder}/notes.h5"
    assert found(file, families="simple_cnn,resnet50_finetuned") == {"resnet50": file}
    assert found(f"resnet50={file}", file) == {"resnet50": file, "resnet50_wide": file}


def test_what_names_an_architecture_goes_before_the_rest(folder: Path):
    file = f"{folder}/notes.h5"
    assert found(f"resnet50={file}", "none") == {"resnet50": file, "resnet50_wide": "none"}
    assert found("resnet50_wide=imagenet", str(folder))["resnet50_wide"] == "imagenet"
    assert found(f"resnet50_wide={file}", "none", families="resnet50_frozen") == {"resnet50": "none"}


def test_a_path_may_hold_an_equals_sign(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "a=b.h5").write_bytes((folder / "notes.h5").read_bytes())
    monkeypatch.chdir(folder)
    assert found("a=b.h5", families="wide") == {"resnet50_wide": "a=b.h5"}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["{}/notes.h5"], r"one file for resnet50 and resnet50_wide; write --weights resnet50=.*notes.h5, and one for"),
        (["resnet50={}/notes.h5"], "nothing for resnet50_wide; add --weights resnet50_wide=FILE"),
        (["none", "imagenet"], "none and imagenet: whose are they"),
        (["resnet50=none", "resnet50=imagenet"], "--weights resnet50: given as none and as imagenet"),
        (["resnet5=none"], "unknown architecture 'resnet5'; did you mean resnet50"),
        (["simple_cnn=none", "none"], "simple_cnn is trained from scratch; leave it out"),
        (["resnet50={}/nothing.h5", "none"], "nothing.h5: no such file or folder; give imagenet, none, or the path"),
        (["resnet50={}/resnet50_readme.txt", "none"], "not a .h5 file"),
        (["resnet50={}", "none"], "a folder; give imagenet, none, or the path"),
    ],
)
def test_a_mistake_names_the_remedy(folder: Path, specs: list[str], message: str):
    with pytest.raises(UserError, match=message):
        found(*(spec.replace("{}", str(folder)) for spec in specs))


def test_a_folder_that_leaves_it_open_is_refused(folder: Path):
    h5py.File(folder / "resnet50.h5", "w").close()
    with pytest.raises(UserError, match="resnet50.h5 or resnet50_imagenet.weights.h5 all begin with resnet50; add"):
        found(str(folder))
    (folder / "resnet50_wide.h5").unlink()
    with pytest.raises(UserError, match="no .h5 file in it begins with resnet50_wide; add --weights "):
        found(str(folder), families="wide")


def test_names_are_taken_once():
    with pytest.raises(KeyError, match="architecture 'resnet50' is registered twice"):
        registry.register(registry.architectures()["resnet50"])
    double = Architecture("x", None, None, (), {"wide": NamedRecipe(FIELDS)})  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="recipe 'wide' of x is one of resnet50_wide already"):
        registry.register(double)
    assert "x" not in registry.architectures()
