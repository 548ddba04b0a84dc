"""The list of mutants is of the code as it is: each can be made, and its test exists."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]


def test_every_mutant_can_be_made_and_docs_list_them(capsys: pytest.CaptureFixture[str]):
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
    assert spec and spec.loader
    mutants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutants)
    assert [reason for one in mutants.MUTANTS if (reason := mutants._stale(one))] == []
    mutants.main(table=True)
    assert capsys.readouterr().out in (ROOT / "docs" / "testing.md").read_text()
