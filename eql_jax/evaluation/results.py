"""Detections as LVIS results: dicts of one format, one JSON file per host, merged at the end without holding the dicts.

B images, D detections of an image, K classes, M side of a predicted mask.

A result is {'image_id', 'category_id', 'score', 'bbox': [x, y, width, height], 'segmentation': {'size', 'counts'}}, in
pixels of the image file: what the LVIS and COCO servers and tools take. Those of a model without masks have no
'segmentation'. The files of the hosts are LVIS result files in themselves, so a run that broke off after a host had
finished has lost nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from eql_jax.evaluation import paste
from eql_jax.evaluation.columns import Result, ResultTable, TableBuilder
from eql_jax.evaluation.result_reader import read_results

_COPIED_BYTES = 1 << 22  # at a time


def _decimal(value: np.floating) -> float:
    """The shortest decimal that reads back as the same float32 (.1 and not .10000000149), which keeps files small."""
    return float(str(np.float32(value)))


def detections_to_results(
    detections: Mapping[str, np.ndarray],
    batch: Mapping[str, np.ndarray],
    class_ids: Sequence[int] | np.ndarray,
    *,
    max_detections: int = 300,
    mask_threshold: float = 0.5,
) -> list[Result]:
    """Turns the detections of a batch into LVIS results.

    Args:
      detections: boxes float32 [B, D, 4] in pixels of the resized image, scores [B, D] (0 is padding), classes int
        [B, D] (-1 is padding), and, unless the model has none, masks float [B, D, M, M] (probabilities); M is 0 where
        it has none, and results have no segmentation then.
      batch: image_id int [B] (-1: a padding row, skipped), image_size and original_size int [B, 2] (height, width).
      class_ids: the category id of each of the K classes.
      max_detections: the best so many of every image are kept.
      mask_threshold: a pixel belongs to the object from this probability on.

    Returns:
      Results image after image, each image's by falling score. Boxes that are empty once they are clipped to the image
      are left out, as detectron2 does. Box coordinates are rounded to 1/1000 of a pixel.

    Raises:
      ValueError: a class index is not one of the K classes.
    """
    class_ids = np.asarray(class_ids)
    with_masks = detections.get("masks") is not None and np.shape(detections["masks"])[-1] > 0
    results: list[Result] = []
    for row, image_id in enumerate(np.asarray(batch["image_id"]).tolist()):
        if image_id < 0:
            continue
        scores = np.asarray(detections["scores"][row], np.float32)
        classes = np.asarray(detections["classes"][row])
        if classes.size and classes.max() >= len(class_ids):
            raise ValueError(
                f"image {image_id}: a detection of class {classes.max()}, but there are {len(class_ids)} category ids "
                f"(0 to {len(class_ids) - 1}); the model and the list of classes belong to different data sets"
            )
        order = np.argsort(-scores, kind="stable")
        order = order[(scores[order] > 0) & (classes[order] >= 0)][:max_detections]
        size = tuple(int(v) for v in batch["original_size"][row])
        scaled = paste.scale_boxes(
            np.asarray(detections["boxes"][row])[order],
            from_size=tuple(int(v) for v in batch["image_size"][row]),
            to_size=size,
        )
        order = order[scaled.index]
        rles = None
        if with_masks:
            masks = np.asarray(detections["masks"][row])[order]
            rles = paste.masks_to_rles(masks, scaled.boxes, size=size, threshold=mask_threshold)
        xywh = scaled.boxes.astype(np.float64)
        xywh[:, 2:] -= xywh[:, :2]
        for position, (index, box) in enumerate(zip(order, xywh.round(3).tolist(), strict=True)):
            result: Result = {
                "image_id": image_id,
                "category_id": int(class_ids[classes[index]]),
                "score": _decimal(scores[index]),
                "bbox": box,
            }
            if rles is not None:
                result["segmentation"] = rles[position]
            results.append(result)
    return results


def host_file(directory: str | os.PathLike[str], host: int) -> Path:
    """Where host number `host` writes its results."""
    return Path(directory) / f"results.host{host:04d}.json"


class ResultWriter:
    """Writes results to a JSON file as they come, one to a line, so that memory does not grow with the data set.

    The file gets its name when it is closed without an error: a file of that name is always whole. As a context
    manager it drops what it has written when the block raises.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.count = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)  # what an earlier evaluation left must not be merged with this one's
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._file = open(self._partial, "w", encoding="utf-8")
        self._file.write("[")

    def write(self, results: Iterable[Result]) -> None:
        """Appends results. Raises OSError with the file's name when the disk is full."""
        with self._dropped_on_error():
            for result in results:
                self._file.write(",\n" if self.count else "\n")
                self._file.write(json.dumps(result, separators=(",", ":")))
                self.count += 1

    def copy_file(self, path: str | os.PathLike[str], *, count: int) -> None:
        """Appends the `count` results of a whole results file, byte by byte. Raises as `write`."""
        if not count:
            return
        with open(path, "rb") as source, self._dropped_on_error():
            start, end = _inside_of_list(source)
            self._file.write(",\n" if self.count else "\n")
            self._file.flush()  # what follows goes past the text layer
            source.seek(start)
            for position in range(start, end, _COPIED_BYTES):
                self._file.buffer.write(source.read(min(_COPIED_BYTES, end - position)))
            self.count += count

    def close(self) -> None:
        """Completes the file and gives it its name. Raises as `write`."""
        with self._dropped_on_error():
            self._file.write("\n]\n")
            self._file.close()
            os.replace(self._partial, self.path)

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if kind is None:
            self.close()
        else:
            self._drop()

    def _drop(self) -> None:
        with contextlib.suppress(OSError):  # a full disk may refuse what was not written yet
            self._file.close()
        self._partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _dropped_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._drop()
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def _inside_of_list(file: IO[bytes]) -> tuple[int, int]:
    """Where in a file that is a JSON list, and not an empty one, its elements begin and end."""
    file.seek(0)
    start = file.read(_COPIED_BYTES).index(b"[") + 1
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while b"]" not in tail:  # white space may follow, as much as there is
        end -= min(end, 1024)
        file.seek(end)
        tail = file.read(1024)
    end += tail.rindex(b"]")
    file.seek(start)
    start += len(head := file.read(1024)) - len(head.lstrip())
    file.seek(max(start, end - 1024))
    end -= len(foot := file.read(end - file.tell())) - len(foot.rstrip())
    return start, end


def load_results(path: str | os.PathLike[str]) -> list[Result]:
    """Reads a results file to dicts; `ResultTable.from_file` holds the same in a tenth of the memory.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not JSON, or not a list of results; the message names the file.
    """
    return list(read_results(path))


def merge_results(
    directory: str | os.PathLike[str], *, num_hosts: int, path: str | os.PathLike[str] | None = None
) -> ResultTable:
    """Reads the results of all hosts, in order of host, and writes them as one file.

    Call it on one host, after all have closed their writers; the directory must be on storage that all hosts share.

    Args:
      directory: where the hosts wrote.
      num_hosts: how many there are.
      path: the merged file; None: `results.json` in the directory.

    Raises:
      FileNotFoundError: the file of a host is missing.
      ValueError: a file is damaged, or an image has results from two hosts.
    """
    files = [host_file(directory, host) for host in range(num_hosts)]
    builder, ends = TableBuilder(), [0]
    for host, file in enumerate(files):
        if not file.exists():
            raise FileNotFoundError(
                f"{file}: host {host} of {num_hosts} has not written its results. All hosts must have finished, and "
                "write to a directory that they share"
            )
        builder.add(read_results(file), source=f"{file}: ")
        ends.append(builder.size)
    table = builder.table()
    host_of_image: dict[int, int] = {}
    for host, file in enumerate(files):
        for image_id in np.unique(table.image_ids[ends[host] : ends[host + 1]]).tolist():
            if host_of_image.setdefault(image_id, host) != host:
                raise ValueError(
                    f"{file}: results for image {image_id}, which host {host_of_image[image_id]} has results for as "
                    "well; each image belongs to one host"
                )
    with ResultWriter(Path(directory) / "results.json" if path is None else path) as writer:
        for host, file in enumerate(files):
            writer.copy_file(file, count=ends[host + 1] - ends[host])
    return table
