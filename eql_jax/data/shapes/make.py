"""All pictures of a split, by one process or several; the same bytes either way.

Picture i of split s draws from np.random.default_rng([seed, s, i]), so it does not matter who makes it. The helpers are
processes of their own (`python -m eql_jax.data.shapes.make`) that read a pickled Job and write pickled records. They do
not re-import the caller's main module as `multiprocessing` would: that may be a training script, with JAX and devices.
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

from eql_jax.data.shapes.scene import DIFFICULTIES, SceneObject, draw_scene

JPEG_QUALITY = 90
SPLITS = {"train": 0, "val": 1}
NOT_EXHAUSTIVE = 0.05  # share of images, among those with two objects of a class, where one is left out and said so


@dataclass(frozen=True)
class Job:
    """Pictures of one split.

    classes: of every picture of the split, the indices of the classes in it.
    first_id: id of picture 0; the others count up from it.
    indices: which pictures to make.
    """

    folder: Path
    split: str
    seed: int
    size: int
    difficulty: str
    contours: list[np.ndarray]
    classes: list[list[int]]
    negatives: int  # absent classes listed per image, at most
    first_id: int
    indices: range


class Picture(NamedTuple):
    """What is annotated of a picture; classes as indices."""

    index: int
    objects: list[SceneObject]
    negatives: list[int]
    not_exhaustive: list[int]


def picture_name(image_id: int) -> str:
    """File name of an image, as in COCO: twelve digits."""
    return f"{image_id:012d}.jpg"


def make_picture(job: Job, index: int) -> Picture:
    """Draws picture `index` and writes it to folder/split/name."""
    rng = np.random.default_rng([job.seed, SPLITS[job.split], index])
    classes = job.classes[index]
    scene = draw_scene(
        rng, classes=classes, contours=job.contours, size=job.size, difficulty=DIFFICULTIES[job.difficulty]
    )
    objects, not_exhaustive = scene.objects, []
    present = [o.class_index for o in objects]
    repeated = sorted({c for c in present if present.count(c) > 1})
    if repeated and rng.random() < NOT_EXHAUSTIVE:
        # As in LVIS: some objects of the class are not annotated, and the image says so.
        not_exhaustive = [int(rng.choice(repeated))]
        del objects[len(present) - 1 - present[::-1].index(not_exhaustive[0])]
    absent = np.setdiff1d(np.arange(len(job.contours)), classes)
    chosen = rng.choice(absent, min(job.negatives, len(absent)), replace=False)
    ok, data = cv2.imencode(
        ".jpg", np.ascontiguousarray(scene.image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if not ok:
        raise RuntimeError(f"OpenCV could not encode picture {index} of {job.split} as JPEG")
    (job.folder / job.split / picture_name(job.first_id + index)).write_bytes(data.tobytes())
    return Picture(index, objects, sorted(chosen.tolist()), not_exhaustive)


def make_pictures(job: Job, *, workers: int) -> Iterator[Picture]:
    """Makes all pictures of a job, with at most `workers` processes; yields them in no particular order.

    Raises RuntimeError with the text of its error when a helper fails.
    """
    workers = min(workers, -(-len(job.indices) // 32))  # starting one takes as long as drawing about 30 pictures
    if workers <= 1:
        for index in job.indices:
            yield make_picture(job, index)
        return
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    helpers = [_Helper(replace(job, indices=job.indices[k::workers]), arrived) for k in range(workers)]
    try:
        running = len(helpers)
        while running:
            item = arrived.get()
            if isinstance(item, Picture):
                yield item
            else:
                running -= 1
                item.check()
    finally:
        for helper in helpers:
            helper.close()


class _Helper:
    """One helper process and the thread that passes its pictures on, followed by itself when it has ended."""

    def __init__(self, job: Job, arrived: queue.SimpleQueue):
        # The helper must find this very package, however the caller found it.
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.expected, self.received, self.text = len(job.indices), 0, b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "eql_jax.data.shapes.make"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )
        self.reader = threading.Thread(target=self._read, args=(job, arrived), daemon=True)
        self.errors = threading.Thread(target=self._read_errors, daemon=True)
        self.errors.start()
        self.reader.start()

    def _read_errors(self) -> None:
        self.text = self.process.stderr.read()

    def _read(self, job: Job, arrived: queue.SimpleQueue) -> None:
        try:
            pickle.dump(job, self.process.stdin)
            self.process.stdin.close()
            while True:
                picture = pickle.load(self.process.stdout)
                self.received += 1
                arrived.put(picture)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            pass  # it has ended; check() says whether it was through
        finally:
            arrived.put(self)

    def check(self) -> None:
        code = self.process.wait()
        self.errors.join(timeout=5)
        if code or self.received != self.expected:
            raise RuntimeError(
                f"a helper process that draws pictures ended with status {code} after {self.received} of "
                f"{self.expected} pictures:\n{self.text.decode(errors='replace')[-4000:]}"
            )

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _serve(source: BinaryIO, target: BinaryIO) -> None:
    cv2.setNumThreads(1)  # there is a helper for every core
    job = pickle.load(source)
    for index in job.indices:
        pickle.dump(make_picture(job, index), target)
        target.flush()


if __name__ == "__main__":
    # Pickles name the classes of the importable module, not of __main__.
    from eql_jax.data.shapes import make

    try:
        make._serve(sys.stdin.buffer, sys.stdout.buffer)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)  # the caller was interrupted too, and says so
