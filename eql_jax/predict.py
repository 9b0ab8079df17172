"""Predicts on images with a trained model: LVIS-format results and pictures.

    python -m eql_jax.predict --workdir=runs/NAME --images 'photos/*.jpg' --out predictions
    python -m eql_jax.predict --workdir=runs/NAME --image_info lvis_v1_image_info_test_dev.json --images COCO --out test
    python -m eql_jax.predict ... --tta 600 800 1000 1200 1400

The first form takes any pictures, and numbers them 1, 2, ... in order of name. The second takes the images that an LVIS
or COCO JSON lists, annotated or not, from the folder --images, and writes the file that the evaluation server wants.
With --tta every image is looked at in several sizes (test-time augmentation, docs/test_time.md).

Into --out go results.json (LVIS results; all detections above the config's model.test.score_threshold), images.json
(which image id is which file, and the categories) and pictures/. An image that cannot be read is reported and skipped.
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eql_jax.data.annotations import load_annotations
from eql_jax.data.eval_batches import EvalBatches, make_prediction_batches
from eql_jax.data.images import ImageError, read_record_image
from eql_jax.data.records import ImageRecord
from eql_jax.data.validation import AnnotationError
from eql_jax.evaluation.results import Result, ResultWriter
from eql_jax.evaluation.run import detect
from eql_jax.training.errors import UserError
from eql_jax.training.tail import class_frequencies
from eql_jax.training.xla_flags import set_xla_flags
from eql_jax.visualize import ClassLabel, class_labels, draw_detections

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", required=True, help="directory of a training run, or one checkpoint in it (a path)"
    )
    parser.add_argument(
        "--images", required=True, nargs="+", help="image files, patterns or folders; with --image_info one folder"
    )
    parser.add_argument("--out", required=True, type=Path, help="where to write")
    parser.add_argument("--image_info", help="LVIS or COCO JSON that lists the images, such as those of the test sets")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest or a step of the run")
    parser.add_argument(
        "--score_threshold", type=float, default=0.3, help="what is drawn; results hold more (%(default)s)"
    )
    parser.add_argument(
        "--max_pictures", type=int, default=100, help="draw the first so many, 0 for none (%(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=1, help="images of a batch (%(default)s)")
    parser.add_argument(
        "--tta",
        type=int,
        nargs="*",
        metavar="SIDE",
        help="test-time augmentation at these shorter sides, in place of the config's eval.tta.shorter_sides (the "
        "others of eval.tta stay); without a number: off",
    )
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch_size is {options.batch_size}, expected 1 or more")
    if any(side < 1 for side in options.tta or ()):
        parser.error(f"--tta has {min(options.tta)}, expected shorter sides of 1 pixel or more")
    if options.max_pictures < 0:
        parser.error(f"--max_pictures is {options.max_pictures}, expected 0 or more")
    if options.image_info and len(options.images) != 1:
        parser.error(
            f"--images names {len(options.images)} paths; with --image_info it is the one folder of the images"
        )
    return options


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Files, glob patterns (** is recursive) and folders as a list of files, each once, sorted.

    Raises:
      FileNotFoundError: a pattern matches nothing, or a folder holds no images.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
            if not files:
                raise FileNotFoundError(f"--images {pattern}: the folder holds no {', '.join(IMAGE_SUFFIXES)} file")
        else:
            # A name with brackets is a pattern to glob, but first of all it may be a file's name.
            files = [path] if path.is_file() else [Path(m) for m in glob.glob(pattern, recursive=True)]
            files = [file for file in files if file.is_file()]
            if not files:
                raise FileNotFoundError(f"--images {pattern}: no such file, and no file matches it as a pattern")
        found.update(files)
    return sorted(found)


def records_of_image_info(path: str, images_dir: str, classes: Mapping[int, str]) -> Sequence[ImageRecord]:
    """The images that a JSON lists. `classes`: names of the model's classes by category id.

    Raises:
      AnnotationError: the file cannot be used, or its categories are not those of the model, so that results would be
        wrong.
    """
    annotations = load_annotations(path, images_dir, require_annotations=False, masks=False)
    if annotations.report.total:
        print(annotations.report.summary(), file=sys.stderr)
    # By name too: the ids of LVIS v1 are all among those of v0.5, for other classes.
    listed = {category.id: category.name for category in annotations.categories}
    unknown = [f"id {i} {name!r} (there {listed.get(i)!r})" for i, name in classes.items() if listed.get(i) != name]
    if unknown:
        raise AnnotationError(
            f"{path} has {len(listed)} categories, the model {len(classes)}; {len(unknown)} of the model's are not in "
            f"the file: {', '.join(unknown[:5])}. Take a JSON of the data set the model was trained on"
        )
    return annotations.images


def _print_skipped(batches: EvalBatches, reported: int) -> int:
    """Reports what was skipped since `reported`, and returns how many there are by now."""
    new = batches.skipped[reported:]  # a copy: the threads that read images may add to the list meanwhile
    for skipped in new:
        print(f"skipped {skipped.path}: {skipped.reason}", file=sys.stderr)
    return reported + len(new)


def _draw(record: ImageRecord, results: list[Result], labels: Mapping[int, ClassLabel], options: argparse.Namespace):
    try:
        image = read_record_image(record)
    except ImageError:
        return  # it was readable a moment ago; its results stand
    name = f"{record.id:06d}_{record.path.stem}.jpg" if not options.image_info else f"{record.path.stem}.jpg"
    picture = draw_detections(image, results, labels, score_threshold=options.score_threshold)
    picture.save(options.out / "pictures" / name, quality=92)


def _describe_images(batches: EvalBatches, labels: Mapping[int, ClassLabel]) -> dict[str, Any]:
    """An image_info JSON of what was predicted on."""
    skipped = {s.path for s in batches.skipped}
    images = [
        {"id": record.id, "file_name": str(record.path), "width": record.width, "height": record.height}
        for record in batches.records.values()
        if record.path not in skipped
    ]
    categories = [{"id": i, "name": label.name, "frequency": label.letter} for i, label in labels.items()]
    return {"images": images, "categories": categories}


def predict(options: argparse.Namespace) -> int:
    """Runs the prediction; returns the number of images it was done on."""
    from eql_jax.models import build_model  # flax takes seconds: after the command line has been looked at
    from eql_jax.training.inference_model import load_detector
    from eql_jax.training.tta import make_test_detector

    loaded = load_detector(options.workdir, checkpoint=options.checkpoint)
    classes, config = loaded.classes, loaded.config
    if options.tta is not None:
        with config.unlocked():
            config.eval.tta.shorter_sides = tuple(options.tta)
    if options.image_info:
        images: Sequence = records_of_image_info(
            options.image_info, options.images[0], dict(zip(classes.ids, classes.names, strict=True))
        )
    else:
        images = find_images(options.images)
    batches = make_prediction_batches(images, config, batch_size=options.batch_size, augmented=True)
    reported = _print_skipped(batches, 0)
    labels = class_labels(classes.ids, classes.names, classes.letters)
    detector = make_test_detector(build_model(config, len(classes), class_frequencies(classes)), config)
    print(f"{len(batches.records)} images, {len(classes)} classes, checkpoint of step {loaded.step}")
    if batches.description:
        print(batches.description)

    options.out.mkdir(parents=True, exist_ok=True)
    if options.max_pictures:
        (options.out / "pictures").mkdir(exist_ok=True)
    count, drawn = 0, 0
    found = detect(
        detector,
        loaded.variables,
        batches,
        classes.ids,
        max_detections=config.eval.max_detections,
        workers=config.data.workers,
    )
    with (
        ResultWriter(options.out / "results.json") as writer,
        tqdm(total=len(batches.records), unit="image", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar,
    ):
        for batch in found:
            writer.write(batch.results)
            count += len(batch.image_ids)
            bar.update(len(batch.image_ids))
            for image_id in batch.image_ids[: options.max_pictures - drawn]:
                mine = [result for result in batch.results if result["image_id"] == image_id]
                _draw(batches.records[image_id], mine, labels, options)
                drawn += 1
            reported = _print_skipped(batches, reported)
    _print_skipped(batches, reported)
    (options.out / "images.json").write_text(json.dumps(_describe_images(batches, labels)) + "\n", encoding="utf-8")
    print(f"{writer.count} detections in {count} images: {writer.path}")
    if len(batches.skipped):
        print(f"{len(batches.skipped)} images could not be read and were skipped (named above)", file=sys.stderr)
    if drawn:
        print(f"{drawn} pictures with detections from {options.score_threshold:g} on: {options.out / 'pictures'}")
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 when the user has to put something right."""
    options = parse_arguments(arguments)
    try:
        set_xla_flags()
        if predict(options):
            return 0
        print("error: none of the images could be read", file=sys.stderr)
    except (UserError, AnnotationError, OSError) as error:  # what users can mend: paths, files, a full disk
        print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
