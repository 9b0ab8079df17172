"""bf16.py: smoothed losses by hand, and which runs count as done. Training is not run here."""

import json

import numpy as np
import pytest

from benchmarks import bf16


def test_ratios_of_smoothed_losses():
    reference, losses = np.array([4.0, 2, 2, 4]), np.array([4.0, 4, 2, 2])
    assert bf16.smoothed(reference, 2) == pytest.approx([3, 2, 3])
    # 4, 3 and 2 over 3, 2 and 3.
    assert bf16.compare(losses, reference, 2) == pytest.approx({"ratio": 2 / 3, "ratio_min": 2 / 3, "ratio_max": 1.5})


def test_a_run_is_done_with_all_its_steps_and_its_evaluation(tmp_path):
    assert bf16.read_run(tmp_path, 2) is None
    lines = [{"step": step, "kind": "train", "loss": loss} for step, loss in ((1, 3.0), (2, "nan"))]
    for more, done in (([], False), ([{"step": 2, "kind": "eval", "segm/AP": 0.25}], True)):
        lines += more
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert (bf16.read_run(tmp_path, 2) is not None) == done
    losses, final = bf16.read_run(tmp_path, 2)
    assert losses[0] == 3 and np.isnan(losses[1]) and final["segm/AP"] == 0.25
    assert bf16.read_run(tmp_path, 3) is None
