"""jobs/evaluate.py: tables of any model from anywhere, their page and numbers, and every fault told by name."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES, CODES, ISIC, PROBABILITIES
from PIL import Image

from ham_ray.errors import UserError
from ham_ray.evaluation import isic, metrics, predictions
from ham_ray.report.summary import RANDOM_LABEL, RANDOM_WEIGHTS, SYNTHETIC_LABEL, number
from ham_ray.workflows.evaluate import Options
from ham_ray.workflows.steps import evaluating

pytestmark = [pytest.mark.job, pytest.mark.usefixtures("undrawn")]
ROOT = Path(__file__).parents[2]
COUNT = 280


def made(seed: int, right: float, split: str = "test") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = np.arange(COUNT) % 7
    called = np.where(rng.random(COUNT) < right, label, rng.integers(0, 7, COUNT))
    p = rng.dirichlet(np.ones(7), COUNT) * 0.4
    p[np.arange(COUNT), called] += 0.6
    names = [f"ISIC_{place:07d}" for place in range(COUNT)]
    rows = pd.DataFrame({"image_id": names, "lesion_id": names, "group_id": names, "fold": 0, "label": label})
    return predictions.predictions(rows.assign(sex=["male", "female"] * (COUNT // 2), age=50.0), split, p, CLASSES)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    predictions.write(made(0, 0.8), str(tmp_path / "a.parquet"))
    return tmp_path / "a.parquet"


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    rows = made(0, 1.0)
    named = rows[["image_id", "lesion_id", "sex", "age"]].assign(dx=[CODES[label] for label in rows["y_true"]])
    named.to_csv(tmp_path / "truth.csv", index=False)
    return tmp_path / "truth.csv"


def run(tmp_path: Path, *tables: Path, truth: Path | None = None, images: Path | None = None, split="both") -> dict:
    options = Options(
        predictions=[str(one) for one in tables],
        truth=truth and str(truth),
        images=images and str(images),
        out=str(tmp_path / "out"),
        split=split,
    )
    evaluating.run(options)
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_the_page_the_card_and_the_numbers_agree(table: Path, tmp_path: Path):
    found = run(tmp_path, table)["a"]
    assert "2,000 resamples stratified by class, seed 0" in (tmp_path / "out" / "report.html").read_text()
    expected = metrics.evaluate(*predictions.arrays(made(0, 0.8)), CLASSES)
    assert {name: found[name] for name in expected} == json.loads(json.dumps(expected))
    page, card = ((tmp_path / "out" / name).read_text() for name in ("report.html", "model_card.md"))
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "macro_auc"):
        assert number(found[name]) in page and number(found[name]) in card
    for words in ("not a medical", "CC BY-NC 4.0", "female"):
        assert words in page and words in card
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "").replace("https://doi.org", "")


def test_errors_have_thumbnails_where_images_are_given(table: Path, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    for image_id in made(0, 0.8)["image_id"]:
        Image.new("RGB", (60, 45), (90, 60, 50)).save(tmp_path / "pictures" / f"{image_id}.jpg")
    run(tmp_path, table, images=tmp_path / "pictures")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 12 and len(page) < 5_000_000


def test_drawings_and_random_weights_are_labelled_wherever_their_predictions_go(tmp_path: Path):
    frame = made(0, 0.8)
    ids = [f"SYNTHETIC_{place:06d}" for place in range(COUNT)]
    predictions.write(frame.assign(image_id=ids), str(tmp_path / "s.parquet"))
    manifest = {"models": [{"name": "m", "members": {}, "weights": RANDOM_WEIGHTS}]}
    (tmp_path / "s.parquet.manifest.json").write_text(json.dumps(manifest))
    run(tmp_path, tmp_path / "s.parquet")
    for name in ("report.html", "model_card.md"):
        text = (tmp_path / "out" / name).read_text()
        assert SYNTHETIC_LABEL in text and RANDOM_LABEL in text and "original" not in text.lower()


def test_two_tables_are_compared_on_the_same_images(table: Path, tmp_path: Path, capsys):
    predictions.write(made(1, 0.5), str(tmp_path / "b.parquet"))
    assert set(run(tmp_path, table, tmp_path / "b.parquet")) == {"a", "b"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<th scope="row">a</th><td>b</td>' in page and "McNemar" in page and "&lt; .001" in page
    said = capsys.readouterr().out.split("\n")
    assert [line.split(":")[0] for line in said if re.fullmatch(r"[a-z]+: \d+ s", line)] == [
        *("intervals", "comparisons", "report")
    ]


def test_the_same_predictions_in_any_format_give_the_same_numbers(table: Path, truth: Path, tmp_path: Path):
    frame = made(0, 0.8)
    frame.to_csv(tmp_path / "c.csv", index=False)
    (tmp_path / "i.csv").write_bytes(isic.to_csv(frame.sample(frac=1, random_state=0)))
    pd.read_csv(truth).sample(frac=1, random_state=1).to_csv(truth, index=False)  # each in an order of its own
    wanted = run(tmp_path, table)["a"]
    for name, source in (("c", None), ("i", truth)):
        found = run(tmp_path, tmp_path / f"{name}.csv", truth=source)[name]
        for metric in ("balanced_accuracy", "macro_auc", "macro_f1", "nll"):
            assert found[metric] == pytest.approx(wanted[metric], abs=1e-6)


def test_images_a_model_knows_are_left_out_and_told(table: Path, tmp_path: Path, capsys):
    frame = pd.concat([made(0, 0.8).head(200), made(1, 1.0, "training").tail(80)], ignore_index=True)
    predictions.write(frame, str(tmp_path / "d.parquet"))
    assert run(tmp_path, tmp_path / "d.parquet")["d"]["n"] == 200
    assert "not reported, because the model knows them: 80 training" in capsys.readouterr().out


def test_truth_for_some_of_the_images_is_told_and_for_others_refused(truth: Path, tmp_path: Path, capsys):
    frame = made(0, 0.8).assign(y_true=pd.array([None] * COUNT, "Int32"))
    predictions.write(frame, str(tmp_path / "e.parquet"))
    pd.read_csv(truth).head(250).to_csv(truth, index=False)
    assert run(tmp_path, tmp_path / "e.parquet", truth=truth)["e"]["n"] == 250
    assert "30 of 280 images have no true label" in capsys.readouterr().out
    pd.read_csv(truth).assign(image_id=[f"x{place}" for place in range(250)]).to_csv(truth, index=False)
    with pytest.raises(UserError, match="--truth knows none of the 280 images of .*e.parquet, such as ISIC_0000000"):
        run(tmp_path, tmp_path / "e.parquet", truth=truth)


def test_truth_that_contradicts_is_refused(table: Path, truth: Path, tmp_path: Path):
    pd.read_csv(truth).assign(dx="nv").to_csv(truth, index=False)
    with pytest.raises(UserError, match="--truth contradicts 240 labels in .*a.parquet: ISIC_0000000"):
        run(tmp_path, table, truth=truth)


def test_an_absent_class_is_a_gap_and_no_number(tmp_path: Path):
    frame = made(0, 0.8)
    predictions.write(frame[frame["y_true"] != 6], str(tmp_path / "f.parquet"))
    found = run(tmp_path, tmp_path / "f.parquet")["f"]
    assert found["absent_classes"] == ["vasc"] and found["per_class"]["vasc"]["sensitivity"] is None
    page, card, numbers = (
        (tmp_path / "out" / it).read_text() for it in ("report.html", "model_card.md", "summary.json")
    )
    said = "no image here of vasc (vascular lesion): balanced accuracy and macro-AUC are means of the other 6 classes"
    assert said in page and said in card and said in numbers and "Not among these images: vasc" in page


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: frame.drop(columns="p_nv"), "label outside 0–5 .if columns are missing: p_nv"),
        (lambda frame: frame.assign(p_nv=np.nan), "280 images have probabilities that are not finite: ISIC_0000000"),
        (lambda frame: frame.assign(p_nv=0.0), "do not sum to 1"),
        (lambda frame: frame.assign(image_id="x"), "predicted more than once: x"),
        (lambda frame: frame.assign(y_true=9), "label outside 0–6"),
        (lambda frame: frame.assign(p_nv="much"), r"280 images have no number as p_nv: ISIC_0000000 \('much'\)"),
        (lambda frame: frame.assign(age="old"), r"280 images have no number as age: ISIC_0000000 \('old'\)"),
        (lambda frame: frame.assign(group_id=""), "280 rows have no group_id: 0"),
        (lambda frame: frame.assign(image_id=[None, *frame["image_id"][1:]]), "1 rows have no image_id: 0"),
        (lambda frame: frame.assign(split="training"), "nothing to report"),
    ],
)
def test_faults_are_told_by_name(tmp_path: Path, change, told: str):
    change(made(0, 0.8)).to_csv(tmp_path / "g.csv", index=False)
    with pytest.raises(UserError, match=told):
        run(tmp_path, tmp_path / "g.csv")


def test_numbers_may_be_names(tmp_path: Path):
    made(0, 0.8).assign(image_id=range(COUNT), group_id=range(COUNT)).to_parquet(tmp_path / "n.parquet")
    assert run(tmp_path, tmp_path / "n.parquet")["n"]["n"] == COUNT


def test_what_was_done_to_a_challenge_table_is_said(truth: Path, tmp_path: Path):
    frame = pd.read_csv(io.BytesIO(isic.to_csv(made(0, 0.8)))).assign(UNK=0.0)
    frame.loc[3, "MEL"] += 0.5
    frame.loc[7, ISIC] = 1 / 7
    frame.to_csv(tmp_path / "i.csv", index=False)
    run(tmp_path, tmp_path / "i.csv", truth=truth)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "does not have were left out: UNK" in page
    assert "1 images whose probabilities do not sum to 1, scaled to do so: ISIC_0000003" in page
    assert "1 images have no single greatest probability: ISIC_0000007" in page


def test_tables_that_share_some_images_are_compared_on_these(table: Path, tmp_path: Path):
    predictions.write(made(1, 0.5).head(210), str(tmp_path / "b.parquet"))
    ids = [f"other{place}" for place in range(COUNT)]
    predictions.write(made(2, 0.5).assign(image_id=ids), str(tmp_path / "c.parquet"))
    run(tmp_path, table, tmp_path / "b.parquet", tmp_path / "c.parquet")
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<th scope="row">a</th><td>b</td><td class="n">210</td>' in page and ">a</th><td>c</td>" not in page
    assert "its 210 images are not those of a: only the 210 in both are compared" in page
    assert "its 280 images are not those of a: only the 0 in both are compared" in page


def test_what_to_beware_of_is_on_the_page(table: Path, tmp_path: Path):
    """That nobody knows what the model learned from."""
    predictions.write(made(0, 0.8).head(200), str(tmp_path / "w.parquet"))
    manifest = {"models": [], "warnings": ["nothing beside m.keras says which images it learned from"]}
    (tmp_path / "w.parquet.manifest.json").write_text(json.dumps(manifest))
    assert run(tmp_path, tmp_path / "w.parquet")["w"]["n"] == 200
    page = (tmp_path / "out" / "report.html").read_text()
    assert "nothing beside m.keras says" in page


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """The case that users met: 2 images of the test fold, all right, and 55 new ones; some that the model knows."""
    parts = [made(0, 1.0).head(2), made(1, 0.4, "new")[2:57], made(2, 1.0, "training")[57:60]]
    predictions.write(pd.concat(parts, ignore_index=True), str(tmp_path / "p.parquet"))
    return tmp_path / "p.parquet"


def test_test_and_new_images_are_two_results_the_larger_first_and_two_images_are_loud(mixed: Path, tmp_path: Path):
    options = Options(predictions=[str(mixed)], out=str(tmp_path / "out"))
    found = evaluating.run(options)
    assert [(row.name, row.images) for row in found.rows if row.kind == "model"] == [
        ("p, images new to it", 55),
        ("p, its test images", 2),
    ]
    loud = "FEWER THAN 30 IMAGES: these figures say next to nothing: p, its test images (2)"
    assert found.disclaimers == (loud,)
    for name in ("report.html", "model_card.md", "summary.json"):
        assert loud in (tmp_path / "out" / name).read_text()
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {name: one["n"] for name, one in numbers.items()} == {"p, images new to it": 55, "p, its test images": 2}


@pytest.mark.parametrize(("split", "count"), [("test", 2), ("new", 55), ("all", 57)])
def test_one_split_or_both_as_one_can_be_asked_for(mixed: Path, tmp_path: Path, split: str, count: int, capsys):
    assert {name: one["n"] for name, one in run(tmp_path, mixed, split=split).items()} == {"p": count}
    assert ("55 labelled images are not reported" in capsys.readouterr().out) == (split == "test")


def test_a_split_that_is_not_there_is_refused(table: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--split new: no labelled image of a is of it; labelled are 280 test"):
        run(tmp_path, table, split="new")
    with pytest.raises(UserError, match="--split tests: choose test, new, all"):
        run(tmp_path, table, split="tests")


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "h.parquet").write_bytes(b"x")
    (tmp_path / "h.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("h.parquet", "h.csv", "nowhere.parquet"):
        with pytest.raises(UserError, match=r"not a Parquet file|it is no text in UTF-8|no such file or folder"):
            run(tmp_path, tmp_path / name)
    assert PROBABILITIES[0] == "p_akiec"


def test_the_job_is_one_line_and_two_for_a_mistake(table: Path, tmp_path: Path):
    job = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "--out", str(tmp_path / "out"), "--predictions"]
    predictions.write(made(1, 0.5), str(tmp_path / "b.parquet"))
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}  # tables, lines and all
    good = subprocess.run(
        [*job, str(table), str(tmp_path / "b.parquet")], capture_output=True, encoding="ascii", env=ascii_only
    )
    assert good.returncode == 0 and "report: " in good.stdout and not good.stderr
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())) == {"a", "b"}
    bad = subprocess.run([*job, "/nowhere.parquet"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1
    assert bad.stderr.startswith("error: --predictions /nowhere.parquet: no such file or folder; give a table")
