"""One evaluation from batches to tables: detect, write results per host, merge, evaluate, draw.

B images of a batch on this host, K classes. Into the output directory go

    results.host0000.json ...   what each host detected, LVIS format
    results.json                all of it
    metrics.json, table.txt     AP and AR of boxes, and masks where the model has them; AP-fixed, AP-pool, boundary AP
                                and AP of classes by number of images where the config asks
    classes.csv                 AP of every class beside its training frequency
    pictures/                   detections beside ground truth, some images

All hosts must share the storage that the directory is on, which may be a bucket.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from eql_jax.data.categories import ClassStatistics
from eql_jax.data.files import as_path
from eql_jax.data.images import ImageError, read_record_image
from eql_jax.data.records import Annotations, ImageRecord, evenly_spaced
from eql_jax.evaluation.columns import Result, ResultTable
from eql_jax.evaluation.evaluator import AP_FIXED_DETECTIONS, BOUNDARY, IOU_TYPES, EvaluationResult, evaluate
from eql_jax.evaluation.image_groups import group_metric_names
from eql_jax.evaluation.results import ResultWriter, detections_to_results, host_file, merge_results
from eql_jax.evaluation.tables import format_pooled_table, format_table, write_class_csv, write_metrics_json
from eql_jax.evaluation.work_folder import WorkFolder
from eql_jax.visualize import class_labels, draw_detections, draw_objects, side_by_side
from eql_jax.visualize.ground_truth import record_objects

Batch = Mapping[str, np.ndarray]
Detector = Callable[[Mapping[str, Any], Batch], Mapping[str, np.ndarray]]

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AP50r", "AP50c", "AP50f")
_RECALLS = ("AR", "ARs", "ARm", "ARl")


class BatchResults(NamedTuple):
    """The results of one batch, and the ids of its images (padding rows aside)."""

    results: list[Result]
    image_ids: list[int]


def detect(
    detector: Detector,
    variables: Mapping[str, Any],
    batches: Iterable[Batch],
    class_ids: Sequence[int] | np.ndarray,
    *,
    max_detections: int,
    workers: int = 0,
) -> Iterator[BatchResults]:
    """Runs the detector over batches and yields their results in order.

    Masks are pasted and encoded in threads while the detector works on the next batches.

    Args:
      detector: (variables, batch) -> detections, see `detections_to_results`.
      variables: parameters and BatchNorm statistics.
      batches: of `make_eval_batches` or `make_prediction_batches`.
      class_ids: category id of each of the K classes.
      max_detections: the best so many of every image are kept.
      workers: threads; 0: as many as there are cores.
    """
    workers = workers or os.cpu_count() or 1
    pending: collections.deque[tuple[Future[list[Result]], list[int]]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for batch in batches:
            detections = detector(variables, batch)
            small = {key: batch[key] for key in ("image_id", "image_size", "original_size")}  # lets the pixels go
            task = pool.submit(detections_to_results, detections, small, class_ids, max_detections=max_detections)
            pending.append((task, [i for i in np.asarray(batch["image_id"]).tolist() if i >= 0]))
            while len(pending) > workers:
                task, image_ids = pending.popleft()
                yield BatchResults(task.result(), image_ids)
        for task, image_ids in pending:
            yield BatchResults(task.result(), image_ids)


def run_evaluation(
    detector: Detector,
    variables: Mapping[str, Any],
    batches: Iterable[Batch],
    annotations: Annotations,
    config: ConfigDict,
    out_dir: str | os.PathLike[str],
    *,
    statistics: ClassStatistics | None = None,
    class_ids: Sequence[int] | np.ndarray | None = None,
    step: int | None = None,
    host: int = 0,
    num_hosts: int = 1,
    pictures: int | None = None,
    pictures_dir: str | os.PathLike[str] | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, float]:
    """Evaluates a model on all hosts and returns its metrics on all of them.

    Args:
      detector, variables: see `detect`.
      batches: this host's; where they have `records` (by image id), those images are evaluated, whether or not their
        file could be read. Else all of the annotation file's are.
      annotations: the evaluation set.
      config: reads model.with_mask, eval.max_detections, eval.ap_fixed, eval.ap_pool, eval.boundary, eval.backend,
        eval.image_count_groups, eval.pictures, log.progress and data.workers; for AP-fixed and AP-pool also
        model.test.detections_per_image, because results.json then has all that the model found in an image.
      out_dir: see the module's head; files of an earlier evaluation there are replaced.
      statistics: training frequencies, for the table of classes, the groups by number of images, and for the letters
        of classes without one in the file.
      class_ids: category id of each class of the model; None: those of `annotations`.
      step: of the checkpoint, noted in metrics.json.
      host, num_hosts: this process and how many there are (`jax.process_index()`, `jax.process_count()`).
      pictures: how many images to draw, in place of config.eval.pictures.
      pictures_dir: where to; None: out_dir/pictures.
      log: where the table goes.

    Returns:
      Metrics such as 'segm/AP' and 'bbox/AP50r' (`EvaluationResult.flat`), shares of 1, -1 without ground truth; with
      eval.ap_fixed also 'segm_fixed/AP' and so on, with eval.ap_pool 'segm_pool/AP', with eval.boundary 'boundary/AP',
      with eval.image_count_groups 'segm/AP1' (`metric_names`). Of a model without masks, those of boxes alone.

    Raises:
      ValueError: groups by number of images are asked for without `statistics`, or more of them than there are classes.
    """
    with WorkFolder(out_dir) as folder:
        metrics = _run_evaluation(
            detector,
            variables,
            batches,
            annotations,
            config,
            folder,
            statistics=statistics,
            class_ids=class_ids,
            step=step,
            host=host,
            num_hosts=num_hosts,
            pictures=config.eval.pictures if pictures is None else pictures,
            pictures_dir=as_path(out_dir) / "pictures" if pictures_dir is None else pictures_dir,
            log=log,
        )
        if host == 0:
            folder.share_all()
    # What came after the barrier was the first host's work; the others waited for its metrics.
    names = metric_names(
        config.eval.max_detections,
        evaluated_types(config),
        ap_fixed=config.eval.ap_fixed,
        ap_pool=config.eval.ap_pool,
        groups=config.eval.image_count_groups,
    )
    return _share_metrics(metrics, names) if num_hosts > 1 else {name: metrics[name] for name in names}


def _run_evaluation(
    detector: Detector,
    variables: Mapping[str, Any],
    batches: Iterable[Batch],
    annotations: Annotations,
    config: ConfigDict,
    folder: WorkFolder,
    *,
    statistics: ClassStatistics | None,
    class_ids: Sequence[int] | np.ndarray | None,
    step: int | None,
    host: int,
    num_hosts: int,
    pictures: int,
    pictures_dir: str | os.PathLike[str],
    log: Callable[[str], None],
) -> dict[str, float] | None:
    """`run_evaluation` up to the sharing of its metrics, which only the first host returns."""
    out_dir = folder.local
    max_detections, ap_fixed, ap_pool = config.eval.max_detections, config.eval.ap_fixed, config.eval.ap_pool
    # AP-fixed and AP-pool take all that the model found; the evaluator then limits the images for the other metrics.
    # Boxes that clipping left empty are gone by then, where else they count for the limit.
    written = config.model.test.detections_per_image if ap_fixed or ap_pool else max_detections
    class_ids = annotations.class_ids if class_ids is None else class_ids
    started = time.monotonic()
    images = 0
    records: Mapping[int, ImageRecord] | None = getattr(batches, "records", None)
    total = -(-len(records) // num_hosts) if records is not None else None
    shown = config.log.progress and host == 0 and sys.stderr.isatty()
    with (
        ResultWriter(host_file(out_dir, host)) as writer,
        tqdm(total=total, unit="image", desc="evaluate", disable=not shown, dynamic_ncols=True, leave=False) as bar,
    ):
        found = detect(detector, variables, batches, class_ids, max_detections=written, workers=config.data.workers)
        for batch_results in found:
            writer.write(batch_results.results)
            images += len(batch_results.image_ids)
            bar.update(len(batch_results.image_ids))
    seconds = time.monotonic() - started
    iou_types, groups = evaluated_types(config), config.eval.image_count_groups
    if num_hosts > 1:
        folder.share(host_file(out_dir, host).name)
        _wait_for_all_hosts()
    if host > 0:
        return None

    for other in range(num_hosts):
        folder.collect(host_file(out_dir, other).name)
    results = merge_results(out_dir, num_hosts=num_hosts)
    letters = None if statistics is None else _by_id(statistics, statistics.frequencies)
    options = {
        "iou_types": iou_types,
        "image_ids": None if records is None else records.keys(),
        "fallback_letters": letters,
        "image_counts": None if statistics is None else _by_id(statistics, statistics.image_counts.tolist()),
        "image_count_groups": groups,
        "backend": config.eval.backend,
    }
    result = evaluate(annotations, results, max_detections=max_detections, **options)
    unlimited = None
    if ap_fixed or ap_pool:
        unlimited = _evaluate_unlimited(annotations, results, written, pooled=ap_pool, **options)
    fixed, pooled = unlimited if ap_fixed else None, unlimited if ap_pool else None
    if ap_fixed and ap_pool:
        pooled = dataclasses.replace(unlimited, notes=())  # said once
    absent = annotations.report.counts.get("missing image", 0)
    if absent:
        log(
            f"{absent} of the {absent + len(annotations.images)} images of {annotations.raw} have no file and are not "
            "evaluated: these numbers are not those of the whole set"
        )
    log(f"{images} images on this host in {seconds:.1f} s ({images / max(seconds, 1e-9):.2f} images/s)")
    _write_tables(out_dir, result, fixed, pooled, statistics, step, log)
    for skipped in getattr(batches, "skipped", ()):
        log(f"not read, so its objects count as missed: {skipped.path}: {skipped.reason}")
    if pictures:
        by_id = records or {record.id: record for record in annotations.images}
        chosen = [by_id[image_id] for image_id in evenly_spaced(list(by_id), pictures)]
        with WorkFolder(pictures_dir) as drawings:
            drawn = draw_pictures(drawings.local, chosen, results, annotations, result)
            drawings.share_all()
        log(f"{drawn} pictures in {pictures_dir}")
    metrics = result.flat()
    if fixed is not None:
        metrics |= {_suffixed(name, "fixed"): value for name, value in fixed.flat().items()}
    if pooled is not None:
        pools = dataclasses.replace(pooled, metrics=pooled.pooled).flat()
        metrics |= {_suffixed(name, "pool"): value for name, value in pools.items()}
    return metrics


def _evaluate_unlimited(
    annotations: Annotations, results: ResultTable, detections_per_image: int, *, pooled: bool, **options: Any
) -> EvaluationResult:
    """AP-fixed and AP-pool, with a note where the model's limit per image stands in the way, and no other notes."""
    limits = {"max_detections": -1, "detections_per_class": AP_FIXED_DETECTIONS}
    found = evaluate(annotations, results, pooled=pooled, **limits, **options)
    _, per_image = np.unique(results.image_ids, return_counts=True)
    full = np.count_nonzero(per_image >= detections_per_image)
    notes = ()
    if full:
        notes = (
            f"{full} of {found.num_images} images have as many detections as model.test.detections_per_image "
            f"{detections_per_image} allows; AP-fixed and AP-pool have none, so raise it until this note goes",
        )
    return dataclasses.replace(found, notes=notes)


def draw_pictures(
    folder: Path,
    records: Sequence[ImageRecord],
    results: ResultTable,
    annotations: Annotations,
    evaluated: EvaluationResult,
    *,
    score_threshold: float = 0.3,
) -> int:
    """Draws detections beside ground truth, a file for each image that can be read; returns how many there are."""
    labels = class_labels(
        [c.class_id for c in evaluated.classes],
        [c.name for c in evaluated.classes],
        [c.frequency for c in evaluated.classes],
    )
    by_image = results.of_images([record.id for record in records])
    folder.mkdir(parents=True, exist_ok=True)
    drawn = 0
    for record in records:
        try:
            image = read_record_image(record)
        except ImageError:
            continue  # reported when it was met in its batch
        known = [result for result in by_image[record.id] if result["category_id"] in labels]
        left = draw_detections(image, known, labels, score_threshold=score_threshold)
        right = draw_objects(image, record_objects(record, annotations.class_ids), labels)
        titles = [f"detections, score {score_threshold:g} and above", f"ground truth, image {record.id}"]
        side_by_side([left, right], titles).save(folder / f"{record.id:012d}.png")
        drawn += 1
    return drawn


def _write_tables(
    out_dir: Path,
    result: EvaluationResult,
    fixed: EvaluationResult | None,
    pooled: EvaluationResult | None,
    statistics: ClassStatistics | None,
    step: int | None,
    log: Callable[[str], None],
) -> None:
    tables = [format_table(result)]
    if fixed is not None:
        tables.append(format_table(fixed))
    if pooled is not None:
        tables.append(format_pooled_table(pooled))
    table = "\n\n".join(tables)
    log(table)
    (out_dir / "table.txt").write_text(table + "\n", encoding="utf-8")
    extra = {} if step is None else {"step": step}
    write_metrics_json(out_dir / "metrics.json", result, extra=extra, ap_fixed=fixed, ap_pool=pooled)
    write_class_csv(
        out_dir / "classes.csv",
        result,
        train_image_counts=statistics and _by_id(statistics, statistics.image_counts.tolist()),
        train_instance_counts=statistics and _by_id(statistics, statistics.instance_counts.tolist()),
        ap_fixed=fixed,
    )


def _by_id(statistics: ClassStatistics, values: Sequence[Any]) -> dict[int, Any]:
    return dict(zip(statistics.category_ids.tolist(), values, strict=True))


def evaluated_types(config: ConfigDict) -> tuple[str, ...]:
    """What is evaluated, by model.with_mask and eval.boundary: some of 'bbox', 'segm' and 'boundary'."""
    if not config.model.with_mask:
        return ("bbox",)
    return (*IOU_TYPES, BOUNDARY) if config.eval.boundary else IOU_TYPES


def metric_names(
    max_detections: int,
    iou_types: Sequence[str] = IOU_TYPES,
    *,
    ap_fixed: bool = False,
    ap_pool: bool = False,
    groups: int = 0,
) -> list[str]:
    """The keys that `run_evaluation` returns, always in this order. AP-pool has no groups by number of images."""

    def names(limit: int, groups: int) -> list[str]:
        of_type = (*_METRICS, *(f"{r}@{limit}" for r in _RECALLS), *group_metric_names(groups))
        return [f"{t}/{name}" for t in iou_types for name in of_type]

    found = names(max_detections, groups)
    for kind, wanted, its_groups in (("fixed", ap_fixed, groups), ("pool", ap_pool, 0)):
        if wanted:
            found += [_suffixed(name, kind) for name in names(-1, its_groups)]
    return found


def _suffixed(name: str, kind: str) -> str:
    """'segm/AP' -> 'segm_fixed/AP'."""
    return name.replace("/", f"_{kind}/", 1)


def _wait_for_all_hosts() -> None:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("eql_jax results written")


def _share_metrics(metrics: Mapping[str, float] | None, names: Sequence[str]) -> dict[str, float]:
    """Sends the first host's metrics to all, so that every host takes the same checkpoint for the best."""
    from jax.experimental import multihost_utils

    values = np.array([metrics[name] if metrics else 0.0 for name in names], np.float32)
    return dict(zip(names, np.asarray(multihost_utils.broadcast_one_to_all(values)).tolist(), strict=True))
