"""Losses with memory on eight devices are those on one, with their statistics in as few collectives as can be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measured():
    command = [sys.executable, "-m", "tests.losses.eight_devices"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("divisor", ["rows", "fixed"])
def test_eight_devices_are_one(measured, divisor):
    found = {key: ways for key, ways in measured.items() if key.endswith(divisor)}
    assert len(found) == 4
    for key, ways in found.items():
        for way, result in ways.items():
            assert result["error"] < 3e-6, (key, way)


@pytest.mark.parametrize("name", ["eqlv2", "seesaw", "ecm_counting", "efl"])
def test_two_collectives_where_rows_are_counted(measured, name):
    """The number of rows, which the gradients are divided by, has to be known before them."""
    for way, result in measured[f"{name}/rows"].items():
        assert result["collectives"] == ["all-reduce"] * 2, way


@pytest.mark.parametrize(("name", "number"), [("eqlv2", 1), ("efl", 1), ("ecm", 1), ("seesaw", 2)])
def test_one_with_the_gradients_under_a_fixed_divisor(measured, name, number):
    """Seesaw uses this batch's counts in its own loss, so that these come first."""
    for way, result in measured[f"{name}/fixed"].items():
        assert result["collectives"] == ["all-reduce"] * number, way
