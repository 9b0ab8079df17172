"""A full-width Mask R-CNN R50-FPN with 1203 classes into a workdir, through one image, and back to detectron2.

    python benchmarks/convert.py [--image_size 640] [--limit_seconds 60] [--limit_gib 4]

Prints the seconds of each part, the whole as a share of the limit, and the peak memory of the process; fails above a
limit, or if the tensors that come back differ in one bit. The weights are random: there is nothing to download.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from benchmarks.common import process_memory_gib
from configs import lvis_v1_r50_eql
from eql_jax.convert.run import convert, export_detectron2, save
from eql_jax.convert.table import detectron2_table, to_detectron2
from eql_jax.convert.unpickle import write_pickle
from eql_jax.data.categories import packaged_statistics
from eql_jax.models import build_model, init_model
from eql_jax.training.compatibility import Classes, flatten
from eql_jax.training.eval_step import make_detector
from eql_jax.training.inference_model import load_for_inference
from eql_jax.training.tail import class_frequencies


def random_tensors(config, num_classes: int) -> dict[str, np.ndarray]:
    """Tensors of detectron2's names and shapes, scaled so that features stay finite."""
    model = build_model(config, num_classes)
    rng = np.random.default_rng(0)
    arrays = {}
    for path, leaf in flatten(jax.eval_shape(lambda: init_model(model, jax.random.key(0)))).items():
        if path.endswith("/norm/var"):
            arrays[path] = np.ones(leaf.shape, np.float32)
        elif path.endswith("/norm/scale"):
            arrays[path] = np.full(leaf.shape, 0.5, np.float32)
        else:
            fan_in = max(1, int(np.prod(leaf.shape[:-1])))
            arrays[path] = rng.standard_normal(leaf.shape, np.float32) / np.float32(np.sqrt(fan_in))
    return to_detectron2(arrays, detectron2_table(config, channels="bgr"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, default=640)
    parser.add_argument("--limit_seconds", type=float, default=60)
    parser.add_argument("--limit_gib", type=float, default=4)
    options = parser.parse_args()
    config, classes = lvis_v1_r50_eql.get_config(), Classes.of(packaged_statistics("lvis_v1"))
    with tempfile.TemporaryDirectory() as folder:
        source, workdir, out = (Path(folder) / name for name in ("model.pkl", "run", "back.pkl"))
        tensors = random_tensors(config, len(classes))
        with open(source, "wb") as file:
            write_pickle({"model": tensors, "__author__": "random"}, file)
        megabytes = source.stat().st_size / 1e6
        # The making of the weights is not measured: its arrays stay, to be compared with what comes back.
        times = [time.perf_counter()]
        save(convert("detectron2", source, config, classes), classes, workdir)
        times.append(time.perf_counter())

        found = load_for_inference(workdir)
        detector = make_detector(build_model(found.config, len(classes), class_frequencies(classes)), found.config)
        size = options.image_size
        image = np.random.default_rng(1).integers(0, 256, (1, size, size, 3), np.uint8)
        detections = detector(found.variables, {"image": image, "image_size": np.array([[size, size]], np.int32)})
        assert np.isfinite(detections["boxes"]).all() and (detections["classes"] >= 0).all()
        times.append(time.perf_counter())

        back = export_detectron2(workdir, out).tensors
        times.append(time.perf_counter())
        assert back.keys() == tensors.keys() and all(back[k].tobytes() == v.tobytes() for k, v in tensors.items())
    parts = np.diff(times)
    total = times[-1] - times[0]
    gib = process_memory_gib("VmHWM")
    print(f"{len(tensors)} tensors, {megabytes:.0f} MB, {len(classes)} classes, one image of {size} x {size}")
    for name, seconds in zip(("convert", "detect, with compilation", "convert back"), parts, strict=True):
        print(f"  {name:26} {seconds:6.1f} s")
    print(
        f"  {'all':26} {total:6.1f} s, {total / options.limit_seconds:.2f} of the limit of {options.limit_seconds:g} s"
    )
    print(
        f"  {'peak memory':26} {gib:6.2f} GiB, {gib / options.limit_gib:.2f} of the limit of {options.limit_gib:g} GiB"
    )
    return int(total > options.limit_seconds or gib > options.limit_gib)


if __name__ == "__main__":
    sys.exit(main())
