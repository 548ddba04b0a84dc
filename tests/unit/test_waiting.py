"""What a waiting job says: for what, since when, which nodes are gone, and when it is quiet."""

from __future__ import annotations

import re

import pytest

from ham_ray import waiting
from ham_ray.cluster import Node

pytestmark = pytest.mark.unit
A, B = Node("a", "10.0.0.1", 2.0, 0), Node("b", "10.0.0.2", 4.0, 0)
B_AGAIN = Node("b2", "10.0.0.2", 4.0, 0)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> waiting._Watch:
    monkeypatch.setattr(waiting, "EVERY", 0.0)
    return waiting._Watch("prediction", "one of 9 chunks")


def test_it_says_for_what_it_waits_and_since_when(watch, capsys):
    watch.look([A, B], 1.5)
    told = re.sub(r"\d\d:\d\d:\d\d", "TIME", capsys.readouterr().out)
    nodes = "2 node(s) with 6 CPUs are there, 1.5 CPUs free"
    assert told == f"prediction: waiting for one of 9 chunks since TIME (0 s); {nodes}\n"


def test_it_names_the_node_that_is_gone_until_it_is_back(watch, capsys):
    watch.look([A, B], 1)
    watch.heard()
    capsys.readouterr()
    watch.look([A], 0)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "prediction: node 10.0.0.2 is gone"
    assert "; node 10.0.0.2 is gone since " in told[1] and "1 node(s) with 2 CPUs" in told[1]
    watch.look([A], 0)
    assert "prediction: node 10.0.0.2 is gone\n" not in capsys.readouterr().out  # said once, then with each line
    watch.look([A, B_AGAIN], 0)
    assert "gone" not in capsys.readouterr().out


def test_it_is_quiet_while_work_goes_on(watch, capsys):
    watch.look([A, B], 1)
    watch.heard()
    capsys.readouterr()
    watch.look([A, B], 1)  # begun, and all nodes there: a line only after CALM seconds
    assert capsys.readouterr().out == ""
