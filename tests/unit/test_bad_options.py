"""Bad options of every job: one line with option, value and remedy, exit 2, before Ray and TensorFlow are imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample

pytestmark = pytest.mark.job
ROOT = Path(__file__).parents[2]
LONG = "x" * 300
# Runs one job with each list of arguments in turn, as its working process does. Ray, TensorFlow and ingest cannot be
# imported: a job whose options are accepted ends there (evaluate goes on).
DRIVER = """
import contextlib, importlib.util, io, json, sys, time, traceback
import typer

path, cases = sys.argv[1], json.loads(sys.stdin.read())
sys.modules.update(dict.fromkeys(("ray", "tensorflow", "keras", "ham_ray.data.ingest")))
spec = importlib.util.spec_from_file_location("job", path)
for arguments in cases:
    started, code, line = time.process_time(), 0, ""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        job = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(job)
        from ham_ray import errors
        app = typer.Typer(add_completion=False)
        app.command()(job.JOB.function)
        try:
            app(args=arguments, standalone_mode=False)
        except Exception as error:
            expected = isinstance(errors.cause(error), (errors.UserError, OSError))
            code, line = (2, f"error: {errors.in_words(error)}") if expected else (1, traceback.format_exc())
    print(json.dumps([code, line, time.process_time() - started]), flush=True)
"""
ACCEPTED = re.compile(r"import of (ray|tensorflow|keras|ham_ray\.data\.ingest) halted|BadParameter")
# Of any option. A number beyond a float's, a snowman, two lines, bytes that are no text, folders, devices, addresses.
ABSURD = [
    "",
    " ",
    "0",
    "-1",
    "nan",
    "inf",
    "1e308",
    "9" * 30,
    "\u2603",
    "a\nb",
    "\udcff",
    "..",
    "/dev/null",
    "/dev/zero",
]
ABSURD += ["~", "~nobody-of-that-name", "file://", "http://x/y", "{empty}", "{text}", "x" * 5000]
SHARED = [  # of jobs that train: options, and what the line must say
    ("--data nothere", "--data nothere: no such file or folder; give HAM10000's archive"),
    ("--data {empty}", "is empty: no image in it"),
    ("--data {text}", "text.csv"),
    ("--data s3://", "--data s3://"),
    ("--data foo://x/y", "cannot open 'foo://x/y"),
    ("--data ~nobody-of-that-name/x", "cannot open '~nobody-of-that-name/x'"),
    ("--epochs 0", "--epochs 0: at least 1"),
    ("--epochs 99999999", "--epochs 99999999: at most 1,000,000"),
    ("--precision bf16", "--precision bf16: choose auto, float32 or bfloat16"),
    ("--weights nothere.h5", "--weights nothere.h5: no such file or folder; give imagenet, none, or the path"),
    ("--weights {empty}", "empty: no .h5 file in it begins with resnet50; add --weights resnet50=FILE"),
    ("--weights simple_cn=none", "unknown architecture 'simple_cn'; known: convnext_tiny, dinov2_base"),
    ("--weights none --weights imagenet", "none and imagenet: whose are they? write --weights resnet50="),
    ("--weights {text}", "not a .h5 file"),
    ("--weights {words}", "words.h5: named .h5, but no HDF5 file"),
    ("--name a/b", "--name a/b: it holds /"),
    ("--name ..", "--name ..: it starts with a dot"),
    ("--name=", "--name '': it is empty"),
    ("--name a\\tb", "--name 'a\\tb': it holds control characters"),
    ("--name a\\udcff", "--name 'a\\udcff': it holds control characters, or bytes that are no text"),
    (f"--name {LONG}", "it is longer than 100 bytes"),
    ("--name activations", "--name activations: a folder of that name holds what all runs share"),
    ("--out {text}", "cannot be written: a file is in the way"),
    ("--out {text}/runs", "cannot be written: a file is in the way"),
    ("--out /proc/nothere/runs", "--out /proc/nothere/runs cannot be written: "),
    ("--out=", "--out: an empty path"),
    (f"--out {LONG}", "cannot be written: File name too long"),
    ("--size 3", "--size 3: at least 16"),
    ("--size -1", "--size -1: at least 16"),
    ("--size 99999", "--size 99999: at most 1,024"),
    ("--shard-memory nan", "--shard-memory nan: a number from 0"),
    ("--shard-memory -1", "--shard-memory -1: a number from 0"),
    ("--activations inf", "--activations inf: a number from 0"),
    ("--cpus-per-worker 0", "--cpus-per-worker 0: a number from 0.1"),
    ("--cpus-per-worker nan", "--cpus-per-worker nan: a number from 0.1"),
]
JOBS = {
    "baseline": (
        [],
        [
            *SHARED,
            ("--families efficientnet", "unknown family 'efficientnet'; did you mean efficientnet_b0_frozen"),
            ("--families simple_cnm", "did you mean simple_cnn?"),
            ("--families=", "--families: name at least one"),
            ("--workers 0", "--workers 0: from 1 to 1000, or the fewest and the most, as in 1-4"),
            ("--workers 4-2", "--workers 4-2: from 1 to 1000"),
            ("--workers 1-4 --cross-validate", "--workers 1-4 with --cross-validate"),
            ("--data {table} --workers 7-9 --set batch_size=60", "does not divide over 9 workers"),
            ("--data {table} --workers 7", "batch_size 64 does not divide over 7 workers; for example 63 does"),
            ("--data {table} --set batch_size=9999", "batch_size 9999 is more than the"),
            ("--workers 1000000000", "--workers 1000000000: from 1 to 1000"),
            ("--set nope=1", "--set: unknown recipe field 'nope'"),
            ("--set dropout", "--set 'dropout': write it as field=value"),
            ("--set dropout=2", "--set: dropout: Input should be less than 1, got '2'"),
            ("--set learning_rate=nan", "learning_rate"),
            ("--set learning_rate=inf", "learning_rate"),
            ("--set batch_size=1e99", "batch_size"),
            ("--set seed=", "seed"),
            ("--set precision=bf16", "precision: Input should be 'float32' or 'bfloat16', got 'bf16'"),
            ("--set seed=1 --set seed=2", "--set seed: given as 1 and as 2; leave one of them out"),
            ("--set test_fold=1", "test_fold and validation_fold are both 1: choosing on the test fold"),
            (
                "--set unfreeze_depth=2",
                "resnet50_frozen: unfreeze_depth=2 of resnet50_frozen; unfrozen is resnet50_finetuned; it goes to "
                "every family, of these it fits --families simple_cnn,resnet50_finetuned",
            ),
        ],
    ),
    "tune_resnet": (
        [],
        [
            *SHARED,
            ("--space nothere.yaml", "cannot read the space nothere.yaml: No such file"),
            ("--space {empty}", "cannot read the space"),
            ("--space {text}", "text.csv:1: expected names and values"),
            ("--trials 0", "--trials 0: at least 1"),
            ("--data {table} --workers-per-trial 7", "does not divide over 7 workers"),
            ("--max-concurrent 1000000000", "--max-concurrent 1000000000: at most 1,000"),
            ("--workers-per-trial -3", "--workers-per-trial -3: at least 1"),
            ("--max-failures -1", "--max-failures -1: at least 0"),
            ("--finalists -1", "--finalists -1: at least 0; 0 trains none again"),
            ("--seeds 0", "--seeds 0: at least 1; without finals: --finalists 0"),
            ("--seeds 1000000", "--seeds 1000000: at most 1,000"),
            ("--ensemble 9", "--ensemble 9: more trials than --finalists 3 trains again"),
            ("--views 9", "--views 9: from 1"),
            ("--finals-data nothere", "--finals-data nothere: no such file or folder; give an IMAGES folder"),
            ("--finals-data {empty}", "is not a finished IMAGES table"),
            ("--storage nonsense", "--storage nonsense: no database URL"),
            (
                "--storage nosql://user:secret@x/y",
                "--storage nosql://user:…@x/y: no database URL that can be used here",
            ),
            ("--storage postgresql+none://x/y", "--storage postgresql+none://x/y: no database URL"),
            ("--out s3://bucket/runs", "a study needs a database; give --storage postgresql"),
        ],
    ),
    "tune": (
        [],
        [
            ("", "--space: name a YAML file, such as one of "),
            ("--smoke --ensemble 2", "--ensemble 2: more trials than --finalists 1 trains again"),
        ],
    ),
    "predict": (
        ["--model", "{empty}", "--images", "{pictures}", "--out", "{folder}/p.parquet"],
        [
            ("--model nothere", "--model nothere: no such file or folder; give a run folder"),
            ("--model=", "--model: an empty path"),
            ("", "no model there: neither a .keras file, nor a run folder"),
            ("--model {torn}", "is no Keras 3 file"),
            ("--images nothere", "--images nothere: no such file or folder"),
            ("--format json", "--format json: choose parquet, csv or isic"),
            ("--batch-size 0", "--batch-size 0: at least 1"),
            ("--batch-size 99999999", "--batch-size 99999999: at most 65,536"),
            ("--precision bf16", "--precision bf16: choose auto, float32 or bfloat16"),
            ("--geometry round", "--geometry round: choose crop or squash"),
            ("--geometry=", "--geometry '': choose crop or squash"),
            ("--out {empty}", "is a folder; give a file"),
            ("--out {text}/p.parquet", "cannot be written: a file is in the way"),
            ("--out /proc/nothere/p.parquet", "cannot be written: "),
            ("--out=", "--out"),
            (f"--out {LONG}/p.parquet", "cannot be written: File name too long"),
            (f"--out {LONG}", "cannot be written: File name too long"),
        ],
    ),
    "evaluate": (
        ["--predictions", "{text}", "--out", "{folder}/report"],
        [
            ("--predictions nothere.csv", "--predictions nothere.csv: no such file or folder; give a table"),
            ("--predictions {empty}", "a folder; give a table"),
            ("--truth nothere.csv", "--truth nothere.csv: no such file or folder; give an archive"),
            ("--images nothere", "--images nothere: no such file or folder"),
            ("--out {text}", "cannot be written: a file is in the way"),
            ("--out=", "--out: an empty path"),
        ],
    ),
    "export": (
        ["--model", "{empty}", "--to", "keras", "--out", "{folder}/m.keras"],
        [
            ("--to torch", "--to torch: choose keras, savedmodel, tflite or onnx"),
            ("--model nothere", "--model nothere: no such file or folder; give a run folder"),
            ("", "no model there: neither a .keras file, nor a run folder"),
            ("--model {torn}", "is no Keras 3 file"),
            ("--out {empty}", "exists already"),
            ("--out {text}/m.keras", "cannot be written: a file is in the way"),
            ("--out s3://bucket/m.keras", "--out s3://bucket/m.keras: an address; give a local path"),
            ("--images nothere", "--images nothere: no such file or folder"),
        ],
    ),
    "ingest": (
        ["{archive}", "--out", "{folder}/images"],
        [
            ("--size 3", "--size 3: at least 16"),
            ("--geometry round", "--geometry round: choose crop or squash"),
            ("--layout mnist", "--layout mnist: choose kaggle, dataverse"),
            ("--max-quarantined 2", "--max-quarantined 2: a number from 0 to 1"),
            ("--max-quarantined nan", "--max-quarantined nan: a number from 0 to 1"),
            ("--out {text}/images", "cannot be written: a file is in the way"),
            ("--out=", "--out: an empty path"),
        ],
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths that options name, in braces."""
    folder = tmp_path_factory.mktemp("options")
    names = {"empty": folder / "empty", "pictures": folder / "pictures", "folder": folder / "out"}
    for path in names.values():
        path.mkdir()
    (folder / "text.csv").write_text("words, no table\n")
    (folder / "words.h5").write_text("words, no weights")
    (folder / "torn.keras").write_bytes(b"PK\x03\x04 torn")
    (names["pictures"] / "a.jpg").write_bytes(b"no picture")
    write_sample(folder / "sample.zip", size=(40, 30))
    ingest(folder / "sample.zip", folder / "table", size=32)
    files = {"table": "table", "text": "text.csv", "torn": "torn.keras", "words": "words.h5", "archive": "sample.zip"}
    return {**names, **{name: folder / file for name, file in files.items()}}


def replaced(arguments: list[str], options: str, places: dict[str, Path]) -> list[str]:
    """The job's good arguments with these options instead of their own."""
    more = [word.replace("\\t", "\t").replace("\\udcff", "\udcff") for word in options.split(" ") if word]
    given = more[0].split("=")[0] if more else None
    kept = list(arguments)
    if given in kept:
        del kept[kept.index(given) : kept.index(given) + 2]
    return [word.format(**places) for word in [*kept, *more]]


def outcomes(job: str, lists: list[list[str]], folder: Path) -> list[tuple[int, str, float]]:
    """Exit code, what is said on standard error and the seconds of computing of each list of arguments."""
    process = subprocess.run(
        [sys.executable, "-c", DRIVER, str(ROOT / "jobs" / f"{job}.py")],
        input=json.dumps(lists),
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
    )
    found = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(found) == len(lists), (lists[len(found)], process.stderr)
    return found


@pytest.mark.parametrize("job", JOBS)
def test_a_bad_option_is_one_line_before_ray_and_tensorflow_start(job: str, places: dict[str, Path], tmp_path: Path):
    arguments, cases = JOBS[job]
    found = outcomes(job, [replaced(arguments, options, places) for options, _ in cases], tmp_path)
    wrong = []
    for (options, message), (code, errors, seconds) in zip(cases, found, strict=True):
        one_line = errors.startswith("error: ") and "\n" not in errors and message in errors
        if code != 2 or not one_line or seconds > 20 or len(errors) > 600:
            wrong.append((options, message, code, errors[-600:], round(seconds, 1)))
    assert not wrong, "\n".join(map(str, wrong))
    assert list(tmp_path.iterdir()) == [] and list(places["folder"].iterdir()) == []


def options_of(job: str) -> list[str]:
    """The options of a job that take a value."""
    words = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"},
    ).stdout
    return re.findall(r"(--[a-z-]+)\s+(?:TEXT|INTEGER|FLOAT|<str>|<int>|<float>)", words)


@pytest.mark.parametrize("job", JOBS)
def test_no_value_of_any_option_ends_in_a_traceback(job: str, places: dict[str, Path], tmp_path: Path):
    arguments, _ = JOBS[job]
    names = options_of(job)
    assert len(names) >= 3
    cases = [(name, text.format(**places) if "{" in text else text) for name in names for text in ABSURD]
    lists = []
    for name, text in cases:
        kept = [word.format(**places) for word in arguments]
        if name in kept:
            del kept[kept.index(name) : kept.index(name) + 2]
        lists.append([*kept, f"{name}={text}"])
    wrong = []
    for case, (code, errors, seconds) in zip(cases, outcomes(job, lists, tmp_path), strict=True):
        refused = code == 2 and errors.startswith("error: ") and "\n" not in errors and len(errors) < 700
        accepted = code == 0 or bool(ACCEPTED.search(errors))
        if not (refused or accepted) or seconds > 20:
            wrong.append((case[0], case[1][:50], code, errors[-400:], round(seconds, 1)))
    assert not wrong, "\n".join(map(str, wrong))
