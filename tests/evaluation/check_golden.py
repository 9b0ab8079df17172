"""Checks evaluator and reference against stored numbers of the official package; not part of the test suite.

    python -m tests.evaluation.check_golden --golden DIR --annotations lvis_v0.5_val_40.json

DIR has detections.json, tied_scores.json and expected.json: 40 images of LVIS v0.5, whose annotations are not
redistributed here.
"""

import argparse
import json
import sys
from pathlib import Path

from eql_jax.evaluation import evaluate
from tests.evaluation import reference


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    options = parser.parse_args()
    detections, tied, expected = (
        json.loads((options.golden / f"{name}.json").read_text()) for name in ("detections", "tied_scores", "expected")
    )
    dataset = json.loads(options.annotations.read_text())
    worst = 0.0
    for suffix, scores in (("", None), ("_tied_scores", tied)):
        results = detections
        if scores is not None:
            results = [{**d, "score": score} for d, score in zip(detections, scores, strict=True)]
        result = evaluate(options.annotations, results)
        for run, iou_type in ((f"bbox{suffix}", "bbox"), (f"segm_mask_area{suffix}", "segm")):
            # The official code lists detections by image in order of first appearance; so do files of this package.
            independent, _ = reference.evaluate(dataset, results, masks=iou_type == "segm")
            for name, value in expected[run]["results"].items():
                differences = (result.metrics[iou_type][name] - value, independent[name] - value)
                worst = max(worst, *map(abs, differences))
                print(
                    f"{run:28} {name:8} {value:.12f}  evaluator {differences[0]:+.1e}  reference {differences[1]:+.1e}"
                )
    print(f"largest difference: {worst:.1e}")
    return 0 if worst <= 1e-9 else 1


if __name__ == "__main__":
    sys.exit(main())
