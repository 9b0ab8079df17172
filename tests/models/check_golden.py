"""Compares a model with every run of a folder of detectron2's recordings; not part of the test suite.

    python -m tests.models.check_golden FOLDER [FOLDER ...]

A folder has model.pkl, config.yaml, infer_*.npz and, where there is a training step, train.npz and train_grads.npz, as
tests/testdata/README.md describes them. Prints the largest difference of every stage.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from tests.models import inference_checks as checks
from tests.models import training_checks
from tests.models.golden import load_golden

STAGES = (
    checks.backbone,
    checks.fpn,
    checks.rpn,
    checks.anchors,
    checks.proposals,
    checks.box_head,
    checks.cascade,
    checks.detections,
    checks.mask_head,
    checks.end_to_end,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        for run in sorted(folder.glob("infer_*.npz")):
            start = time.perf_counter()
            golden = load_golden(folder / "model.pkl", folder / "config.yaml", run)
            found = checks.run_stages(golden)
            print(f"{folder.name} {run.stem}  ({time.perf_counter() - start:.0f} s)")
            for stage in STAGES:
                show(stage.__name__, stage(golden, found))
            show("pasted", checks.pasted(golden))
            if all(level in golden.arrays for level in golden.levels):
                show("mask_classes", checks.mask_classes(golden))
        if (folder / "train.npz").exists():
            start = time.perf_counter()
            golden = load_golden(folder / "model.pkl", folder / "config.yaml", folder / "train.npz")
            losses, gradients = training_checks.compare_step(golden, *training_checks.load_expected(folder))
            print(f"{folder.name} train  ({time.perf_counter() - start:.0f} s)")
            show("losses", losses)
            show("gradients", {"worst": max(gradients.values()), "parameters": len(gradients)})
    return 0


def show(name: str, differences: dict[str, float]) -> None:
    assert all(np.isfinite(v) for v in differences.values()), differences
    if differences:
        print(f"  {name:12} " + " ".join(f"{key} {value:.1e}" for key, value in differences.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
