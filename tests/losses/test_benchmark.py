"""benchmarks/losses.py runs every loss, and EQL asks for no more memory than plain sigmoid cross-entropy."""

import json

from benchmarks import losses as benchmark
from eql_jax.class_losses import REGISTRY


def run(capsys, *words):
    benchmark.main(["--turns", "2", "--turn_seconds", "0", *words])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {row["loss"]: row for row in lines if "loss" in row}


def test_every_loss_runs(capsys):
    rows = run(capsys, "--rows", "64", "--classes", "40")
    assert set(rows) >= set(REGISTRY) | {"eql_smooth", "eql_verified", "eql_annotated"}
    for row in rows.values():
        assert row["logits"][0] == 64 and row["logits"][1] >= 40
        assert row["ms"] > 0 and row["seconds_ratio"] > 0 and row["temporary_ratio"] > 0


def test_eql_needs_no_array_of_weights(capsys):
    """Its temporary memory at 1203 classes is that of sigmoid cross-entropy, also with verified negatives."""
    rows = run(capsys, "--rows", "256", "--losses", "eql", "eql_verified")
    assert rows["eql"]["temporary_ratio"] < 1.02 and rows["eql_verified"]["temporary_ratio"] < 1.02, rows
