"""docs/losses.md lists every loss with its options, defaults and columns as they are, and its examples run."""

import ast
import doctest
import re
from pathlib import Path

import numpy as np
import pytest

from eql_jax.class_losses import REGISTRY, ClassFrequencies, make_class_loss, option_defaults

DOC = Path(__file__).parents[2] / "docs" / "losses.md"
K = 50
FREQUENCIES = ClassFrequencies(K, image_counts=np.arange(1, K + 1), instance_counts=np.arange(1, K + 1))


def rows(heading):
    """The cells of the table under the line that begins with `heading`."""
    lines = DOC.read_text().split(heading, 1)[1].splitlines()[2:]
    table = []
    for line in lines:
        if not line.startswith("|"):
            return table
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return table


LOSSES = {row[0].strip("`"): row for row in rows("| name | options and their defaults")}


def test_every_loss_is_in_both_tables():
    assert sorted(LOSSES) == sorted(REGISTRY)
    checked = [name for row in rows("| name | checked against") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(checked) == sorted(REGISTRY)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_options_columns_and_memory(name):
    _, options, columns, _, memory = LOSSES[name]
    listed = {key: ast.literal_eval(value) for key, value in re.findall(r"`(\w+)=([^`]+)`", options)}
    assert listed == option_defaults(REGISTRY[name])
    loss = make_class_loss(name, FREQUENCIES)
    assert loss.num_logits == K + int(columns.removeprefix("K").replace("+", "") or 0)
    assert bool(loss.init_state()) == (memory != "-" and "else none" not in memory)


def test_what_is_said_of_mixed_sets_and_padding():
    text = " ".join(DOC.read_text().split())
    assert [name for name, kind in REGISTRY.items() if not kind.takes_annotated] == ["group_softmax"]
    assert "every loss but `group_softmax` leaves those classes out" in text
    assert {name for name, kind in REGISTRY.items() if kind.takes_padding} == {"sigmoid", "eql", "focal", "efl"}


def test_the_examples_run():
    found = doctest.testfile(str(DOC), module_relative=False)
    assert found.attempted > 10 and found.failed == 0
