"""Compares a model with every inference run of a folder of detectron2's recordings; not part of the test suite.

    python -m tests.models.check_golden FOLDER [FOLDER ...]

A folder has model.pkl, config.yaml and infer_*.npz, as tests/testdata/README.md describes the run that is kept there.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from tests.models import inference_checks as checks
from tests.models.golden import load_golden

STAGES = (
    checks.backbone,
    checks.fpn,
    checks.rpn,
    checks.anchors,
    checks.proposals,
    checks.box_head,
    checks.detections,
    checks.mask_head,
    checks.pasted,
    checks.end_to_end,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        for run in sorted(folder.glob("infer_*.npz")):
            golden = load_golden(folder / "model.pkl", folder / "config.yaml", run)
            print(f"{folder.name} {run.stem}")
            for stage in STAGES:
                start = time.perf_counter()
                try:
                    found = stage(golden)
                except KeyError as error:
                    print(f"  {stage.__name__:12} not recorded: {error}")
                    continue
                assert all(np.isfinite(v) for v in found.values())
                shown = " ".join(f"{name} {value:.1e}" for name, value in found.items())
                print(f"  {stage.__name__:12} {shown}  ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
