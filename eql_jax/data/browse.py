"""Shows a training set as the model will see it: batches, class histogram, tail. Writes one HTML page.

    python -m eql_jax.data.browse --config=configs/lvis_v1_r50_eql_rfs.py --out=browse [--steps=3] [--lambda=1.1e-3] \
        --config.data.train_annotations=LVIS/lvis_v1_train.json --config.data.train_images=COCO

The batches are those of training with this config, step by step: resized, flipped, cropped, pasted and padded as they
enter the model, with boxes, masks and classes. Under each picture stand its image id and how often the sampler draws
it; of a mixed data set also which set it is from and how many classes it gives negatives of. Look here before a long
run: wrong boxes, class names off by one, masks that lag behind a flip and a tail that is not the one meant all show.
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from eql_jax.data.categories import ClassStatistics
from eql_jax.data.mixed import ID_STRIDE
from eql_jax.data.pipeline import Batch, TrainIterator, make_train_iterator
from eql_jax.data.records import Annotations, ImageIndex, ImageSet
from eql_jax.data.validation import AnnotationError


class Tail(NamedTuple):
    """What lambda makes of the classes: threshold, number of images that frequencies are shares of, bool [K]."""

    threshold: float
    num_images: int
    mask: np.ndarray


def write_page(
    out: Path,
    *,
    title: str,
    annotations: Annotations,
    statistics: ClassStatistics,
    iterator: TrainIterator,
    steps: int,
    tail: Tail,
    tail_note: str,
) -> Path:
    """Writes out/index.html and returns its path.

    Args:
      out: folder, made where it is missing.
      title: of the page.
      annotations: the training set.
      statistics: its classes' training frequencies.
      iterator: batches of training; `steps` of them are taken.
      steps: how many.
      tail: the tail for the threshold that was asked for.
      tail_note: the tail that training itself takes, in words.
    """
    from eql_jax.visualize.page import html_page

    first = iterator.step
    rates = iterator.sampler.image_rates() * iterator.images.size  # 1: as often as under uniform sampling
    batches = [next(iterator) for _ in range(steps)]
    sections = [
        _facts(annotations, statistics, iterator, rates, tail_note),
        _histogram(statistics, iterator.index, rates, tail),
        _tail_section(statistics, tail),
        *(
            _batch_section(batch, first + i, annotations, statistics, iterator.index, rates)
            for i, batch in enumerate(batches)
        ),
        _class_table(statistics, _sampled_images(iterator.index, rates, len(statistics.names)), tail),
    ]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "index.html"
    path.write_text(html_page(title, sections), encoding="utf-8")
    return path


def _facts(
    annotations: Annotations, statistics: ClassStatistics, iterator: TrainIterator, rates: np.ndarray, tail_note: str
) -> str:
    counts = {letter: statistics.frequencies.count(letter) for letter in "rcf"}
    rows = [
        ("annotations", str(annotations.raw)),
        ("images trained on", f"{iterator.images.size:,} of {len(annotations.images):,}"),
        ("objects in them", f"{iterator.index.classes.size:,}"),
        ("classes", f"{len(statistics.names)}: " + ", ".join(f"{n} {letter}" for letter, n in counts.items())),
        ("an image is drawn", f"{rates.min():.2f} to {rates.max():.2f} times as often as under uniform sampling"),
        ("tail in training", tail_note),
        *((f"set {i}", _set_text(one, np.sum(iterator.sets == i))) for i, one in enumerate(annotations.sets)),
    ]
    table = "".join(
        f"<tr><td>{html.escape(a)}</td><td style='text-align:left'>{html.escape(b)}</td></tr>" for a, b in rows
    )
    faults = "\n".join(filter(None, (annotations.report.summary(), iterator.report.summary())))
    return f"<table>{table}</table>" + (f"<h2>Left out</h2><pre>{html.escape(faults)}</pre>" if faults else "")


def _set_text(one: ImageSet, trained_on: int) -> str:
    text = (
        f"{one.name}: {one.share:.4g} of the images drawn, {trained_on:,} of {one.stop - one.start:,} trained on; "
        f"annotates {one.annotated.sum():,} classes, negatives: {one.negatives}"
    )
    return text if one.has_masks else f"{text}; boxes only"


def _histogram(statistics: ClassStatistics, index: ImageIndex, rates: np.ndarray, tail: Tail) -> str:
    from eql_jax.visualize.charts import class_histogram

    sampled = _sampled_images(index, rates, len(statistics.names))
    chart = class_histogram(
        statistics.names, statistics.frequencies, statistics.image_counts, tail=tail.mask, sampled=sampled
    )
    return f"<h2>Classes</h2>{chart}"


def _sampled_images(index: ImageIndex, rates: np.ndarray, num_classes: int) -> np.ndarray:
    """Expected images with each class among as many draws as there are images, float64 [K]."""
    images, classes = index.present_classes(num_classes)
    return np.bincount(classes, weights=rates[images], minlength=num_classes)


def _tail_section(statistics: ClassStatistics, tail: Tail) -> str:
    from eql_jax.losses.tail import tail_ratio
    from eql_jax.visualize.charts import tail_ratio_chart

    counts = statistics.image_counts
    frequencies = counts / tail.num_images
    ratio = tail_ratio(counts, tail.mask)
    used = frequencies[frequencies > 0]
    low, high = min(used.min(), tail.threshold) / 2, max(used.max(), tail.threshold) * 2
    thresholds = np.geomspace(max(low, 1e-9), high, 200)
    ratios = np.array([tail_ratio(counts, frequencies < threshold) for threshold in thresholds])
    inside = [
        f"{letter} {sum(tail.mask[i] for i, of_class in enumerate(statistics.frequencies) if of_class == letter)} of "
        f"{statistics.frequencies.count(letter)}"
        for letter in "rcf"
    ]
    suggested = [f"{share:.0%}: {largest_threshold(counts, tail.num_images, share):.4g}" for share in (0.02, 0.05, 0.1)]
    names = ", ".join(statistics.names[i] for i in np.flatnonzero(tail.mask)[np.argsort(counts[tail.mask])])
    return (
        f"<h2>Tail for lambda {tail.threshold:g}</h2><p>{int(tail.mask.sum())} of {len(counts)} classes are in fewer "
        f"than {tail.threshold:g} of {tail.num_images:,} images ({html.escape(', '.join(inside))}); tail ratio "
        f"{100 * ratio:.2f} %. The largest lambda for a tail ratio of at most "
        f"{', '.join(suggested)}.</p>"
        + tail_ratio_chart(thresholds, ratios, threshold=tail.threshold, ratio=ratio)
        + f"<details><summary>the tail's classes, rarest first</summary><p>{html.escape(names)}</p></details>"
    )


def largest_threshold(image_counts: np.ndarray, num_images: int, share: float) -> float:
    """The largest lambda whose tail ratio is at most `share`, cut (not rounded) to four digits."""
    counts = np.unique(image_counts[image_counts > 0])
    # With lambda at a class's own frequency that class is not in the tail, with a little more it is.
    ratios = np.array([image_counts[image_counts < count].sum() for count in counts]) / image_counts.sum()
    found = counts[np.flatnonzero(ratios <= share)[-1]] / num_images
    digits = 10.0 ** (3 - np.floor(np.log10(found)))
    return float(np.floor(found * digits * (1 + 1e-12)) / digits)


def _batch_section(
    batch: Batch,
    step: int,
    annotations: Annotations,
    statistics: ClassStatistics,
    index: ImageIndex,
    rates: np.ndarray,
) -> str:
    from eql_jax.visualize.page import html_figure, picture_uri

    position = {int(image_id): i for i, image_id in enumerate(index.ids)}
    bucket = "{} x {}".format(*batch["image"].shape[1:3])
    figures = []
    for row, image_id in enumerate(batch["image_id"].tolist()):
        picture = draw_row(batch, row, statistics, annotations.class_ids)
        height, width = batch["image_size"][row]
        old_height, old_width = batch["original_size"][row]
        objects = int((batch["gt_classes"][row] >= 0).sum())
        ignored = int(batch["gt_ignore"][row].sum())
        rate = rates[position[image_id]]
        caption = (
            f"{_image_name(image_id, annotations.sets)}: {old_width} x {old_height} → {width} x {height}; "
            f"{objects} objects"
            + (f", {ignored} of them ignored" if ignored else "")
            + f"; {int(batch['verified_classes'][row].sum())} classes verified; sampling probability "
            f"{rate / rates.size:.3g}, {rate:.2f} x uniform"
        )
        if "annotated_classes" in batch:
            caption += f"; negatives of {int(batch['annotated_classes'][row].sum())} classes"
        figures.append(html_figure(picture_uri(picture), caption))
    return f'<h2>Batch of step {step}: {len(figures)} images of {bucket}</h2><div class="row">{"".join(figures)}</div>'


def _image_name(image_id: int, sets: Sequence[ImageSet]) -> str:
    """'image 17', or of a mixed data set 'image 17 of set 1 (oid.json)'."""
    if not sets:
        return f"image {image_id}"
    number, own = divmod(image_id, ID_STRIDE)
    return f"image {own} of set {number} ({sets[number].name})"


def draw_row(
    batch: Mapping[str, np.ndarray], row: int, statistics: ClassStatistics, class_ids: np.ndarray
) -> Image.Image:
    """Draws one image of a training batch with its ground truth, padding included.

    Args:
      batch: see `eql_jax.data.pipeline`.
      row: which image.
      statistics: names and letters of the classes.
      class_ids: category id of each class.
    """
    from eql_jax.evaluation.paste import masks_to_rles
    from eql_jax.visualize import class_labels, draw_objects

    pixels = batch["image"][row]
    size = pixels.shape[:2]
    boxes = batch["gt_boxes"][row]
    shown = np.flatnonzero(
        (batch["gt_classes"][row] >= 0) & ((boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 0) & ~batch["gt_ignore"][row]
    )
    masks = batch["gt_masks"][row][shown]
    rles = [None] * len(shown)  # of a model without masks
    if masks.size:
        rles = masks_to_rles(masks.astype(np.float32), boxes[shown], size=size)
    if "gt_has_mask" in batch:
        rles = [rle if has else None for rle, has in zip(rles, batch["gt_has_mask"][row][shown], strict=True)]
    objects = []
    for i, rle in zip(shown, rles, strict=True):
        x1, y1, x2, y2 = boxes[i].tolist()
        category_id = int(class_ids[batch["gt_classes"][row][i]])
        objects.append({"category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": rle})
    labels = class_labels(class_ids.tolist(), statistics.names, statistics.frequencies)
    return draw_objects(pixels, objects, labels)


def _class_table(statistics: ClassStatistics, sampled: np.ndarray, tail: Tail) -> str:
    from eql_jax.visualize.page import html_table

    head = ("class", "id", "letter", "images", "objects", "tail", "images under the sampler")
    rows = []
    for i in np.argsort(-statistics.image_counts, kind="stable"):
        cells = (
            statistics.names[i],
            int(statistics.category_ids[i]),
            statistics.frequencies[i],
            f"{int(statistics.image_counts[i]):,}",
            f"{int(statistics.instance_counts[i]):,}",
            "tail" if tail.mask[i] else "",
            f"{sampled[i]:,.1f}",
        )
        rows.append(cells)
    return f"<h2>All classes</h2><details><summary>table</summary>{html_table(head, rows)}</details>"


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it overrides the config."""
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.data.browse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="Python file with get_config(), or the config.json of a run")
    parser.add_argument("--out", required=True, type=Path, help="folder for index.html")
    parser.add_argument("--steps", type=int, default=2, help="how many batches to show (%(default)s)")
    parser.add_argument("--start_step", type=int, default=0, help="the first of them (%(default)s)")
    parser.add_argument(
        "--lambda",
        dest="threshold",
        type=float,
        help="threshold of the tail to show; default: the config's",
    )
    options, overrides = parser.parse_known_args(arguments)
    if options.steps < 0 or options.start_step < 0:
        parser.error(f"--steps {options.steps} and --start_step {options.start_step}: expected 0 or more")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        parser.error(f"--lambda is {options.threshold}, expected a share of images in [0, 1], such as 1.1e-3")
    return options, overrides


def browse(options: argparse.Namespace, overrides: Sequence[str]) -> Path:
    """Reads config and data and writes the page; returns its path."""
    # Here and not above: this package is below those, which draw in jax.
    from configs import base
    from eql_jax.losses.tail import tail_mask_from_threshold
    from eql_jax.training.config import load_config
    from eql_jax.training.inputs import load_training
    from eql_jax.training.tail import make_tail

    config = load_config(options.config, overrides, base=base.get_config())
    annotations, statistics = load_training(config)
    eql = config.model.eql
    # A config that goes by lambda says what its frequencies are shares of; else the data set says it.
    num_images = (eql.num_images if eql.tail_by == "lambda" else 0) or statistics.num_images
    threshold = eql.threshold if options.threshold is None else options.threshold
    frequencies = np.minimum(statistics.image_counts / num_images, 1)
    note = make_tail(
        config,
        letters=statistics.frequencies,
        image_counts=statistics.image_counts,
        num_images=statistics.num_images,
    ).summary
    iterator = make_train_iterator(annotations, config, start_step=options.start_step)
    try:
        return write_page(
            options.out,
            title=f"{config.name}: {config.data.train_annotations or annotations.raw}",
            annotations=annotations,
            statistics=statistics,
            iterator=iterator,
            steps=options.steps,
            tail=Tail(threshold, num_images, tail_mask_from_threshold(frequencies, threshold)),
            tail_note=note,
        )
    finally:
        iterator.close()


def main() -> None:
    options, overrides = parse_arguments()
    from eql_jax.training.errors import UserError

    try:
        print(f"written: {browse(options, overrides)}")
    except (UserError, AnnotationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
