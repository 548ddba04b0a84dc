"""The baseline job's options, as far as they need no cluster."""

from __future__ import annotations

import dataclasses

import pytest

from ham_ray.baselines import Options, make_recipes
from ham_ray.errors import UserError

pytestmark = pytest.mark.unit
OPTIONS = Options(
    data="images",
    families=["simple_cnn", "resnet50_finetuned"],
    weights="none",
    epochs=None,
    workers=1,
    cpus_per_worker=None,
    wait_for_nodes=False,
    precision="float32",
    changes=[],
    shard_memory=4.0,
    activations=8.0,
    size=None,
    name=None,
    smoke=False,
    out="runs",
)


def recipes(**changes):
    return make_recipes(dataclasses.replace(OPTIONS, **changes), "float32")


def test_families_keep_their_own_recipes():
    found = recipes()
    assert list(found) == ["simple_cnn", "resnet50_finetuned"]
    assert found["resnet50_finetuned"].head_epochs > 0 == found["simple_cnn"].head_epochs


def test_epochs_of_the_command_line_leave_one_for_the_rest():
    assert [(r.epochs, r.head_epochs) for r in recipes(epochs=2).values()] == [(2, 0), (2, 1)]
    assert recipes(epochs=1)["resnet50_finetuned"].head_epochs == 0


def test_the_sample_is_trained_in_a_few_small_steps_and_smoke_in_fewer():
    sample, smoke = recipes(data=None)["simple_cnn"], recipes(data=None, smoke=True)["simple_cnn"]
    assert smoke.epochs < sample.epochs < recipes()["simple_cnn"].epochs
    assert sample.batch_size == 32


def test_smoke_shortens_training_on_ones_own_images_too_and_leaves_their_batches():
    smoke = recipes(smoke=True)["resnet50_finetuned"]
    assert (smoke.epochs, smoke.head_epochs) == (2, 1)
    assert smoke.batch_size == recipes()["resnet50_finetuned"].batch_size
    assert recipes(smoke=True, epochs=3)["resnet50_finetuned"].epochs == 3


def test_fields_are_set_for_every_family():
    assert [r.seed for r in recipes(changes=["seed=7", "dropout = 0.1"]).values()] == [7, 7]
    assert recipes(changes=["dropout = 0.1"])["simple_cnn"].dropout == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ["simple_cnm"]}, "unknown family 'simple_cnm'; did you mean simple_cnn"),
        ({"changes": ["epochs"]}, "--set 'epochs': write it as field=value"),
        ({"changes": ["family=simple_cnn"]}, "families are chosen with --families"),
        ({"changes": ["seed=-1"]}, "seed: .*greater than or equal to 0"),
        ({"changes": ["unfreeze_depth=2"], "families": ["resnet50_frozen"]}, "unfrozen is resnet50_finetuned"),
        ({"changes": ["epoch=3"]}, "unknown recipe field 'epoch'; did you mean epochs"),
        ({"epochs": 0}, "epochs: .*greater than or equal to 1"),
        ({"families": []}, "--families: name at least one"),
    ],
)
def test_a_mistake_names_the_remedy(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        recipes(**changes)
