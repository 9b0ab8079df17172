"""Images per second and core of the training input, from records, against the plain Pillow + pycocotools way.

    python benchmarks/input_pipeline.py --annotations LVIS.json --images FOLDER

Settings: multi-scale training at 640 to 800 / 1333 with flip, and large-scale jitter (0.1, 2.0) at 1024; masks on
112 x 112, images padded to their bucket, batches of 16. Three ways make the same rows of the same batches:

    plain   file -> Pillow decodes and resizes all of it, NumPy mirrors, crops and pads; every object's polygons are
            scaled and filled on the full canvas by pycocotools, cropped to the box and resized to the grid
    exact   this package from prepared records; pixels byte for byte detectron2's (data.fast_pixels = False)
    fast    the same with data.fast_pixels = True

They take turns, first on one core (the process is pinned to it, one worker), then on all; each ratio is the median over
the turns. `images_per_cpu_second` counts the processor time of the process, which other work on the machine disturbs
less than the wall clock. Then what share of a row's processor time each stage takes, on one core: `pixels` is resizing,
mirroring and padding, `masks` everything from polygons to grids, `rest` drawing, sizes, classes and the batch's memory.
Last, how far fast pixels are from exact ones. Without --annotations the pictures are supershapes.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

SETTINGS = {"800/1333": {}, "jitter 1024": {"scale_jitter": (0.1, 2.0)}}
WAYS = ("plain", "exact", "fast")


class Clock:
    """Processor seconds by stage, of one thread. A stage within another is not counted for the outer one."""

    def __init__(self):
        self.seconds = collections.Counter()
        self._inner = [0.0]

    @contextlib.contextmanager
    def stage(self, name):
        start = time.thread_time()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.thread_time() - start
            self.seconds[name] += spent - self._inner.pop()
            self._inner[-1] += spent

    def timed(self, name, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return call


class TimedImages(Sequence):
    """Records, with the time of reading them."""

    def __init__(self, images, clock):
        self._images, self._clock = images, clock

    def __len__(self):
        return len(self._images)

    def __getitem__(self, i):
        with self._clock.stage("read"):
            return self._images[i]


class Plain:
    """The plain way. Which image a row has, and how it is seen, is drawn as this package draws it."""

    def __init__(self, records, iterator, config, clock=None):
        from eql_jax.data.augment import read_recipe

        self.records, self.iterator, self.config, self.clock = records, iterator, config, clock or Clock()
        self.recipe = read_recipe(config.data)
        self.buckets = [config.data.crop_size] if config.data.scale_jitter else config.data.buckets

    def fill_row(self, position, row):
        import numpy as np
        from PIL import Image

        record, view = self.plan(position)
        top, left, height, width = view.window
        with self.clock.stage("read"):
            encoded = record.path.read_bytes()
        with self.clock.stage("decode"):
            image = Image.open(io.BytesIO(encoded)).convert("RGB")
        with self.clock.stage("pixels"):
            pixels = np.asarray(image.resize((view.scaled.width, view.scaled.height), Image.Resampling.BILINEAR))
            if view.flip:
                pixels = pixels[:, ::-1]
            row["image"][:height, :width] = pixels[view.top : view.top + height, view.left : view.left + width]
        with self.clock.stage("masks"):
            self.fill_masks(record.objects, view, row)
        with self.clock.stage("rest"):
            row["image_size"][:] = height, width
            row["original_size"][:] = view.source
            row["image_id"][...] = record.id
            row["verified_classes"][record.objects.classes] = True
            row["verified_classes"][record.neg_classes] = True

    def plan(self, position):
        from eql_jax.data.augment import draw_view
        from eql_jax.data.transforms import Size, random_stream

        with self.clock.stage("rest"):
            step, number = divmod(position, self.config.train.batch_size)
            plan = self.iterator.sampler.batch(step)
            record = self.records[int(self.iterator.images[plan.indices[number]])]
            stream = random_stream(self.config.seed, step, number, record.id)
            bucket = Size(*self.buckets[plan.bucket])
            return record, draw_view(stream, self.recipe, Size(record.height, record.width), bucket)

    def fill_masks(self, objects, view, row):
        import numpy as np
        from PIL import Image
        from pycocotools import mask as mask_api

        _, _, height, width = view.window
        kept = 0
        for i, box in enumerate(view.clip(view.boxes(objects.boxes))):
            parts = [view.points(part).ravel().tolist() for part in objects.segmentations[i]]
            full = mask_api.decode(mask_api.merge(mask_api.frPyObjects(parts, height, width)))
            x1, y1 = np.floor(box[:2]).astype(int)
            x2, y2 = np.maximum(np.ceil(box[2:]).astype(int), (x1 + 1, y1 + 1))
            crop = full[y1:y2, x1:x2]
            if not crop.any() or kept == len(row["gt_masks"]):
                continue
            grid = Image.fromarray(crop * 255).resize(row["gt_masks"].shape[1:], Image.Resampling.BILINEAR)
            row["gt_masks"][kept] = np.asarray(grid) > 127
            row["gt_boxes"][kept] = box
            row["gt_classes"][kept] = objects.classes[i]
            kept += 1


def open_way(way, setting, data, args, clock=None):
    """The iterator of a way, and the function that fills a row."""
    from configs.base import get_config
    from eql_jax.data.pipeline import make_train_iterator

    config = get_config()
    config.data.update(SETTINGS[setting])
    config.data.fast_pixels = way == "fast"
    config.train.batch_size = args.batch
    annotations = data["prepared"]
    if clock:
        annotations = dataclasses.replace(annotations, images=TimedImages(annotations.images, clock))
    iterator = make_train_iterator(annotations, config)
    if way != "plain":
        return iterator, iterator._fill_row
    return iterator, Plain(data["json"].images, iterator, config, clock).fill_row


def throughput(setting, data, args, cores):
    """Yields a row of results for each way."""
    from eql_jax.data.parallel import filled_batches

    ways = {way: open_way(way, setting, data, args) for way in WAYS}
    wall, cpu = collections.defaultdict(list), collections.defaultdict(list)
    count = args.batches * cores
    for turn in range(args.turns + 1):
        for way, (iterator, fill_row) in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            batches = filled_batches(
                iterator._new_batch,
                fill_row,
                first=turn * count,
                count=count,
                rows_per_batch=args.batch,
                workers=cores,
                prefetch=2,
            )
            collections.deque(batches, maxlen=0)
            if turn:  # the first is to warm up
                wall[way].append(time.perf_counter() - start)
                cpu[way].append(time.process_time() - cpu_start)
    images = count * args.batch
    for way in WAYS:
        yield {
            "setting": setting,
            "way": way,
            "cores": cores,
            "images_per_second": images / statistics.median(wall[way]),
            "images_per_cpu_second": images / statistics.median(cpu[way]),
            "times_plain": statistics.median(a / b for a, b in zip(cpu["plain"], cpu[way], strict=True)),
            "times_plain_wall": statistics.median(a / b for a, b in zip(wall["plain"], wall[way], strict=True)),
        }


def stages(way, setting, data, args):
    """Milliseconds of each stage of a row, on one core, and its share."""
    from eql_jax.data import examples, render
    from eql_jax.data.examples import row_of

    clock = Clock()
    iterator, fill_row = open_way(way, setting, data, args, clock)
    with contextlib.ExitStack() as patches:
        for module, name, stage in (
            (render, "read_reduced_image", "decode"),
            (render, "is_plain_jpeg", "decode"),
            (render.opencv(), "imdecode", "decode"),
            (examples, "draw_on_canvas", "pixels"),
            (examples, "place_objects", "masks"),
            (examples, "crop_masks", "masks"),
        ):
            patches.enter_context(mock.patch.object(module, name, clock.timed(stage, getattr(module, name))))
        for step in range(args.batches + 1):
            with clock.stage("rest"):
                batch = iterator._new_batch(step)
                for i in range(args.batch):
                    fill_row(step * args.batch + i, row_of(batch, i))
            if step == 0:
                clock.seconds.clear()
    rows = args.batches * args.batch
    total = sum(clock.seconds.values())
    result = {"setting": setting, "way": way, "row_ms": 1e3 * total / rows}
    for stage in ("read", "decode", "pixels", "masks", "rest"):
        result |= {f"{stage}_ms": 1e3 * clock.seconds[stage] / rows, f"{stage}_share": clock.seconds[stage] / total}
    return result


def pixel_difference(setting, data, args):
    """How far the pixels of the fast way are from the exact ones, in grey levels."""
    import numpy as np

    exact, fast = (open_way(way, setting, data, args)[0] for way in ("exact", "fast"))
    worst, total, count = 0, 0, 0
    for _ in range(args.batches):
        a, b = next(exact)["image"].astype(np.int16), next(fast)["image"]
        difference = np.abs(a - b)
        worst, total, count = max(worst, int(difference.max())), total + int(difference.sum()), count + a.size
    exact.close()
    fast.close()
    return {"setting": setting, "fast_against_exact_max": worst, "fast_against_exact_mean": total / count}


def load(args, folder):
    """The data set, from its JSON and from records."""
    from eql_jax.data.annotations import load_annotations
    from eql_jax.data.prepare import prepare
    from eql_jax.data.prepared import load_prepared
    from eql_jax.data.supershapes import ensure_supershapes

    annotations, images = args.annotations, args.images
    if not annotations:
        made = ensure_supershapes(
            folder / "supershapes", num_classes=40, train_images=80, val_images=40, image_size=640, progress=False
        )
        annotations, images = made.train_annotations, made.images
    out = folder / "records"
    prepare(annotations, images, out, progress=False)
    return {"json": load_annotations(annotations, images), "prepared": load_prepared(out)}


def main() -> None:
    from benchmarks import common
    from eql_jax.data.parallel import available_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=pathlib.Path)
    parser.add_argument("--images", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=5, help="of a turn, for each core")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    cores = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        data = load(args, pathlib.Path(folder))
        objects = float(data["prepared"].index.object_counts().mean())
        common.report({"images": len(data["prepared"].images), "objects_per_image": objects, "cores": cores})
        for setting in SETTINGS:
            with pinned_to_one_core():
                for row in throughput(setting, data, args, 1):
                    common.report(row)
                for way in WAYS:
                    common.report(stages(way, setting, data, args))
            if cores > 1:
                for row in throughput(setting, data, args, cores):
                    common.report(row)
            common.report(pixel_difference(setting, data, args))


@contextlib.contextmanager
def pinned_to_one_core():
    """This thread, and those it starts, run on one core. Only Linux can; elsewhere one worker has to do."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    main()
