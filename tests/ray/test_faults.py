"""The campaign of benchmarks/faults.py notices what it is for: small jobs that go on well after a kill, or do not."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import faults

pytestmark = [pytest.mark.ray, pytest.mark.long]

# Ten epochs of 0.1 s with a checkpoint each; the result is the list of them.
JOB = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[1])
folder, kind = out / "run" / "checkpoints", "KIND"
folder.mkdir(parents=True, exist_ok=True)
done = sorted(int(path.stem[6:]) for path in folder.glob("epoch-*.npz"))
if kind == "hangs" and done:
    time.sleep(1000)
if kind == "fails" and done:
    sys.exit("error: no")
last = max(done, default=0) if kind != "forgets" else 0
for epoch in range(last + 1, 11):
    time.sleep(0.1)
    (folder / "aside").write_text(str(epoch))
    (folder / "aside").rename(folder / f"epoch-{epoch:05d}.npz")
    print("epoch", epoch, flush=True)
import pandas as pd
rows = range(last + 1 if kind == "loses" else 1, 11)
pd.DataFrame({"epoch": rows, "seconds": time.time()}).to_parquet(out / "rows.parquet")
"""


@pytest.fixture
def ground(make_hosts) -> faults.Ground:
    alone = make_hosts(cpus=(1,), ray=False)
    return faults.Ground(alone[0], alone)


def outcome(ground: faults.Ground, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> faults.Outcome:
    """An experiment with a job of this kind, whose driver is killed between its epochs."""
    job = faults.Job(
        lambda inputs, out: ["-c", JOB.replace("KIND", kind), str(out)],
        {"training": "epoch 2", "end": "epoch 8"},
        lambda out: {"rows": pd.read_parquet(out / "rows.parquet").drop(columns=faults.TIMINGS, errors="ignore")},
    )
    monkeypatch.setitem(faults.JOBS, "job", job)
    expected = faults.Reference(
        {"rows": pd.DataFrame({"epoch": range(1, 11)})}, {"rows.parquet"}, {"training": 0.5, "end": 0.1}
    )
    found = faults.Outcome(0, "job", "driver", "alone", folder / f"{kind}-1")
    found.folder.mkdir()
    faults.experiment(ground, found, folder, expected, deadline=8 if kind == "hangs" else 60)
    assert found.kills and found.starts == len(found.kills) + 1 - (kind in ("fails", "hangs")) * (len(found.kills) - 1)
    return found


def test_a_job_that_goes_on_is_fine(ground, tmp_path, monkeypatch):
    found = outcome(ground, tmp_path, "good", monkeypatch)
    assert found.failure == "" and found.repeated == 0, found


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        ("forgets", "epochs trained twice"),
        ("loses", "rows: DataFrame are different"),
        ("hangs", "start 2 did not end"),
        ("fails", "start 2 ended with 1 though nothing was killed in it; its last line: error: no"),
    ],
)
def test_what_goes_wrong_is_named(ground, tmp_path, monkeypatch, kind, failure):
    assert failure in outcome(ground, tmp_path, kind, monkeypatch).failure


def test_files_that_an_uninterrupted_job_does_not_leave_are_counted(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "MOST_KILLS", 1)
    left = outcome(ground, tmp_path, "good", monkeypatch).left
    assert "run/checkpoints/epoch-00010.npz" in left and "rows.parquet" not in left


def test_the_reference_is_timed_by_phase(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "MOST_KILLS", 1)
    outcome(ground, tmp_path, "good", monkeypatch)
    found = faults.reference(ground, "job", tmp_path, tmp_path / "reference", 20)
    assert found.tables["rows"]["epoch"].tolist() == [*range(1, 11)]
    assert [*found.phases] == ["start", "training", "end"] and found.phases["training"] > 0.5
    faults.JOBS["job"].phases["never"] = "such a line"
    with pytest.raises(RuntimeError, match="no line of .*start-1.log begins never"):
        faults.reference(ground, "job", tmp_path, tmp_path / "again", 20)


def test_the_same_seed_draws_the_same_experiments(tmp_path):
    def drawn(folder: Path, seed: int) -> list[tuple[str, str, str]]:
        folder.mkdir()
        chosen = ([*faults.JOBS], [*faults.FAULTS], [*faults.TOPOLOGIES])
        outcomes = [faults._drawn(number, seed, *chosen, folder) for number in range(30)]
        return [(o.job, o.fault, o.topology) for o in outcomes]

    first = drawn(tmp_path / "a", 5)
    assert drawn(tmp_path / "b", 5) == first != drawn(tmp_path / "c", 6)
    assert len({*first}) == 30 and {fault for _, fault, _ in first} == {*faults.FAULTS}
    assert all(topology == "cluster" for _, fault, topology in first if fault == "node")


def test_the_table_counts_by_job_topology_and_fault(tmp_path):
    one = faults.Outcome(0, "search", "driver", "alone", tmp_path, kills=["a", "b"], repeated=1)
    two = faults.Outcome(1, "search", "driver", "alone", tmp_path, kills=["c"], lost="rows", left=["x"])
    three = faults.Outcome(2, "predict", "node", "cluster", tmp_path, kills=["d"], hung="start 1", tracebacks=2)
    lines = [line.split() for line in faults.table([one, two, three])]
    assert lines[1:] == [
        ["predict", "cluster", "node", "1", "1", "0", "0", "1", "2", "0"],
        ["search", "alone", "driver", "2", "3", "1", "1", "0", "0", "1"],
        ["all", "3", "4", "1", "1", "1", "2", "1"],
    ]
    assert not one.failure and two.failure and three.failure
