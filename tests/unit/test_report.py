"""The closing table in its three forms, the figures, and the page: all is there, and nothing is fetched."""

import base64
import dataclasses
import io
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
import yaml
from ham10000 import CLASSES, CODES, DIAGNOSES, LABELS
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score

from ham_ray.data.datasets.ham10000 import DATASET
from ham_ray.evaluation import metrics
from ham_ray.evaluation.exact import Interval
from ham_ray.evaluation.intervals import paired_difference
from ham_ray.evaluation.predictions import arrays, of_split, predictions
from ham_ray.report import figures, model_card, paired, report, summary
from ham_ray.report.summary import RANDOM_WEIGHTS, Run

pytestmark = pytest.mark.unit

SVG = "{http://www.w3.org/2000/svg}"


def rows(split_size, fold, prefix):
    label = np.arange(split_size, dtype=np.int32) % 7
    ids = [f"{prefix}{place}" for place in range(split_size)]
    dx = [CODES[each] for each in label]
    return pd.DataFrame({"image_id": ids, "lesion_id": ids, "group_id": ids, "label": label, "dx": dx, "fold": fold})


SPLITS = {"training": rows(70, 2, "r"), "validation": rows(35, 1, "v"), "test": rows(350, 0, "t")}


def predicted(right, fallback="nv"):
    """Predictions of both splits with the first `right` of each ten images right, the others `fallback`."""
    parts = []
    for split in ("validation", "test"):
        label = SPLITS[split]["label"].to_numpy()
        called = np.where(np.arange(len(label)) % 10 < right, label, LABELS[fallback])
        parts.append(predictions(SPLITS[split], split, np.eye(7)[called], CLASSES))
    return pd.concat(parts, ignore_index=True)


def history(epochs=4, best=3, head=2):
    epoch = np.arange(1, epochs + 1)
    frame = pd.DataFrame({"epoch": epoch, "phase": np.where(epoch <= head, "head", "fine-tune"), "best": epoch == best})
    for column in ("train_loss", "validation_loss", "validation_accuracy", "learning_rate"):
        frame[column] = 1 / epoch
    return frame.assign(validation_macro_f1=0.5, validation_balanced_accuracy=0.6, seconds=1.0, images_per_second=9.0)


@pytest.fixture(scope="module")
def runs():
    warning = "pooled features hardly differ [relative spread 0.037]"
    return {
        "simple_cnn": Run(predicted(8), history(), {"weights": "trained from scratch", "minutes": 2.5}),
        "resnet50_frozen": Run(predicted(0), history(), {"weights": RANDOM_WEIGHTS, "warnings": [warning]}),
        "resnet50_finetuned": Run(None, None, {"weights": "imagenet", "warnings": ["stopped: the loss is nan"]}),
    }


@pytest.fixture(scope="module")
def trivial():
    return {"always_nv": predicted(0), "thumbnail_logistic": predicted(3)}


@pytest.fixture(scope="module")
def table(runs, trivial):
    return summary.summarise(runs, trivial, "HAM10000", references=DATASET)


def text_of(found):
    console = Console(width=100, file=io.StringIO())
    summary.show(found, console)
    return console.file.getvalue()


def test_rows_and_their_order(table):
    assert [row.kind for row in table.rows] == ["model"] * 3 + ["trivial"] * 2 + ["reference"] * 3
    cnn = table.rows[0]
    assert cnn.split == "fold 0, 350 images, lesion-grouped"
    assert (cnn.epochs, cnn.best_epoch, cnn.minutes) == (4, 3, 2.5)
    assert cnn.metrics["accuracy"].low < cnn.metrics["accuracy"].value < cnn.metrics["accuracy"].high
    assert table.rows[-1].metrics["macro_f1"] == Interval(0.29)


def test_own_and_given_warnings_are_both_there(table):
    frozen = table.rows[1]
    assert frozen.warnings[:2] == (
        "pooled features hardly differ [relative spread 0.037]",
        "predicts 100 % of these images as nv (melanocytic nevus); 14 % are",
    )
    assert table.rows[0].warnings == ()


def test_a_model_that_a_trivial_baseline_equals_is_marked_wherever_it_is_shown(table, html):
    (said,) = (text for text in table.rows[1].warnings if text.startswith("not better"))
    assert said.startswith("not better, beyond chance, than always_nv: balanced accuracy +0.000 (+0.000 to +0.000)")
    assert "; than thumbnail_logistic: balanced accuracy -0.2" in said
    assert said in html and said.split(";")[0] in " ".join(text_of(table).split())


def test_a_floor_is_not_marked(table):
    assert all(row.warnings == () for row in table.rows if row.kind == "trivial")


def test_a_family_without_a_model_keeps_its_row(table):
    assert (table.rows[2].split, table.rows[2].metrics) == ("no model", {})
    assert summary.model_row("x", Run(None, None, {}), {}).warnings == ("no model was trained",)


def test_synthetic_data_is_labelled_and_has_no_references(runs, trivial, table):
    found = summary.summarise(runs, trivial, "sample", synthetic=True)
    assert {row.kind for row in found.rows} == {"model", "trivial"}
    assert "SYNTHETIC DATA" in text_of(found)
    assert "SYNTHETIC" not in text_of(table)


def test_random_weights_are_labelled(table):
    assert table.disclaimers == ("RANDOM WEIGHTS, nothing pretrained: resnet50_frozen",)
    assert "RANDOM WEIGHTS" in text_of(table)


@pytest.mark.parametrize(("folds", "text"), [([0], "fold 0, 2"), ([0, 3], "folds 0, 3, 2"), ([-1], "2 test")])
def test_split_text(folds, text):
    assert summary.split_text(pd.DataFrame({"fold": np.resize(folds, 2), "split": "test"})).startswith(text + " images")


def test_terminal_table_holds_all_in_100_columns(table):
    text = text_of(table)
    assert max(len(line) for line in text.splitlines()) <= 100
    for expected in (
        *(row.name.split(",")[0] for row in table.rows),
        "fold 0, 350 images",
        "imagenet",
        ".800",
        "2.5 min",
    ):
        assert expected in text
    assert "! 1 pooled features hardly differ [relative spread 0.037]" in text
    assert "resnet50_frozen (trivial)" not in text
    assert "resnet50_frozen ! 1 ! 2" in text
    assert "…" not in text


def test_rows_on_other_splits_say_so(table, trivial):
    other = summary.trivial_row("always_nv", trivial["always_nv"].assign(fold=3))
    mixed = summary.Summary("HAM10000", False, (table.rows[0], other))
    assert mixed.common_split is None
    assert "fold 3, 350 images" in text_of(mixed)


def test_csv_and_json(table, tmp_path):
    summary.write(table, str(tmp_path))
    frame = pd.read_csv(tmp_path / "summary.csv").set_index("name")
    assert frame.loc["simple_cnn", "accuracy"] == table.rows[0].metrics["accuracy"].value
    assert frame.loc["simple_cnn", "macro_f1_low"] == table.rows[0].metrics["macro_f1"].low
    assert frame.loc["original: simple CNN", "macro_f1"] == 0.30
    assert frame["split"].notna().all()
    content = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert content["rows"][0]["metrics"]["accuracy"]["value"] == table.rows[0].metrics["accuracy"].value
    assert content["labels"] == list(table.disclaimers)


def test_evaluation_of_a_run(runs):
    found = summary.evaluation(runs["simple_cnn"])
    assert (found["validation"]["n"], found["test"]["n"]) == (35, 350)
    assert found["test"]["intervals"]["accuracy"]["value"] == found["test"]["accuracy"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "text"), [(0.4824, ".482"), (1.0, "1.000"), (0.0, ".000"), (10.05, "10.050"), (None, "–")]
)
def test_numbers(value, text):
    assert summary.number(value) == text


def test_confusion_matrix_figure_is_svg_and_png():
    counts = np.diag(np.arange(1, 8))
    assert ET.fromstring(figures.confusion_matrix(counts, CODES)).tag == f"{SVG}svg"
    assert Image.open(io.BytesIO(figures.confusion_matrix(counts, CODES, "png"))).width > 400
    assert figures.confusion_matrix(counts, CODES) == figures.confusion_matrix(counts, CODES)
    assert figures.confusion_matrix(counts, CODES) != figures.confusion_matrix(counts.T[::-1], CODES)


def test_confusion_matrix_figure_with_an_absent_class(recwarn):
    figures.confusion_matrix(np.zeros((7, 7), int), CODES)
    assert not recwarn.list


def test_the_area_below_the_drawn_precision_is_the_average_precision(monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "to_bytes", lambda figure, form: drawn.setdefault("axes", figure.axes) and b"")
    rng = np.random.default_rng(0)
    positive = rng.random(80) < 0.3
    score = np.round(rng.random(80) + positive * 0.3, 2)
    figures.class_curves(positive, score, "melanoma")
    (line,) = [line for line in drawn["axes"][1].lines if line.get_label() == "this model"]
    recall, precision = line.get_path().vertices.T
    heights = {"steps-pre": precision[1:], "steps-post": precision[:-1]}[line.get_drawstyle()]
    assert -(np.diff(recall) * heights).sum() == pytest.approx(average_precision_score(positive, score), abs=1e-9)


def test_learning_curves_mark_phase_and_best(monkeypatch):
    notes = []
    monkeypatch.setattr(figures, "_note", lambda axes, x, text: notes.append((x, text)))
    figures.learning_curves(history(epochs=6, best=5, head=2))
    assert notes == [(2.5, "fine-tune"), (5, "kept: 5")] * 3
    notes.clear()
    figures.learning_curves(history(epochs=1, best=0, head=1))
    assert notes == []


def render(table, runs, trivial):
    return report.render(
        report.ReportData(
            title="Baseline <run>",
            summary=table,
            runs=runs,
            trivial=trivial,
            facts={"command": "python jobs/baseline.py --data x", "commit": "abc1234", "date": "2026-11-24"},
            counts=report.class_counts(SPLITS, CLASSES),
            classes=CLASSES,
            fingerprint="f00d",
            licence="CC BY-NC 4.0",
            attribution="ViDIR Group",
            selection="the epoch, by macro-F1",
            differences=paired.differences(runs, trivial),
        )
    )


@pytest.fixture(scope="module")
def html(table, runs, trivial):
    return render(table, runs, trivial)


def test_page_holds_every_table_and_figure(html, table):
    for expected in (
        "Baseline &lt;run&gt;",
        "python jobs/baseline.py --data x",
        "abc1234",
        "f00d",
        "CC BY-NC 4.0",
        "ViDIR Group",
        "not a medical device",
        "RANDOM WEIGHTS",
        "stopped: the loss is nan",
        "predicts 100 % of these images as nv",
        "the epoch, by macro-F1",
        "not comparable",
        *(row.name for row in table.rows),
    ):
        assert expected in html, expected
    # the picture of intervals, and for each of the two families with a model its matrix, its curves of melanoma, its
    # reliability and its learning curves
    pictures = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', html)
    assert len(pictures) == html.count("<img") == len(re.findall(r'<img [^>]*alt="[^"]{20,}"', html)) == 9
    assert all(ET.fromstring(base64.b64decode(each)).tag == f"{SVG}svg" for each in pictures)
    # results, differences, data, facts; and for each of the two: classes, thresholds, calibration
    assert html.count("<table") == html.count("<caption>") == 4 + 2 * 3
    assert not re.search(r"<th(?! scope=)[ >]", html)
    assert all(f"<b>{diagnosis.dx}</b> {diagnosis.name}" in html for diagnosis in DIAGNOSES)


def test_page_fetches_nothing(html):
    assert "http" not in html
    assert not re.search(r"<(script|link|iframe|object)|@import|url\(", html)


def test_page_shows_the_figures_of_the_table(html, table, runs, trivial):
    accuracy = table.rows[0].metrics["accuracy"]
    cell = (
        f"{summary.number(accuracy.value)}<small>{summary.number(accuracy.low)}–{summary.number(accuracy.high)}</small>"
    )
    assert cell in html
    nll = metrics.nll(*arrays(of_split(runs["simple_cnn"].predictions, "test")))
    assert f"{nll:.3f}</td></tr>" in html
    tests = [of_split(frame, "test") for frame in (runs["resnet50_frozen"].predictions, trivial["thumbnail_logistic"])]
    worse = paired_difference(*tests, "macro_f1")
    assert f"−{-worse.value:.3f}".replace("0.", ".") in html


@pytest.mark.usefixtures("undrawn")
def test_page_of_synthetic_data(table, runs, trivial):
    own = tuple(row for row in table.rows if row.kind != "reference")
    bare = {name: dataclasses.replace(run, history=None) for name, run in runs.items()}
    html = render(summary.Summary("sample", True, own), bare, trivial)
    assert '<p class="label">SYNTHETIC DATA' in html
    assert "original" not in html.lower()


@pytest.mark.usefixtures("undrawn")
def test_page_without_floors(table, runs):
    assert "compared with" not in render(summary.Summary("HAM10000", False, table.rows[:1]), runs, {})


@pytest.mark.usefixtures("undrawn")
def test_a_trivial_baseline_on_other_images_is_not_paired(table, runs, trivial):
    """Families may differ in their test fold; trivial baselines have the first one's."""
    other = trivial["thumbnail_logistic"].assign(image_id=lambda frame: "x" + frame["image_id"])
    only = summary.Summary("HAM10000", False, table.rows[:1])
    assert "compared with" in render(only, runs, trivial)
    assert "compared with" not in render(only, runs, {"thumbnail_logistic": other})


def test_page_is_written_whole(table, runs, trivial, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "render", lambda data: "<p>×</p>")
    report.write(None, str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "<p>×</p>"


def test_class_counts():
    found = report.class_counts(
        {"training": pd.DataFrame({"dx": ["nv", "nv", "mel"], "group_id": ["a", "a", "b"]})}, CLASSES
    )
    assert found["training", "images"].loc[["nv", "mel", "df", "all"]].tolist() == [2, 1, 0, 3]
    assert found["training", "lesions"].loc[["nv", "mel", "df", "all"]].tolist() == [1, 1, 0, 2]


@pytest.mark.parametrize(
    ("probabilities", "said", "unsaid"),
    [
        ([0.4, 0.3, 0.2], "None has a probability of 90 % or more, the highest is .40", "no check of predictions"),
        ([0.95, 0.3], "1 has a probability of 90 % or more: no check of predictions with low confidence", "None has"),
        ([0.99, 0.95], "2 have a probability of 90 % or more", "None has"),
    ],
)
def test_what_is_said_of_errors_looks_at_their_probabilities(probabilities: list[float], said: str, unsaid: str):
    text = report.confidence(pd.DataFrame({"p": probabilities}))
    assert said in text and unsaid not in text


@pytest.mark.usefixtures("undrawn")
def test_the_unweighted_training_loss_is_drawn_and_old_runs_say_what_they_have(monkeypatch, runs, trivial, table):
    drawn = []
    monkeypatch.setattr(figures, "_lines", lambda axes, history, names, title: drawn.append([*names]))
    old, new = history(), history().assign(train_loss_unweighted=1.0)
    figures.learning_curves(old)
    figures.learning_curves(new)
    assert drawn[0] == ["train_loss", "validation_loss"] and drawn[3] == ["train_loss_unweighted", "validation_loss"]
    only = summary.Summary("HAM10000", False, table.rows[:1])
    pages = [render(only, {"simple_cnn": dataclasses.replace(runs["simple_cnn"], history=h)}, {}) for h in (old, new)]
    assert "their heights cannot be compared" in pages[0] and "without class weights or label" in pages[1]


def test_the_p_stands_beside_accuracy_and_names_it(html):
    table = html[html.index("compared with</th>") :]
    headings = re.findall(r">([^<>]+)</th>", table[: table.index("</thead>")])
    assert headings[-5:] == ["balanced accuracy", "macro‑F1", "accuracy", "images only one gets right", "accuracy: p"]


HOSTILE = "a|b <img src=x> `c` *d* [e](f)\n# g & _h_ i_j"


def test_text_from_data_cannot_change_the_model_card(runs):
    frame = predicted(8).assign(sex=HOSTILE)
    hostile = {HOSTILE: Run(frame, None, {"weights": "w", "warnings": [HOSTILE]})}
    found = summary.summarise(hostile, {}, HOSTILE)
    card = model_card.render(
        report.ReportData(
            title=HOSTILE,
            summary=found,
            runs=hostile,
            trivial={},
            facts={"command": "python `x` y", "note": HOSTILE},
            counts=report.class_counts(SPLITS, CLASSES),
            classes=CLASSES,
            fingerprint="f00d",
            licence="that of the images; HAM10000's is CC BY-NC 4.0",
            attribution="ViDIR Group",
            selection="thresholds",
            differences=[],
        )
    )
    escaped = r"a\|b \<img src=x\> \`c\` \*d\* \[e\](f) # g \& \_h\_ i_j"
    assert card.count(escaped) >= 6 and HOSTILE not in card and "\n# g" not in card
    assert "`` python `x` y ``" in card
    assert not [line for line in card.splitlines() if line != line.rstrip()]
    rows = [line for line in card.splitlines() if line.startswith("| ") and "sex" in line]
    assert {line.count("|") - line.count("\\|") for line in rows} == {8}
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "other" and "keras" in head["tags"] and "f1" in head["metrics"]
    assert "melanocytic nevus" in card and "| nv | 10 |" in card and "ECE |" in card


@pytest.mark.usefixtures("undrawn")
def test_histology_is_spoken_of_where_there_is_some(runs, table):
    only = summary.Summary("HAM10000", False, table.rows[:1])
    pages = {
        way: render(only, {"simple_cnn": Run(predicted(8).assign(dx_type=way), None, {"weights": "w"})}, {})
        for way in ("histo", "synthetic")
    }
    assert "Histology was done" in pages["histo"] and "how the label was made" in pages["synthetic"]
    assert "Histology was done" not in pages["synthetic"]
